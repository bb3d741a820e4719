"""The demo's prompts: workflow 0 as it is, with a style, a merge and the comparisons added to it. There are two, for
two hosts that work at the same time: one of DCO, the other of what it is compared with."""

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
    "a large toy on the left, in sketch style",
    "a large toy in the middle, in sketch style",
    "a large toy on the right, in sketch style",
    "a small toy on the left, in sketch style",
    "a small toy in the middle, in sketch style",
    "a small toy on the right, in sketch style",
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
COMPACT = "a <toy>"  # a caption as published: the marker alone
IMAGES_PER_PROMPT = 2
STEPS = 10
SEED = 100
STYLE = "sketch"  # a reference of the Toy World

BASE = "base model"
PUBLISHED, DREAMBOOTH = "DreamBooth as published", "DreamBooth, full captions"
DCO = "DCO, full captions"
STYLE_ALONE = "style LoRA alone"
MERGE, HALF_MERGE = "merge", "merge, weights 0.6"
MERGES = {MERGE: "1, 1", HALF_MERGE: "0.6, 0.6"}
_TEXTS = (*PLACES, *OTHERS, *STYLED)

# rows of the report, in this order
_ORDER = (
    BASE, PUBLISHED, DREAMBOOTH, DCO, *(f"{name}, w_rg {REPORTED_W_RG:g}" for name in (PUBLISHED, DREAMBOOTH)),
    *(f"{DCO}, w_rg {w:g}" for w in W_RG), STYLE_ALONE, *MERGES,
)  # fmt: skip

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


@dataclass
class Side:
    """What one host does. trainers: {what it teaches: the node}."""

    prompt: Prompt
    methods: list[Comparison]
    trainers: dict[str, str]
    merges: dict[str, str] = field(default_factory=dict)  # {name: the node}


def at(name: str, w_rg: float = REPORTED_W_RG) -> str:
    """The name of a method with reward guidance."""
    return f"{name}, w_rg {w_rg:g}"


def place_in_report(method: Comparison) -> tuple[int, int]:
    """Methods sorted by it are in the report's order."""
    return (PLACES, OTHERS, STYLED).index(method.prompts), _ORDER.index(method.name)


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


def dco_side(workflow_prompt: Prompt) -> Side:
    """Workflow 0, the style, both merged, and their pictures. What workflow 0 has run already comes from the host's
    cache."""
    prompt = copy.deepcopy(workflow_prompt)
    (subject,) = find(prompt, "DCOLoRATrainer")
    prompt["style references"] = _node("DCOToyWorldReferences", what=STYLE)
    taught = {"images": ["style references", 0], "captions": ["style references", 1]}
    prompt["style"] = _node("DCOLoRATrainer", **prompt[subject]["inputs"] | {"name": "toy_style"} | taught)
    for name, weights in MERGES.items():
        prompt[name] = _node(
            "DCOLoRAArithmeticMerge", weights=weights, name="toy_merge", method="exact sum", files="",
            **{"loras.lora_0": [subject, 0], "loras.lora_1": ["style", 0]},
        )  # fmt: skip
    dco = [subject, 0]
    methods = [
        Comparison(DCO, PLACES, dco),
        *(Comparison(at(DCO, w), PLACES, dco, w) for w in W_RG),
        Comparison(DCO, OTHERS, dco),
        Comparison(STYLE_ALONE, STYLED, ["style", 0]),
        *(Comparison(name, STYLED, [name, 0]) for name in MERGES),
    ]
    _add_all_samples(prompt, methods)
    return Side(prompt, methods, {"subject": subject, "style": "style"}, {name: name for name in MERGES})


def dreambooth_side(workflow_prompt: Prompt) -> Side:
    """DreamBooth twins of the subject, with its captions and with compact ones, and pictures of them and of the base
    model."""
    prompt = copy.deepcopy(workflow_prompt)
    (subject,) = find(prompt, "DCOLoRATrainer")
    inputs = {k: v for k, v in prompt[subject]["inputs"].items() if not k.startswith("objective.")}
    inputs["objective"] = "DreamBooth"  # which has no settings of its own
    compact = "\n".join([COMPACT] * len(toy_references("toy")[1]))
    prompt["dreambooth"] = _node("DCOLoRATrainer", **inputs | {"name": "toy_dreambooth"})
    changes = {"name": "toy_dreambooth_compact", "captions": compact}
    prompt["dreambooth_compact"] = _node("DCOLoRATrainer", **inputs | changes)
    for kind in ("SaveImage", "DCORewardGuidanceSweep"):  # of the workflow's own trainer, which is not needed here
        for node in find(prompt, kind):
            del prompt[node]
    del prompt[subject]
    published, dreambooth = ["dreambooth_compact", 0], ["dreambooth", 0]
    methods = [
        *(Comparison(BASE, prompts) for prompts in (PLACES, OTHERS, STYLED)),
        *(
            Comparison(at(name) if w_rg else name, prompts, lora, w_rg)
            for name, lora in ((PUBLISHED, published), (DREAMBOOTH, dreambooth))
            for prompts, w_rg in ((PLACES, None), (PLACES, REPORTED_W_RG), (OTHERS, None))
        ),
    ]
    _add_all_samples(prompt, methods)
    return Side(prompt, methods, {name: name for name in ("dreambooth", "dreambooth_compact")})


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def _add_all_samples(prompt: Prompt, methods: list[Comparison]) -> None:
    (loader,) = find(prompt, "DCOToyWorldLoader")
    prompt["latent"] = _node("EmptyLatentImage", width=256, height=256, batch_size=IMAGES_PER_PROMPT)
    prompt["negative"] = _node("CLIPTextEncode", clip=[loader, 1], text="")
    for text in dict.fromkeys(text for method in methods for text in method.prompts):
        prompt[f"text{_TEXTS.index(text)}"] = _node("CLIPTextEncode", clip=[loader, 1], text=text)
    for row, method in enumerate(methods):
        _add_samples(prompt, loader, row, method)


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
