"""The demo's prompt: workflow 0 as it is, with a style, a merge and the comparisons added to it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from dco_core.suggested_scales import TOY_WORLD
from dco_core.toy_world.references import toy_references

PLACES = (
    "a large toy on the left, at night, in flat style",
    "a large toy on the right, on grass, in flat style",
    "a large toy in the middle, at sunset, in outline style",
    "a large toy on the right, in the sky, in pastel style",
    "a small toy on the left, on white, in flat style",
    "a large toy in the middle, at night, in neon style",
)
STYLED = (
    "a large toy on the left, at night, in print style",
    "a large toy on the right, on grass, in print style",
    "a large toy in the middle, at sunset, in print style",
    "a large toy on the right, in the sky, in print style",
    "a small toy on the left, on white, in print style",
    "a large toy in the middle, on the beach, in print style",
)
OTHERS = (
    "a large red star on the left, at night, in flat style",
    "a small blue circle on the right, on grass, in flat style",
    "a large green heart in the middle, at sunset, in outline style",
    "a small yellow square on the left, in the sky, in pastel style",
    "a large purple cross on the right, on white, in flat style",
    "a small pink triangle in the middle, on the beach, in neon style",
)
W_TEXT = TOY_WORLD.w_text
W_RG = (0.6, 1.0, 1.4, 2.0, 3.0)  # w_rg / w_text of 0.3, 0.5 and 0.7, as in the paper, and above it
SWEPT = 0  # the place that the sheet shows over w_rg
REPORTED_W_RG = (
    TOY_WORLD.w_rg
)  # in the report; rows of the sheet have plain guidance, as the protocol measures
# Of the protocol (docs/evidence/protocol.md), at its main checkpoint.
TRAINING_STEPS, LEARNING_RATE, RANK, BATCH = 1000, 1e-3, 8, 2
STYLE_STEPS = 300  # one picture has not more to learn
COMPACT = "a <toy>"  # a caption as published: the marker alone
IMAGES_PER_PROMPT = 2
STEPS = 10
SEED = 100
MERGE = "merge"

BASE = "base model"
PUBLISHED, DREAMBOOTH = "DreamBooth as published", "DreamBooth, full captions"
DCO = "DCO, full captions"
_TEXTS = (*PLACES, *OTHERS, *STYLED)

Prompt = dict[str, Any]


@dataclass
class Comparison:
    """Pictures of one way: of a row of the sheet, or of the report alone. lora: a link, or None for the base. w_rg:
    None is plain guidance (of the LoRA-ed model, where there is a LoRA). outputs: the SaveImage node of each prompt."""

    name: str
    prompts: tuple[str, ...]
    lora: list | None = None
    w_rg: float | None = None
    outputs: list[str] = field(default_factory=list)


def at(name: str, w_rg: float = REPORTED_W_RG) -> str:
    """The name of a method with reward guidance."""
    return f"{name}, w_rg {w_rg:g}"


def trainers(prompt: Prompt) -> dict[str, str]:
    """The nodes that train, by what they teach."""
    (subject,) = find(prompt, "DCOLoRATrainer", name="toy_subject")
    return {"subject": subject} | {name: name for name in ("style", "dreambooth", "dreambooth_compact")}


def find(prompt: Prompt, class_type: str, **inputs: Any) -> list[str]:
    """Ids of the nodes of a type whose inputs have the given values."""
    return [
        node
        for node, content in prompt.items()
        if content["class_type"] == class_type
        and all(content["inputs"].get(name) == value for name, value in inputs.items())
    ]


def with_settings(workflow_prompt: Prompt) -> Prompt:
    """The prompt of workflow 0 with the demo's training."""
    prompt = copy.deepcopy(workflow_prompt)
    (subject,) = find(prompt, "DCOLoRATrainer")
    inputs = prompt[subject]["inputs"]
    prompt["options"] = _node("DCOTrainingOptions", batch_size=BATCH, options=inputs["options"])
    inputs |= {"steps": TRAINING_STEPS, "rank": RANK, "options": ["options", 0]}
    inputs |= {"recipe": "custom", "recipe.learning_rate": LEARNING_RATE}
    return prompt


def with_comparisons(workflow_prompt: Prompt) -> tuple[Prompt, list[Comparison]]:
    """The prompt of workflow 0 with all samples of the sheet, and what they need beside its trainer: the style,
    DreamBooth twins of the subject with its captions and with compact ones, the subject and the style merged.

    What workflow 0 has run already comes from the host's cache."""
    prompt = copy.deepcopy(workflow_prompt)
    (loader,) = find(prompt, "DCOToyWorldLoader")
    (subject,) = find(prompt, "DCOLoRATrainer")
    prompt["style references"] = _node("DCOToyWorldReferences", what="style")
    compact = "\n".join([COMPACT] * len(toy_references("toy")[1]))
    for name, changes in {
        "style": {
            "images": ["style references", 0],
            "captions": ["style references", 1],
            "steps": STYLE_STEPS,
        },
        "dreambooth": {"objective": "DreamBooth"},
        "dreambooth_compact": {"objective": "DreamBooth", "captions": compact},
    }.items():
        inputs = prompt[subject]["inputs"] | {"name": f"toy_{name}"} | changes
        if inputs["objective"] == "DreamBooth":  # has no settings of its own
            inputs = {k: v for k, v in inputs.items() if not k.startswith("objective.")}
        prompt[name] = _node("DCOLoRATrainer", **inputs)
    prompt[MERGE] = _node(
        "DCOLoRAArithmeticMerge", weights="1, 1", name="toy_merge", method="exact sum", files="",
        **{"loras.lora_0": [subject, 0], "loras.lora_1": ["style", 0]},
    )  # fmt: skip
    dco, dreambooth, published = [subject, 0], ["dreambooth", 0], ["dreambooth_compact", 0]
    merged = [MERGE, 0]
    methods = [
        Comparison(BASE, PLACES),
        Comparison(PUBLISHED, PLACES, published),
        Comparison(DREAMBOOTH, PLACES, dreambooth),
        Comparison(DCO, PLACES, dco),
        Comparison(at(PUBLISHED), PLACES, published, REPORTED_W_RG),
        Comparison(at(DREAMBOOTH), PLACES, dreambooth, REPORTED_W_RG),
        *(Comparison(at(DCO, w), PLACES, dco, w) for w in W_RG),
        Comparison(BASE, OTHERS),
        Comparison(PUBLISHED, OTHERS, published),
        Comparison(DREAMBOOTH, OTHERS, dreambooth),
        Comparison(DCO, OTHERS, dco),
        Comparison(BASE, STYLED),
        Comparison("merge", STYLED, merged),
        Comparison(at("merge"), STYLED, merged, REPORTED_W_RG),
    ]
    prompt["latent"] = _node("EmptyLatentImage", width=256, height=256, batch_size=IMAGES_PER_PROMPT)
    prompt["negative"] = _node("CLIPTextEncode", clip=[loader, 1], text="")
    for i, text in enumerate(_TEXTS):
        prompt[f"text{i}"] = _node("CLIPTextEncode", clip=[loader, 1], text=text)
    for row, method in enumerate(methods):
        _add_samples(prompt, loader, row, method)
    return prompt, methods


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def _add_samples(prompt: Prompt, loader: str, row: int, method: Comparison) -> None:
    model: list = [loader, 0]
    if method.lora and method.w_rg is None:
        prompt[f"model{row}"] = _node(
            "LoraModelLoader", model=model, lora=method.lora, strength_model=1.0, bypass=False
        )
        model = [f"model{row}", 0]
    for column, text in enumerate(method.prompts):
        name = f"{row}_{column}"
        common = {
            "model": model,
            "positive": [f"text{_TEXTS.index(text)}", 0],
            "negative": ["negative", 0],
            "latent_image": ["latent", 0],
            "seed": SEED + column,
            "steps": STEPS,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        }
        if method.w_rg is None:
            prompt[f"sample{name}"] = _node("KSampler", **common, cfg=W_TEXT)
        else:
            guidance = {"lora": method.lora, "w_rg": method.w_rg, "w_text": W_TEXT}
            prompt[f"sample{name}"] = _node("DCORewardGuidanceSampler", **common, **guidance)
        prompt[f"decode{name}"] = _node("VAEDecode", samples=[f"sample{name}", 0], vae=[loader, 2])
        prompt[f"save{name}"] = _node(
            "SaveImage", images=[f"decode{name}", 0], filename_prefix=f"demo/{row:02}_{column}"
        )
        method.outputs.append(f"save{name}")
