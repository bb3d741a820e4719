"""The template to begin with: a subject of the Toy World, before and after."""

from __future__ import annotations

from typing import Any

from dco_core.suggested_scales import TOY_WORLD

from .layout import Layout, trainer_settings

TOY_TRAINING: dict[str, Any] = {"steps": 600, "learning_rate": 1e-3, "rank": 8}
TOY_LORA: dict[str, Any] = {"layers": "all linear"}

_READ_ME = f"""\
## Press Run

No download, about two minutes on a CPU. The *Toy World* is a small model; *My subject* is a toy it has never \
seen, in four pictures from one beach.

1. **The trainer** learns it. Its box shows the step, then pictures made by the base model, by the LoRA, and with \
reward guidance, then what was saved.
2. **Before and after**: the same noise at three **w_rg**. 0 is the base model: *a* toy. {TOY_WORLD.w_rg:g} is \
*my* toy, where the prompt wants it. Too much forgets the prompt.

**Try** another prompt: **a small toy on the left, on grass, in outline style**. Places: in the middle, on the \
right, at night, in the sky, at sunset, on white. Styles: flat, outline, neon, pastel.

**Then** your own photos: template 1 (SDXL) or 5 (Z-Image). The LoRA is in **output/loras**; press **R** to see it \
in lists.
"""


def try_it() -> Layout:
    """Workflow 0: a subject of the Toy World."""
    w = Layout()
    world = w.add("DCOToyWorldLoader", (0, 40), (300, 100))
    subject = w.add("DCOToyWorldReferences", (0, 230), (300, 110), "My subject: 4 pictures", what="subject")
    options = w.add("DCOLoRAOptions", (0, 430), (300, 230), **TOY_LORA)
    trainer = w.add(
        "DCOLoRATrainer", (350, 40), (400, 900), "Train my subject", model=[world, 0], clip=[world, 1],
        vae=[world, 2], images=[subject, 0], captions=[subject, 1], options=[options, 0],
        **trainer_settings("custom", "toy_subject", **TOY_TRAINING),
    )  # fmt: skip
    prompt = w.add(
        "CLIPTextEncode", (800, 40), (330, 110), "Prompt", clip=[world, 1],
        text="a large toy on the left, at night, in flat style",
    )  # fmt: skip
    empty = w.add("CLIPTextEncode", (800, 190), (330, 90), "Empty prompt", clip=[world, 1], text="")
    latent = w.add("EmptyLatentImage", (800, 350), (330, 110), width=256, height=256, batch_size=1)
    sweep = w.add(
        "DCORewardGuidanceSweep", (800, 510), (330, 430), "Before and after", model=[world, 0], lora=[trainer, 0],
        positive=[prompt, 0], negative=[empty, 0], latent_image=[latent, 0], vae=[world, 2],
        w_rg_values=f"0, {TOY_WORLD.w_rg:g}, 3", across="w_rg alone", seed=7, steps=20, w_text=TOY_WORLD.w_text,
        sampler_name="euler", scheduler="simple", denoise=1.0,
    )  # fmt: skip
    picture = w.add(
        "SaveImage", (1180, 40), (700, 420), "Base model, my subject, too much", images=[sweep, 1],
        filename_prefix="dco/toy",
    )  # fmt: skip
    w.notes.append((1180, 510, 700, 430, _READ_ME))
    w.groups += [
        ("1. Model and pictures", -20, -40, 340, 1000, "#3f789e"),
        ("2. Train", 330, -40, 440, 1000, "#8A8"),
        ("3. Look", 780, -40, 1120, 1000, "#b58b2a"),
    ]
    w.app_inputs += [(prompt, "text"), (trainer, "steps"), (sweep, "w_rg_values"), (sweep, "seed")]
    w.app_outputs += [picture]
    return w
