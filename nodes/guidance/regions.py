"""LoRAs that each act in a part of the picture: a chain of them for the guidance nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..host.guidance.masks import checked_mask
from .inputs import REGIONS_TYPE


@dataclass(frozen=True)
class RegionalLoRA:
    """One link of the chain: a LORA_MODEL with its strength, its mask (checked; None: everywhere), the CONDITIONING
    that it reads (None: the positive prompt), and its w_rg as a share of the guidance node's."""

    lora: Any
    strength: float
    mask: Tensor | None
    personalized: list | None
    factor: float


class DCORegionalLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCORegionalLoRA", display_name="Regional LoRA (DCO)", category="advanced/guidance",
            description="One more LoRA for reward guidance, with a mask that says where it acts and a prompt of its "
            "own: two subjects side by side in one sampling. Chain as many as you need; the last one goes into regions "
            "of a guidance node.",
            search_aliases=[
                "regional lora", "lora mask", "masked lora", "two characters", "attention couple", "dco",
            ],
            inputs=[
                io.LoraModel.Input(
                    "lora",
                    tooltip="The LoRA, trained on the guidance node's model: from the trainer, a merge or a file.",
                ),
                io.Float.Input(
                    "w_rg_factor", default=1.0, min=0.0, max=20.0, step=0.05, round=0.01,
                    tooltip="Its w_rg, as a share of the guidance node's: 1 is the same, 0 none.",
                ),
                io.Float.Input(
                    "lora_strength", default=1.0, min=-20.0, max=20.0, step=0.05, advanced=True,
                    tooltip="Strength of the LoRA itself, as in LoRA loaders; best left at 1.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Where it acts: white where it does, black where not, soft edges in between. Not "
                    "connected: everywhere.",
                ),
                io.Conditioning.Input(
                    "personalized", optional=True,
                    tooltip="What it reads, where that is not the positive prompt: the personalized output of Encode "
                    "DCO Prompt with this LoRA, for learned tokens.",
                ),
                REGIONS_TYPE.Input("regions", optional=True, tooltip="The regions before this one."),
            ],
            outputs=[
                REGIONS_TYPE.Output(
                    display_name="regions",
                    tooltip="For regions of a guidance node, or of the next Regional LoRA.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, lora, w_rg_factor: float = 1.0, lora_strength: float = 1.0, mask=None, personalized=None,
        regions: Sequence[RegionalLoRA] = (),
    ) -> io.NodeOutput:  # fmt: skip
        mask = None if mask is None else checked_mask(mask)
        return io.NodeOutput(
            (*(regions or ()), RegionalLoRA(lora, lora_strength, mask, personalized, w_rg_factor))
        )


NODES = [DCORegionalLoRA]
