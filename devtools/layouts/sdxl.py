"""The templates for SDXL, with the settings of the paper: train a subject, guide it, put it into a style."""

from __future__ import annotations

from .layout import Layout, trainer_settings

SDXL = {
    "name": "sd_xl_base_1.0.safetensors",
    "url": "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
    "directory": "checkpoints",
}
_BLUE, _GREEN, _YELLOW, _PURPLE = "#3f789e", "#8A8", "#b58b2a", "#a1309b"


def _sdxl(w: Layout) -> str:
    node = w.add("CheckpointLoaderSimple", (0, 40), (320, 110), ckpt_name=SDXL["name"])
    w.models[node] = [SDXL]
    return node


def _paper_sampler(
    w: Layout, at: tuple[int, int], model: str, lora: str, prompt: str, negative: str, latent: str
) -> str:
    """prompt: an Encode DCO Prompt node."""
    return w.add(
        "DCORewardGuidanceSampler", at, (320, 450), "Reward guidance: move w_rg", model=[model, 0], lora=[lora, 0],
        positive=[prompt, 1], negative=[negative, 0], latent_image=[latent, 0], seed=1, steps=50, w_rg=3.0, w_text=7.5,
        sampler_name="ddim", scheduler="normal", denoise=1.0, personalized=[prompt, 0],
    )  # fmt: skip


_SUBJECT = """\
## Train a subject

1. **Drop** 1 to 20 photos on the node at the left.
2. **Describe everything** in a caption: subject, background, view, style. Write the subject as **&lt;dog&gt;**: \
**a photo of a &lt;dog&gt; sitting on a ledge in front of red wall and tree, macro style**. Run drafts what is \
empty for you to read, and says beside each photo what is missing.
3. **Press Run.** The settings are the paper's for SDXL, with a learned token for **&lt;dog&gt;**. One photo: \
recipe **one image**.

Cancel any time: what was learned is saved, and the next Run goes on where it stopped.

**The plot:** the margin should rise above 0, the gate fall below 0.5. A gate at 0 has stopped learning.

A folder of photos with text files: *Load Dataset Folder* in the place of the photos.
"""


def train_a_subject() -> Layout:
    """Workflow 1: SDXL, the paper's settings for a subject."""
    w = Layout()
    sdxl = _sdxl(w)
    images = w.add(
        "DCOPhotos", (0, 200), (320, 740), "My photos and captions", photos="", kind="subject", name="dog"
    )
    tokens = w.add(
        "DCOLoRAOptions", (370, 40), (320, 330), learned_tokens="with the LoRA",
        learned_tokens__token_learning_rate=5e-4, learned_tokens__initializers="", learned_tokens__vectors=0,
    )  # fmt: skip
    masks = w.add("DCODataOptions", (370, 430), (320, 170), masks=[images, 2], options=[tokens, 0])
    trainer = w.add(
        "DCOLoRATrainer", (740, 40), (400, 900), "Train my subject (the paper's settings)", model=[sdxl, 0],
        clip=[sdxl, 1], vae=[sdxl, 2], images=[images, 0], captions=[images, 1], options=[masks, 0],
        **trainer_settings("subject", "my_subject"),
    )  # fmt: skip
    prompt = w.add(
        "DCOEncodePrompt", (1190, 40), (320, 170), "Prompt", clip=[sdxl, 1], lora=[trainer, 0],
        text="a photo of a <dog> wearing a spacesuit, planting a flag on the moon",
    )  # fmt: skip
    empty = w.add("CLIPTextEncode", (1190, 250), (320, 80), "Empty prompt", clip=[sdxl, 1], text="")
    latent = w.add("EmptyLatentImage", (1190, 410), (320, 110), width=1024, height=1024, batch_size=1)
    sampler = _paper_sampler(w, (1190, 580), sdxl, trainer, prompt, empty, latent)
    decoded = w.add("VAEDecode", (1560, 40), (380, 50), samples=[sampler, 0], vae=[sdxl, 2])
    picture = w.add(
        "SaveImage", (1560, 140), (380, 420), "My subject", images=[decoded, 0], filename_prefix="dco/subject"
    )
    w.notes += [(1560, 610, 380, 370, _SUBJECT)]
    w.groups += [
        ("1. Model, photos, options", -20, -40, 730, 1090, _BLUE),
        ("2. Train", 720, -40, 440, 1090, _GREEN),
        ("3. Look", 1170, -40, 790, 1090, _YELLOW),
    ]
    w.app_inputs += [
        (trainer, "recipe"),
        (trainer, "steps"),
        (trainer, "name"),
        (prompt, "text"),
        (sampler, "w_rg"),
    ]
    w.app_outputs += [picture]
    return w


_GUIDANCE = """\
## Reward guidance

Choose your checkpoint and your LoRA (press **R** after training), write the prompt with the marker it was trained \
with (**&lt;dog&gt;**), press Run.

- **w_rg** is likeness, **w_text** is text guidance (what others call cfg). The paper: **w_text** 7.5 and **w_rg** \
2 to 5. The best value depends on the subject and on the prompt: look at the sweep, then choose.
- **w_rg** 0 is exactly the base model; **w_rg** = **w_text** is the LoRA against the base's empty prompt.
- Load the model **without** the LoRA: the node adds it only where it belongs, and never changes your weights.
- *Reward Guidance (DCO)* is the same as a patch, for any sampler: its cfg is **w_text**. Template 5 has it.
"""


def reward_guidance() -> Layout:
    """Workflow 2: one LoRA at several w_rg."""
    w = Layout()
    sdxl = _sdxl(w)
    lora = w.add("DCOLoadLoRA", (0, 200), (320, 190), "My LoRA", lora_name="my_subject_00001_.safetensors")
    prompt = w.add(
        "DCOEncodePrompt", (0, 440), (320, 150), "Prompt", clip=[sdxl, 1], lora=[lora, 0],
        text="a photo of a <dog> in a wetsuit, surfing a giant wave in the ocean",
    )  # fmt: skip
    empty = w.add("CLIPTextEncode", (0, 640), (320, 90), "Empty prompt", clip=[sdxl, 1], text="")
    latent = w.add("EmptyLatentImage", (0, 800), (320, 110), width=1024, height=1024, batch_size=1)
    sampler = _paper_sampler(w, (370, 40), sdxl, lora, prompt, empty, latent)
    decoded = w.add("VAEDecode", (370, 540), (320, 50), samples=[sampler, 0], vae=[sdxl, 2])
    picture = w.add(
        "SaveImage", (370, 640), (320, 340), "Guided", images=[decoded, 0], filename_prefix="dco/guided"
    )
    sweep = w.add(
        "DCORewardGuidanceSweep", (740, 40), (330, 540), "Which w_rg suits my subject?", model=[sdxl, 0],
        lora=[lora, 0], positive=[prompt, 1], negative=[empty, 0], personalized=[prompt, 0], latent_image=[latent, 0],
        vae=[sdxl, 2], w_rg_values="0, 2, 3.5, 5", across="w_rg alone", seed=1, steps=50, w_text=7.5,
        sampler_name="ddim", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    sheet = w.add(
        "SaveImage", (1120, 40), (780, 540), "The same noise at several w_rg", images=[sweep, 1],
        filename_prefix="dco/sweep",
    )  # fmt: skip
    w.notes += [(740, 640, 1160, 340, _GUIDANCE)]
    w.groups += [
        ("1. Model, LoRA, prompt", -20, -40, 360, 1040, _BLUE),
        ("2. Reward guidance", 350, -40, 360, 1040, _YELLOW),
        ("3. Which w_rg? The same noise at several", 720, -40, 1200, 640, _PURPLE),
    ]
    w.app_inputs += [(lora, "lora_name"), (prompt, "text"), (sampler, "w_rg"), (sampler, "seed")]
    w.app_outputs += [picture, sheet]
    return w


_STYLE = """\
## My subject in my style

1. Train a subject first (template 1) and choose its LoRA at the left (press **R**).
2. Choose **one** style image and describe what is *in* it, then its style: the caption's content words keep the \
content out of the style.
3. Press Run. Too little style: weights **1, 1.2**. Subject drowned: **1, 0.8**, or more **w_rg**.

To merge two finished LoRAs, put a second *Load LoRA File* in the place of the trainer. *Merge Options* has \
smaller files, weights by block, and more.
"""


def subject_in_style() -> Layout:
    """Workflow 3: train a style, merge it with a subject."""
    w = Layout()
    sdxl = _sdxl(w)
    subject = w.add(
        "DCOLoadLoRA", (0, 200), (320, 190), "My subject's LoRA", lora_name="my_subject_00001_.safetensors"
    )
    image = w.add("LoadImage", (0, 440), (320, 340), "My style: one image", image="example.png")
    trainer = w.add(
        "DCOLoRATrainer", (370, 40), (400, 900), "Train my style (the paper's settings)", model=[sdxl, 0],
        clip=[sdxl, 1], vae=[sdxl, 2], images=[image, 0],
        captions="A person working on a laptop in <flat cartoon illustration> style",
        **trainer_settings("style", "my_style"),
    )  # fmt: skip
    merge = w.add(
        "DCOLoRAArithmeticMerge", (820, 40), (340, 400), "My subject + my style", loras__lora_0=[subject, 0],
        loras__lora_1=[trainer, 0], weights="1, 1", name="my_subject_my_style",
    )  # fmt: skip
    prompt = w.add(
        "DCOEncodePrompt", (820, 470), (340, 150), "Prompt", clip=[sdxl, 1], lora=[merge, 0],
        text="a <dog> riding a bicycle in flat cartoon illustration style",
    )  # fmt: skip
    empty = w.add("CLIPTextEncode", (820, 675), (340, 80), "Empty prompt", clip=[sdxl, 1], text="")
    latent = w.add("EmptyLatentImage", (820, 830), (340, 110), width=1024, height=1024, batch_size=1)
    sampler = _paper_sampler(w, (1210, 40), sdxl, merge, prompt, empty, latent)
    decoded = w.add("VAEDecode", (1580, 40), (340, 50), samples=[sampler, 0], vae=[sdxl, 2])
    picture = w.add(
        "SaveImage", (1580, 140), (340, 350), "My subject in my style", images=[decoded, 0],
        filename_prefix="dco/subject_in_style",
    )  # fmt: skip
    w.notes += [(1210, 540, 710, 410, _STYLE)]
    w.groups += [
        ("1. Model, subject, style", -20, -40, 360, 1010, _BLUE),
        ("2. Train the style", 350, -40, 440, 1010, _GREEN),
        ("3. Merge", 800, -40, 380, 1010, _PURPLE),
        ("4. Look", 1190, -40, 750, 550, _YELLOW),
    ]
    w.app_inputs += [
        (subject, "lora_name"),
        (image, "image"),
        (trainer, "captions"),
        (prompt, "text"),
        (merge, "weights"),
        (sampler, "w_rg"),
    ]
    w.app_outputs += [picture]
    return w
