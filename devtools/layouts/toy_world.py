"""The template that tries everything on the Toy World."""

from __future__ import annotations

from .layout import Layout, trainer_settings

TOY_TRAINING = {
    "steps": 300, "learning_rate": 1e-3, "rank": 8, "resolution": 512,
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
        captions=[subject, 1], **trainer_settings(**TOY_TRAINING, filename_prefix="loras/toy_subject"),
    )  # fmt: skip
    train_style = w.add(
        "DCOLoRATrainer", (340, 910), (340, 560), "Train my style (DCO)", **common, images=[style, 0],
        captions=[style, 1],
        **trainer_settings(**TOY_TRAINING | {"batch_size": 2}, filename_prefix="loras/toy_style"),
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
    latent = w.add("EmptyLatentImage", (1240, 460), (320, 110), width=512, height=512, batch_size=4)
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
