"""What the template workflows hold: nodes as an API prompt, and where they stand.

`python -m devtools.make_workflows` turns this into the UI-format files with the real frontend.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SDXL = {
    "name": "sd_xl_base_1.0.safetensors",
    "url": "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
    "directory": "checkpoints",
}


@dataclass
class Layout:
    """One workflow. places: node id -> (x, y, width, height); heights below the node's own are raised by the
    frontend. groups: (title, x, y, width, height, colour). notes: (x, y, width, height, markdown)."""

    prompt: dict[str, Any] = field(default_factory=dict)
    places: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    groups: list[tuple[str, int, int, int, int, str]] = field(default_factory=list)
    notes: list[tuple[int, int, int, int, str]] = field(default_factory=list)

    def add(
        self, class_type: str, at: tuple[int, int], size: tuple[int, int], title: str = "", **inputs: Any
    ) -> str:
        """Add a node and return its id; links are [id, output]."""
        node = str(len(self.prompt) + 1)
        inputs = {name.replace("__", "."): value for name, value in inputs.items()}
        self.prompt[node] = {"class_type": class_type, "inputs": inputs}
        self.places[node] = (*at, *size)
        if title:
            self.titles[node] = title
        return node


def _trainer(**changes: Any) -> dict[str, Any]:
    values = {
        "steps": 2000, "learning_rate": 5e-5, "rank": 32, "objective": "DCO", "objective__beta": 0.0,
        "objective__reduction": "per-sample", "resolution": 1024, "seed": 0, "filename_prefix": "loras/my_subject",
        "batch_size": 1, "offset_noise": 0.0, "alpha": 0.0, "layers": "attention",
        "learned_tokens": "off",
    }  # fmt: skip
    return values | changes


_TOY_TRAINING = {
    "steps": 300, "learning_rate": 1e-3, "rank": 8, "resolution": 256,
    "batch_size": 4, "layers": "all linear",
}  # fmt: skip


def try_it() -> Layout:
    """Workflow 0: everything on the Toy World."""
    w = Layout()
    world = w.add("DCOToyWorldLoader", (0, 120), (270, 90))
    subject = w.add("DCOToyWorldReferences", (0, 330), (270, 100), "My subject: 4 images", what="subject")
    w.add("PreviewImage", (0, 490), (270, 290), "My subject", images=[subject, 0])
    style = w.add("DCOToyWorldReferences", (0, 910), (270, 100), "My style: 1 image", what="style")
    w.add("PreviewImage", (0, 1070), (270, 250), "My style", images=[style, 0])
    common = {"model": [world, 0], "clip": [world, 1], "vae": [world, 2]}
    train_subject = w.add(
        "DCOLoRATrainer", (340, 120), (340, 560), "Train my subject (DCO)", **common, images=[subject, 0],
        captions=[subject, 1], **_trainer(**_TOY_TRAINING, filename_prefix="loras/toy_subject"),
    )  # fmt: skip
    train_style = w.add(
        "DCOLoRATrainer", (340, 910), (340, 560), "Train my style (DCO)", **common, images=[style, 0],
        captions=[style, 1], **_trainer(**_TOY_TRAINING | {"batch_size": 2}, filename_prefix="loras/toy_style"),
    )  # fmt: skip
    w.add("PreviewImage", (750, 120), (420, 340), "Loss, margin and gate", images=[train_subject, 2])
    w.add(
        "LossGraphNode",
        (750, 520),
        (420, 300),
        "Core's loss graph",
        loss=[train_subject, 1],
        filename_prefix="loss",
    )
    merge = w.add(
        "DCOLoRAArithmeticMerge", (750, 910), (420, 200), "My subject + my style",
        loras__lora_0=[train_subject, 0], loras__lora_1=[train_style, 0], weights="1, 1",
        filename_prefix="loras/toy_merge",
    )  # fmt: skip
    prompt = w.add(
        "CLIPTextEncode", (1240, 120), (320, 120), "Prompt", clip=[world, 1],
        text="a large toy on the left, at night, in flat style",
    )  # fmt: skip
    empty = w.add("CLIPTextEncode", (1240, 300), (320, 100), "Empty prompt", clip=[world, 1], text="")
    latent = w.add("EmptyLatentImage", (1240, 460), (320, 110), width=256, height=256, batch_size=4)
    styled = w.add(
        "CLIPTextEncode", (1240, 910), (320, 120), "Prompt, in my style", clip=[world, 1],
        text="a large toy in the middle, at sunset, in print style",
    )  # fmt: skip
    sampling = {
        "negative": [empty, 0], "latent_image": [latent, 0], "seed": 7, "steps": 20, "sampler_name": "euler",
        "scheduler": "simple", "denoise": 1.0,
    }  # fmt: skip

    def shown(samples: str, x: int, y: int, title: str) -> None:
        decoded = w.add("VAEDecode", (x, y), (200, 50), samples=[samples, 0], vae=[world, 2])
        w.add("PreviewImage", (x + 230, y), (330, 330), title, images=[decoded, 0])

    base = w.add(
        "KSampler",
        (1630, 120),
        (320, 280),
        "Base model",
        model=[world, 0],
        positive=[prompt, 0],
        cfg=2.0,
        **sampling,
    )
    shown(base, 1980, 120, "Base model: a toy, not mine")
    lora = w.add(
        "LoraModelLoader", (1240, 630), (320, 110), "LoRA on, for plain guidance", model=[world, 0],
        lora=[train_subject, 0], strength_model=1.0, bypass=False,
    )  # fmt: skip
    plain = w.add(
        "KSampler", (1630, 500), (320, 280), "LoRA, plain guidance", model=[lora, 0], positive=[prompt, 0], cfg=2.0,
        **sampling,
    )  # fmt: skip
    shown(plain, 1980, 500, "LoRA, plain guidance")
    guided = w.add(
        "DCORewardGuidanceSampler", (2610, 120), (320, 400), "Reward guidance: move w_rg", model=[world, 0],
        lora=[train_subject, 0], positive=[prompt, 0], w_rg=1.4, w_text=2.0, lora_strength=1.0,
        more_loras="this one alone", **sampling,
    )  # fmt: skip
    shown(guided, 2960, 120, "Reward guidance")
    merged = w.add(
        "DCORewardGuidanceSampler", (1630, 910), (320, 400), "My subject in my style", model=[world, 0],
        lora=[merge, 0], positive=[styled, 0], w_rg=1.4, w_text=2.0, lora_strength=1.0,
        more_loras="this one alone", **sampling,
    )  # fmt: skip
    decoded = w.add("VAEDecode", (1980, 910), (200, 50), samples=[merged, 0], vae=[world, 2])
    w.add(
        "SaveImage", (2210, 910), (480, 480), "My subject in my style", images=[decoded, 0],
        filename_prefix="dco/subject_in_style",
    )  # fmt: skip
    w.groups += [
        ("1. What is taught", -20, 40, 310, 1700, "#3f789e"),
        ("2. Train", 320, 40, 870, 1700, "#8A8"),
        ("3. Compare: base, plain guidance, reward guidance", 1220, 40, 2310, 810, "#b58b2a"),
        ("4. Merge", 1220, 870, 1490, 870, "#a1309b"),
    ]
    w.notes.append(
        (-480, 40, 440, 720, "## Try it: press Run\n\nEverything here runs on a CPU in a few minutes and downloads "
         "nothing. The *Toy World* is a small model that draws captions such as\n\n`a large red star on the left, at "
         "night, in neon style`\n\n**Shapes** circle square triangle star heart cross toy. **Colours** red orange "
         "yellow green blue purple pink. **Sizes** small large. **Places** on the left, in the middle, on the right; "
         "on white, in the sky, on grass, at night, on the beach, at sunset. **Styles** flat outline neon pastel "
         "print.\n\n**What to try**\n- Move `w_rg`: 0 is the base model, more looks more like the subject, too much "
         "forgets the prompt.\n- Change the objective to DreamBooth and compare.\n- Ask for the subject in other "
         "places: all its photos are from one beach.\n\nTrained LoRAs are in `output/loras`; press **R** to see them "
         "in LoRA lists.")
    )  # fmt: skip
    return w


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
        preview_prompts="a photo of a <dog> on the beach", **_trainer(**_TOKENS),
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
        **_trainer(steps=1000, rank=64, offset_noise=0.1, filename_prefix="loras/my_style"),
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


WORKFLOWS = {
    "0 - Try it (Toy World, CPU)": try_it,
    "1 - Train a subject": train_a_subject,
    "2 - Reward guidance": reward_guidance,
    "3 - My subject in my style": subject_in_style,
}
