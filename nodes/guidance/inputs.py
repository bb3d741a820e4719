"""Inputs that the guidance nodes share, and what they make of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from ...dco_core.errors import DCOError, printable
from ...dco_core.guidance import W_RG_SCHEDULES
from ...dco_core.lora import from_bundle
from ...dco_core.suggested_scales import PAPER
from ..host import sampling
from ..host.guidance import engine
from ..host.guidance.adapter_parts import Patch
from ..host.guidance.masks import checked_mask
from ..host.guidance.resolve import resolve
from .regions import REGIONS, RegionalLoRA

W_RG = io.Float.Input(
    "w_rg",
    default=PAPER.w_rg,
    min=0.0,
    max=100.0,
    step=0.1,
    round=0.01,
    tooltip="Reward guidance scale: how much of what the LoRA learned to follow. The paper uses 2 to 5 at w_text 7.5 "
    "(a ratio of 0.3 to 0.7): higher gives more likeness, lower more of the prompt. 0 is the base model; the same as "
    "w_text is ordinary sampling of the LoRA against the base's negative prompt.",
)
W_TEXT = io.Float.Input(
    "w_text",
    default=PAPER.w_text,
    min=0.0,
    max=100.0,
    step=0.1,
    round=0.01,
    tooltip="Text guidance scale of the base model (cfg). The paper uses 7.5.",
)
STRENGTH = io.Float.Input(
    "lora_strength",
    default=1.0,
    min=-20.0,
    max=20.0,
    step=0.05,
    advanced=True,
    tooltip="Strength of the LoRA itself, as in LoRA loaders. Reward guidance works best at 1: steer with w_rg.",
)
MODEL = io.Model.Input("model", tooltip="The model that the LoRA was trained on, without that LoRA.")
LORA = io.LoraModel.Input(
    "lora", tooltip="The LoRA, trained on this model: from the trainer, a merge or a file."
)
POSITIVE = io.Conditioning.Input("positive", tooltip="The prompt, as the base model reads it.")
NEGATIVE = io.Conditioning.Input("negative", tooltip="The negative prompt; the paper uses an empty one.")
PERSONALIZED = io.Conditioning.Input(
    "personalized",
    optional=True,
    tooltip="What the LoRA reads, where it is not the positive prompt: the personalized output of Encode DCO Prompt, "
    "for LoRAs with learned tokens. Not connected: the positive prompt.",
)
LATENT = io.Latent.Input("latent_image", tooltip="The latent to start from.")
SEED = io.Int.Input(
    "seed",
    default=0,
    min=0,
    max=0xFFFFFFFFFFFFFFFF,
    control_after_generate=True,
    tooltip="Seed of the noise.",
)
STEPS = io.Int.Input("steps", default=50, min=1, max=10000, tooltip="Sampling steps; the paper uses 50.")
SAMPLER = io.Combo.Input(
    "sampler_name", options=sampling.SAMPLERS, default="ddim", tooltip="The paper uses DDIM."
)
SCHEDULER = io.Combo.Input(
    "scheduler", options=sampling.SCHEDULERS, default="normal", tooltip="Spacing of the noise levels."
)
DENOISE = io.Float.Input(
    "denoise",
    default=1.0,
    min=0.0,
    max=1.0,
    step=0.01,
    advanced=True,
    tooltip="Less than 1 keeps part of the latent image (image to image).",
)
ONE = "this one alone"
_MORE = (ONE, "1 more", "2 more", "3 more")


def _stack() -> io.DynamicCombo.Input:
    def inputs(count: int) -> list[Any]:
        return [
            item
            for n in range(2, count + 2)
            for item in (
                io.LoraModel.Input(f"lora_{n}", tooltip="Another LoRA, applied after the ones before it."),
                io.Float.Input(
                    f"strength_{n}", default=1.0, min=-20.0, max=20.0, step=0.05, tooltip="Its strength."
                ),
            )
        ]

    return io.DynamicCombo.Input(
        "more_loras",
        options=[io.DynamicCombo.Option(name, inputs(n)) for n, name in enumerate(_MORE)],
        optional=True,
        tooltip="LoRAs to stack on the first, each with a strength: together they are what the guidance follows.",
    )


def options() -> list[Any]:
    """Optional, and last in every node."""
    return [
        _stack(),
        io.Float.Input(
            "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
            tooltip="Where in the noise schedule w_rg sets in. Steps outside of the interval cost two rows, not three.",
        ),
        io.Float.Input(
            "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
            tooltip="Where in the noise schedule w_rg ends.",
        ),
        io.Combo.Input(
            "w_rg_schedule", options=list(W_RG_SCHEDULES), default="constant", optional=True, advanced=True,
            tooltip="w_rg over the interval: constant (the paper), or falling to 0.",
        ),
        io.Boolean.Input(
            "low_memory", default=False, optional=True, advanced=True,
            tooltip="Evaluate one row after the other. The host splits batches on its own where memory is short.",
        ),
        io.Boolean.Input(
            "self_check", default=True, optional=True, advanced=True,
            tooltip="In the first step, prove that the base model's rows do not see the LoRA (one more evaluation).",
        ),
    ]  # fmt: skip


def regional() -> list[Any]:
    """Optional, behind options()."""
    return [
        io.Mask.Input(
            "mask", optional=True,
            tooltip="Where the LoRA acts: white where it does, black where the picture is the base model's, soft edges "
            "in between. Not connected: everywhere.",
        ),
        REGIONS.Input(
            "regions", optional=True,
            tooltip="More LoRAs, each with a mask and a prompt of its own, from Regional LoRA (DCO): two subjects side "
            "by side. more_loras, in contrast, all act together in the same place.",
        ),
    ]  # fmt: skip


HIDDEN = [io.Hidden.unique_id, io.Hidden.dynprompt]  # for check_choices
REPORT = io.String.Output(display_name="report", tooltip="The network rows that a step evaluates.")


def patches_of(
    model, lora: Any, strength: float, more: Mapping[str, Any] | None = None, personalized=None
) -> list[Patch]:
    """What the stack of LoRAs changes in MODEL, in its order. DCOError for a LoRA of another model."""
    stack, more = [(lora, strength)], more or {}
    for n in range(2, len(_MORE) + 1):
        if more.get(f"lora_{n}") is not None:
            stack.append((more[f"lora_{n}"], more.get(f"strength_{n}", 1.0)))
    tokens = sorted({name for one, _ in stack for name in from_bundle(one)})
    if tokens and personalized is None:
        logging.warning(
            "DCO: this LoRA has learned tokens (%s), but reward guidance got no personalized prompt: make it with "
            "Encode DCO Prompt.",
            printable(", ".join(f"<{name}>" for name in tokens)),
        )
    return [p for one, s in stack for p in resolve(model, one, s)]


def regions_of(
    model, lora: Any, strength: float, more: Mapping[str, Any] | None = None, personalized=None, mask=None,
    regions: Sequence[RegionalLoRA] | None = None,
) -> list[engine.Region]:  # fmt: skip
    """What a node's own LoRAs and its regions change in MODEL, and where. DCOError for a LoRA of another model and for
    what is no mask."""
    patches = patches_of(model, lora, strength, more, personalized)
    found = [engine.Region(patches, personalized, None if mask is None else checked_mask(mask))]
    for r in regions or ():
        patches = patches_of(model, r.lora, r.strength, personalized=r.personalized)
        found.append(engine.Region(patches, r.personalized, r.mask, r.factor))
    return found


def replaced(model) -> str:
    """What the report says of guidance that MODEL has already, which the node at hand takes the place of; the log is
    told as well. "" for a model without."""
    if not engine.is_guided(model):
        return ""
    text = (
        "This model already had guidance from another DCO node; this node takes its place, and the other one has no "
        "effect. To follow several LoRAs, connect them to more_loras of one node, or to regions, each with a mask."
    )
    logging.warning("DCO: %s", text)
    return f"\n{text}"


def reported(result: Any, report: str, model) -> io.NodeOutput:
    """A guidance node's outputs; the report stands on the node as well."""
    text = report + replaced(model)
    return io.NodeOutput(result, text, ui={"text": [text]})


def patched(
    model, regions: Sequence[engine.Region], kind: str, scale: float, start_percent=0.0, end_percent=1.0,
    w_rg_schedule="constant", low_memory=False, self_check=True,
):  # fmt: skip
    """A clone of MODEL with guidance. DCOError for an interval without length."""
    if not start_percent < end_percent:
        raise DCOError(
            f"The interval of w_rg is empty: start_percent {start_percent:g} is not below end_percent {end_percent:g}."
        )
    method = engine.GuidanceMethod(
        kind, scale, start_percent, end_percent, w_rg_schedule, low_memory, self_check
    )
    return engine.patch(model, regions, method)
