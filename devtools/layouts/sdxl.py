"""The templates for SDXL, with the settings of the paper: train a subject, guide it, put it into a style."""

from __future__ import annotations

from .layout import Layout, trainer_settings

SDXL = {
    "name": "sd_xl_base_1.0.safetensors",
    "url": "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
    "directory": "checkpoints",
}


_TOKENS = {
    "learned_tokens": "with the LoRA", "learned_tokens__token_learning_rate": 5e-4,
    "learned_tokens__initializers": "", "learned_tokens__vectors": 0,
}  # fmt: skip


def _sdxl(w: Layout, x: int, y: int) -> str:
    return w.add("CheckpointLoaderSimple", (x, y), (340, 110), ckpt_name=SDXL["name"])


def _paper_sampler(
    w: Layout, model: str, lora: str, prompt: str, negative: str, latent: str, at, w_rg: float
) -> str:
    """prompt: an Encode DCO Prompt node."""
    return w.add(
        "DCORewardGuidanceSampler", at, (320, 420), f"Reward guidance, w_rg {w_rg:g}", model=[model, 0],
        lora=[lora, 0], positive=[prompt, 1], negative=[negative, 0], latent_image=[latent, 0], seed=1, steps=50,
        w_rg=w_rg, w_text=7.5, sampler_name="ddim", scheduler="normal", denoise=1.0, lora_strength=1.0,
        personalized=[prompt, 0], more_loras="this one alone",
    )  # fmt: skip


def train_a_subject() -> Layout:
    """Workflow 1: SDXL, the paper's settings for a subject."""
    w = Layout()
    sdxl = _sdxl(w, 0, 120)
    images = w.add("DCOLoadDataset", (0, 300), (340, 110), "My photos and captions", folder="my_subject")
    w.add("DCOCheckCaptions", (0, 490), (340, 300), captions=[images, 1], kind="subject", clip=[sdxl, 1])
    trainer = w.add(
        "DCOLoRATrainer", (420, 120), (360, 800), "Train my subject (paper settings)", model=[sdxl, 0], clip=[sdxl, 1],
        vae=[sdxl, 2], images=[images, 0], captions=[images, 1], masks=[images, 2], preview_every=500,
        preview_prompts="a photo of a <dog> on the beach", **trainer_settings(**_TOKENS),
    )  # fmt: skip
    w.add("PreviewImage", (860, 120), (460, 400), "Loss, margin and gate", images=[trainer, 2])
    w.add(
        "LossGraphNode",
        (860, 570),
        (460, 320),
        "Core's loss graph",
        loss=[trainer, 1],
        filename_prefix="loss",
    )
    w.add("PreviewImage", (860, 960), (460, 380), "Base, trained, reward guidance", images=[trainer, 4])
    prompt = w.add(
        "DCOEncodePrompt", (1400, 120), (380, 160), "Prompt", clip=[sdxl, 1], lora=[trainer, 0],
        text="a photo of a <dog> wearing a spacesuit, planting a flag on the moon",
    )  # fmt: skip
    empty = w.add("CLIPTextEncode", (1400, 310), (380, 100), "Empty prompt", clip=[sdxl, 1], text="")
    latent = w.add("EmptyLatentImage", (1400, 460), (380, 110), width=1024, height=1024, batch_size=1)
    sampler = _paper_sampler(w, sdxl, trainer, prompt, empty, latent, (1840, 120), 3.0)
    decoded = w.add("VAEDecode", (2220, 120), (220, 50), samples=[sampler, 0], vae=[sdxl, 2])
    w.add(
        "SaveImage", (2220, 230), (460, 480), "My subject", images=[decoded, 0], filename_prefix="dco/subject"
    )
    w.groups += [
        ("1. Model and photos", -20, 40, 390, 1020, "#3f789e"),
        ("2. Train", 400, 40, 940, 1320, "#8A8"),
        ("3. Look", 1380, 40, 1320, 1020, "#b58b2a"),
    ]
    w.notes.append(
        (-480, 40, 440, 700, "## Train a subject\n\n1. Make a folder `my_subject` in ComfyUI's `input` folder: 1 to 20 "
         "photos, each with a text file of the same name (`01.jpg`, `01.txt`). Press **R** and choose it above.\n2. "
         "Describe **everything** in a caption: subject, background, view, style. Write the subject as `<dog>`:\n\n"
         "`a photo of a <dog> sitting on a ledge in front of red wall and tree, macro style`\n\n*Check Captions* says "
         "what is missing; *Comprehensive Caption* drafts them.\n\n3. Press Run. Settings are the paper's for SDXL: "
         "rank 32, learning rate 5e-5, beta 1, a learned token for `<dog>`, up to 2000 steps (one photo: 1000).\n\n"
         "Cancel any time: the LoRA trained so far is saved in `output/loras`, and the next Run goes on where "
         "it stopped.\n\n**Reading the plot:** the margin "
         "should rise above 0 and the gate fall below 0.5. A gate at 0 has stopped learning.")
    )  # fmt: skip
    return w


def reward_guidance() -> Layout:
    """Workflow 2: one LoRA at several w_rg."""
    w = Layout()
    sdxl = _sdxl(w, 0, 120)
    lora = w.add("DCOLoadLoRA", (0, 300), (340, 70), "My LoRA", lora_name="my_subject_00001_.safetensors")
    prompt = w.add(
        "DCOEncodePrompt", (420, 120), (360, 160), "Prompt", clip=[sdxl, 1], lora=[lora, 0],
        text="a photo of a <dog> in a wetsuit, surfing a giant wave in the ocean",
    )  # fmt: skip
    empty = w.add("CLIPTextEncode", (420, 350), (360, 100), "Empty prompt", clip=[sdxl, 1], text="")
    latent = w.add("EmptyLatentImage", (420, 500), (360, 110), width=1024, height=1024, batch_size=1)
    sampler = _paper_sampler(w, sdxl, lora, prompt, empty, latent, (860, 120), 3.0)
    decoded = w.add("VAEDecode", (1210, 120), (320, 50), samples=[sampler, 0], vae=[sdxl, 2])
    w.add("SaveImage", (1210, 230), (480, 520), "Guided", images=[decoded, 0], filename_prefix="dco/guided")
    sweep = w.add(
        "DCORewardGuidanceSweep", (1770, 120), (340, 480), "Which w_rg suits my subject?", model=[sdxl, 0],
        lora=[lora, 0], positive=[prompt, 1], negative=[empty, 0], personalized=[prompt, 0], latent_image=[latent, 0],
        vae=[sdxl, 2], w_rg_values="0, 2, 3.5, 5", across="w_rg alone", seed=1, steps=50, w_text=7.5,
        sampler_name="ddim", scheduler="normal", denoise=1.0, lora_strength=1.0, more_loras="this one alone",
    )  # fmt: skip
    w.add(
        "SaveImage", (2160, 120), (900, 480), "The same noise at several w_rg", images=[sweep, 1],
        filename_prefix="dco/sweep",
    )  # fmt: skip
    patched = w.add(
        "DCORewardGuidance", (860, 1160), (320, 130), "As a patch, for any sampler", model=[sdxl, 0], lora=[lora, 0],
        w_rg=3.0, lora_strength=1.0, personalized=[prompt, 0], more_loras="this one alone",
    )  # fmt: skip
    other = w.add(
        "KSampler", (1210, 1160), (320, 280), "Any sampler: its cfg is w_text", model=[patched, 0],
        positive=[prompt, 1], negative=[empty, 0], latent_image=[latent, 0], seed=1, steps=30, cfg=7.5,
        sampler_name="dpmpp_2m", scheduler="karras", denoise=1.0,
    )  # fmt: skip
    decoded = w.add("VAEDecode", (1560, 1160), (320, 50), samples=[other, 0], vae=[sdxl, 2])
    w.add(
        "SaveImage", (1910, 1160), (320, 340), "Patched", images=[decoded, 0], filename_prefix="dco/patched"
    )
    w.groups += [
        ("1. Model, LoRA, prompt", -20, 40, 820, 600, "#3f789e"),
        ("2. Reward guidance", 840, 40, 880, 1000, "#b58b2a"),
        ("3. Which w_rg? The same noise at several", 1750, 40, 1340, 1000, "#a1309b"),
        ("4. The same as a patch", 840, 1080, 1420, 450, "#8A8"),
    ]
    w.notes.append(
        (-480, 40, 440, 520, "## Reward guidance\n\nChoose your checkpoint and your LoRA (press **R** after training), "
         "write the prompt with the marker it was trained with (`<dog>`), press Run. *Load LoRA File* tells the "
         "trigger words and scales to begin with.\n\n- `w_rg` is likeness, `w_text` is text "
         "guidance (what others call cfg).\n- The paper: `w_text` 7.5 and `w_rg` 2 to 5. The best value depends on the "
         "subject and even on the prompt: look at the sweep, then choose.\n- `w_rg` 0 is exactly the base model. "
         "`w_rg` = `w_text` is the LoRA against the base's empty prompt.\n- Load the model **without** the LoRA: the "
         "node adds it only where it belongs, and never changes your weights.")
    )  # fmt: skip
    return w


def subject_in_style() -> Layout:
    """Workflow 3: train a style, merge it with a subject."""
    w = Layout()
    sdxl = _sdxl(w, 0, 120)
    image = w.add("LoadImage", (0, 300), (340, 330), "My style: one image", image="example.png")
    subject = w.add(
        "DCOLoadLoRA", (0, 700), (340, 70), "My subject's LoRA", lora_name="my_subject_00001_.safetensors"
    )
    trainer = w.add(
        "DCOLoRATrainer", (420, 120), (380, 620), "Train my style (paper settings)", model=[sdxl, 0], clip=[sdxl, 1],
        vae=[sdxl, 2], images=[image, 0],
        captions="A person working on a laptop in <flat cartoon illustration> style",
        **trainer_settings(steps=1000, rank=64, offset_noise=0.1, filename_prefix="loras/my_style"),
    )  # fmt: skip
    w.add("PreviewImage", (420, 960), (380, 320), "Loss, margin and gate", images=[trainer, 2])
    merge = w.add(
        "DCOLoRAArithmeticMerge", (880, 120), (340, 200), "My subject + my style", loras__lora_0=[subject, 0],
        loras__lora_1=[trainer, 0], weights="1, 1", filename_prefix="loras/my_subject_my_style",
    )  # fmt: skip
    prompt = w.add(
        "DCOEncodePrompt", (880, 390), (340, 160), "Prompt", clip=[sdxl, 1], lora=[merge, 0],
        text="a <dog> riding a bicycle in flat cartoon illustration style",
    )  # fmt: skip
    empty = w.add("CLIPTextEncode", (880, 620), (340, 100), "Empty prompt", clip=[sdxl, 1], text="")
    latent = w.add("EmptyLatentImage", (880, 770), (340, 110), width=1024, height=1024, batch_size=1)
    sampler = _paper_sampler(w, sdxl, merge, prompt, empty, latent, (1290, 120), 3.0)
    decoded = w.add("VAEDecode", (1660, 120), (220, 50), samples=[sampler, 0], vae=[sdxl, 2])
    w.add(
        "SaveImage", (1660, 230), (480, 500), "My subject in my style", images=[decoded, 0],
        filename_prefix="dco/subject_in_style",
    )  # fmt: skip
    w.groups += [
        ("1. Model, style image, subject LoRA", -20, 40, 390, 820, "#3f789e"),
        ("2. Train the style", 400, 40, 420, 1270, "#8A8"),
        ("3. Merge and look", 860, 40, 1300, 870, "#a1309b"),
    ]
    w.notes.append(
        (-480, 40, 440, 460, "## My subject in my style\n\n1. Train a subject first (template 1) and choose its LoRA "
         "at the left (press **R**).\n2. Choose **one** style image and describe what is *in* it, then its style: the "
         "caption's content words keep the content out of the style.\n3. Press Run. Too little style: weights "
         "`1, 1.2`. Subject drowned: `1, 0.8`, or more `w_rg`.\n\nTo merge two finished LoRAs, replace the trainer "
         "with a second *Load LoRA File*.")
    )  # fmt: skip
    return w
