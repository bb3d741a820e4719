"""Inputs that the guidance nodes share."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...dco_core.guidance import W_RG_SCHEDULES
from ...dco_core.suggested_scales import PAPER
from ..host import sampling
from ..options import dynamic

W_RG = io.Float.Input(
    "w_rg", default=PAPER.w_rg, min=0.0, max=100.0, step=0.1, round=0.01,
    tooltip="Reward guidance scale: how much of what the LoRA learned to follow. The paper uses 2 to 5 at w_text 7.5 "
    "(a ratio of 0.3 to 0.7): higher gives more likeness, lower more of the prompt. 0 is the base model; the same as "
    "w_text is ordinary sampling of the LoRA against the base's negative prompt.",
)  # fmt: skip
W_TEXT = io.Float.Input(
    "w_text", default=PAPER.w_text, min=0.0, max=100.0, step=0.1, round=0.01,
    tooltip="Text guidance scale of the base model (cfg). The paper uses 7.5.",
)  # fmt: skip
MODEL = io.Model.Input("model", tooltip="The model that the LoRA was trained on, without that LoRA.")
LORA = io.LoraModel.Input(
    "lora", tooltip="The LoRA, trained on this model: from the trainer, a merge or a file."
)
POSITIVE = io.Conditioning.Input("positive", tooltip="The prompt, as the base model reads it.")
NEGATIVE = io.Conditioning.Input("negative", tooltip="The negative prompt; the paper uses an empty one.")
PERSONALIZED = io.Conditioning.Input(
    "personalized", optional=True,
    tooltip="What the LoRA reads, where it is not the positive prompt: the personalized output of Encode DCO Prompt, "
    "for LoRAs with learned tokens. Not connected: the positive prompt.",
)  # fmt: skip
LATENT = io.Latent.Input("latent_image", tooltip="The latent to start from.")
SEED = io.Int.Input(
    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
    tooltip="Seed of the noise.",
)  # fmt: skip
STEPS = io.Int.Input("steps", default=50, min=1, max=10000, tooltip="Sampling steps; the paper uses 50.")
SAMPLER = io.Combo.Input(
    "sampler_name", options=sampling.SAMPLERS, default="ddim", tooltip="The paper uses DDIM."
)
SCHEDULER = io.Combo.Input(
    "scheduler", options=sampling.SCHEDULERS, default="normal", tooltip="Spacing of the noise levels."
)
DENOISE = io.Float.Input(
    "denoise", default=1.0, min=0.0, max=1.0, step=0.01,
    tooltip="Less than 1 keeps part of the latent image (image to image).",
)  # fmt: skip
OPTIONS_TYPE = io.Custom("DCO_GUIDANCE_OPTIONS")
OPTIONS = OPTIONS_TYPE.Input(
    "options", optional=True, tooltip="Everything else, from Reward Guidance Options (DCO)."
)
MASK = io.Mask.Input(
    "mask", optional=True,
    tooltip="Where the LoRA acts: white where it does, black where the picture is the base model's, soft edges in "
    "between. Not connected: everywhere.",
)  # fmt: skip
REGIONS_TYPE = io.Custom("DCO_REGIONS")  # a tuple of RegionalLoRA
REGIONS = REGIONS_TYPE.Input(
    "regions",
    optional=True,
    tooltip="More LoRAs, each with a mask and a prompt of its own, from Regional LoRA (DCO): two subjects side by "
    "side.",
)
_MORE = ("this one alone", "1 more", "2 more", "3 more")
MOST_LORAS = len(_MORE)


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

    return dynamic(
        "more_loras", {name: inputs(n) for n, name in enumerate(_MORE)}, optional=True,
        tooltip="LoRAs to stack on the first, each with a strength: together they are what the guidance follows.",
    )  # fmt: skip


def guidance_options() -> list[Any]:
    """Those of the options node, all optional."""
    return [
        io.Float.Input(
            "lora_strength", default=1.0, min=-20.0, max=20.0, step=0.05, optional=True,
            tooltip="Strength of the LoRA itself, as in LoRA loaders. Best left at 1: steer with w_rg.",
        ),
        _stack(),
        io.Float.Input(
            "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
            tooltip="Where in the noise schedule w_rg sets in. Steps outside of the interval cost two rows, not three.",
        ),
        io.Float.Input(
            "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True,
            tooltip="Where in the noise schedule w_rg ends.",
        ),
        io.Combo.Input(
            "w_rg_schedule", options=list(W_RG_SCHEDULES), default="constant", optional=True,
            tooltip="w_rg over the interval: constant (the paper), or falling to 0.",
        ),
        io.Boolean.Input(
            "low_memory", default=False, optional=True,
            tooltip="Evaluate one row after the other. The host splits batches on its own where memory is short.",
        ),
        io.Boolean.Input(
            "self_check", default=True, optional=True,
            tooltip="In the first step, prove that the base model's rows do not see the LoRA (one more evaluation).",
        ),
    ]  # fmt: skip


HIDDEN = [io.Hidden.unique_id, io.Hidden.dynprompt]  # for check_choices
REPORT = io.String.Output(display_name="report", tooltip="The network rows that a step evaluates.")
