"""The templates for two subjects in one picture: a LoRA, a learned token, a prompt and a mask for each side."""

from __future__ import annotations

from typing import Any, NamedTuple

from .layout import Layout, trainer_settings
from .sdxl import SDXL
from .toy_world import TOY_LORA, TOY_TRAINING

_BLUE, _GREEN, _YELLOW, _PURPLE = "#3f789e", "#8A8", "#b58b2a", "#a1309b"
_ROW = 40  # of a collapsed node
_TOKENS: dict[str, Any] = {
    "learned_tokens": "with the LoRA", "learned_tokens__token_learning_rate": 5e-3, "learned_tokens__initializers": "",
    "learned_tokens__vectors": 0,
}  # fmt: skip


class _Sides(NamedTuple):
    """What guidance reads: the base model's prompt of both sides, what each LoRA reads, and where it acts."""

    positive: list
    personalized: tuple[list, list]
    masks: tuple[list, list]


def _sides(w: Layout, x: int, y: int, width: int, size: int, prompts: tuple[str, str]) -> _Sides:
    """Collapsed nodes from y on. size: of the picture; prompts: Encode DCO Prompt nodes of the left and the right."""

    def row(kind: str, title: str, **inputs: Any) -> list:
        nonlocal y
        node = w.add(kind, (x, y), (width, 80), title, **inputs)
        w.collapsed.add(node)
        y += _ROW
        return [node, 0]

    edge = size // 8  # the soft edge, with the middle of the picture in its middle
    white = row("SolidMask", "White: the left half", value=1.0, width=(size + edge) // 2, height=size)
    soft = row("FeatherMask", "... with a soft edge", mask=white, left=0, top=0, right=edge, bottom=0)
    black = row("SolidMask", "Black: the picture", value=0.0, width=size, height=size)
    left = row("MaskComposite", "Mask of the left", destination=black, source=soft, x=0, y=0, operation="add")
    right = row("InvertMask", "Mask of the right", mask=left)
    parts = [
        row(
            "ConditioningSetMask", f"{side} prompt", conditioning=[prompt, 1], mask=mask, strength=1.0,
            set_cond_area="default",
        )
        for side, prompt, mask in zip(("Left", "Right"), prompts, (left, right), strict=True)
    ]  # fmt: skip
    both = row("ConditioningCombine", "Both prompts", conditioning_1=parts[0], conditioning_2=parts[1])
    return _Sides(both, ([prompts[0], 0], [prompts[1], 0]), (left, right))


_TOYS = """\
## Two subjects, one picture: press Run

Each toy has **its own LoRA**, **its own token** `<toy>`, **its own prompt** and **its own mask**. No download; some \
minutes on a CPU.

- **The base model** reads both prompts, each in its mask, and draws *a* toy on each side: **w_rg** 0.
- **The left LoRA** acts where **mask** is white, the right one, from *Regional LoRA*, where its own mask is. One \
sampling does both. Where the soft edges of the masks meet, both act a little.

**Try** other places in both prompts: **in the sky**, **at night**, **at sunset**. **Your own**: template 7.
"""


def two_toys() -> Layout:
    """Workflow 6: two subjects of the Toy World side by side."""
    w = Layout()
    world = w.add("DCOToyWorldLoader", (0, 40), (310, 100))
    subjects = [
        w.add(
            "DCOToyWorldReferences", (0, 220 + 180 * i), (310, 110), f"The {side} toy: 4 pictures", what=what
        )
        for i, (side, what) in enumerate((("left", "subject"), ("right", "another subject")))
    ]
    options = w.add("DCOLoRAOptions", (0, 580), (310, 330), "Of both: a token each", **TOY_LORA, **_TOKENS)
    trainers = [
        w.add(
            "DCOLoRATrainer", (345 + 305 * i, 40), (290, 900), f"Train the {side} toy", model=[world, 0],
            clip=[world, 1], vae=[world, 2], images=[subject, 0], captions=[subject, 1], options=[options, 0],
            **trainer_settings("custom", f"toy_{side}", **TOY_TRAINING),
        )
        for i, (side, subject) in enumerate(zip(("left", "right"), subjects, strict=True))
    ]  # fmt: skip
    left, right = (
        w.add(
            "DCOEncodePrompt", (975, 40 + 220 * i), (240, 170), f"The {side} toy's prompt", clip=[world, 1],
            lora=[trainer, 0], text=f"a large <toy> on the {side}, on grass, in flat style",
        )
        for i, (side, trainer) in enumerate(zip(("left", "right"), trainers, strict=True))
    )  # fmt: skip
    sides = _sides(w, 975, 500, 240, 256, (left, right))
    empty = w.add("CLIPTextEncode", (975, 850), (240, 80), "Empty prompt", clip=[world, 1], text="")
    latent = w.add("EmptyLatentImage", (975, 890), (240, 110), width=256, height=256, batch_size=1)
    w.collapsed |= {empty, latent}
    region = w.add(
        "DCORegionalLoRA", (1250, 40), (280, 190), "The right toy, on the right", lora=[trainers[1], 0],
        mask=sides.masks[1], personalized=sides.personalized[1], w_rg_factor=1.0, lora_strength=1.0,
    )  # fmt: skip
    sweep = w.add(
        "DCORewardGuidanceSweep", (1250, 290), (280, 480), "The left toy, on the left, and both",
        model=[world, 0], lora=[trainers[0], 0], positive=sides.positive, negative=[empty, 0],
        latent_image=[latent, 0], vae=[world, 2], w_rg_values="0, 1.6, 3", across="w_rg alone", seed=7, steps=20,
        w_text=2.0, sampler_name="euler", scheduler="simple", denoise=1.0, personalized=sides.personalized[0],
        mask=sides.masks[0], regions=[region, 0],
    )  # fmt: skip
    picture = w.add(
        "SaveImage", (1560, 40), (390, 340), "Base model, my two toys, too much", images=[sweep, 1],
        filename_prefix="dco/two_toys",
    )  # fmt: skip
    w.notes += [(1560, 430, 390, 510, _TOYS)]
    w.groups += [
        ("1. Model and pictures", -20, -40, 345, 1060, _BLUE),
        ("2. Train: a LoRA each", 335, -40, 615, 1060, _GREEN),
        ("3. What, where", 960, -40, 270, 1060, _PURPLE),
        ("4. Look", 1240, -40, 720, 1060, _YELLOW),
    ]
    w.app_inputs += [(left, "text"), (right, "text"), (sweep, "w_rg_values"), (sweep, "seed")]
    w.app_outputs += [picture]
    return w


_PHOTOS = """\
## Two subjects, one picture

1. Train both subjects with template 1, one after the other, with markers of their own: **&lt;dog&gt;**, \
**&lt;cat&gt;**. Choose their LoRAs at the left (press **R**).
2. Write a prompt for each side, and in both what the *whole* picture is. The base model and the side's LoRA read it.
3. Press Run. One subject too weak or too strong: **w_rg_factor** of its *Regional LoRA*.

**Masks of your own:** *Load Image* and its mask editor, or a segmentation node on a first picture, instead of the \
half masks; *Feather Mask* makes soft edges. A third subject: one more *Regional LoRA* in **regions** of this one.
"""


def two_subjects() -> Layout:
    """Workflow 7: SDXL, two subjects side by side."""
    w = Layout()
    sdxl = w.add("CheckpointLoaderSimple", (0, 40), (320, 110), ckpt_name=SDXL["name"])
    w.models[sdxl] = [SDXL]
    loras = [
        w.add(
            "DCOLoadLoRA", (0, 200 + 240 * i), (320, 190), f"The LoRA of the {side}",
            lora_name="my_subject_00001_.safetensors",
        )
        for i, side in enumerate(("left", "right"))
    ]  # fmt: skip
    left, right = (
        w.add(
            "DCOEncodePrompt", (370, 40 + 220 * i), (320, 170), f"Prompt of the {side}", clip=[sdxl, 1],
            lora=[lora, 0], text=f"a photo of a <{name}> on the {side}, sitting on the beach at sunset",
        )
        for i, (side, name, lora) in enumerate(zip(("left", "right"), ("dog", "cat"), loras, strict=True))
    )  # fmt: skip
    sides = _sides(w, 370, 500, 320, 1024, (left, right))
    empty = w.add("CLIPTextEncode", (370, 850), (320, 80), "Empty prompt", clip=[sdxl, 1], text="")
    latent = w.add("EmptyLatentImage", (0, 680), (320, 110), width=1024, height=1024, batch_size=1)
    w.collapsed |= {empty}
    region = w.add(
        "DCORegionalLoRA", (740, 40), (330, 190), "The LoRA of the right, on the right", lora=[loras[1], 0],
        mask=sides.masks[1], personalized=sides.personalized[1], w_rg_factor=1.0, lora_strength=1.0,
    )  # fmt: skip
    sampler = w.add(
        "DCORewardGuidanceSampler", (740, 290), (330, 480), "The left on the left, and both: move w_rg",
        model=[sdxl, 0], lora=[loras[0], 0], positive=sides.positive, negative=[empty, 0], latent_image=[latent, 0],
        seed=1, steps=50, w_rg=3.0, w_text=7.5, sampler_name="ddim", scheduler="normal", denoise=1.0,
        personalized=sides.personalized[0], mask=sides.masks[0], regions=[region, 0],
    )  # fmt: skip
    decoded = w.add("VAEDecode", (740, 840), (330, 50), samples=[sampler, 0], vae=[sdxl, 2])
    picture = w.add(
        "SaveImage", (1120, 40), (560, 480), "My two subjects", images=[decoded, 0],
        filename_prefix="dco/two_subjects",
    )  # fmt: skip
    w.notes += [(1120, 570, 560, 350, _PHOTOS)]
    w.groups += [
        ("1. Model and LoRAs", -20, -40, 360, 980, _BLUE),
        ("2. What, where", 350, -40, 360, 980, _PURPLE),
        ("3. Look", 720, -40, 980, 980, _YELLOW),
    ]
    w.app_inputs += [
        (loras[0], "lora_name"), (loras[1], "lora_name"), (left, "text"), (right, "text"), (sampler, "w_rg"),
        (sampler, "seed"),
    ]  # fmt: skip
    w.app_outputs += [picture]
    return w
