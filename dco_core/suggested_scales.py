"""Guidance scales to begin with, for each family of base models: one table for LoRA headers, previews, the Toy World
and the command line.

Direct Consistency Optimization uses w_text = 7.5 and w_rg = 2 to 5 (Sec. 5): a ratio of 0.27 to 0.67. What carries over
to other families is the ratio, at the text guidance which a family is made for: its developers' default.
"""

from __future__ import annotations

from typing import NamedTuple


class Scales(NamedTuple):
    w_text: float
    w_rg: float


PAPER = Scales(7.5, 3.0)  # of Stable Diffusion; where nothing is known of a LoRA, too
TOY_WORLD = Scales(2.0, 1.4)  # the highest of the paper's ratios, which the demo compares
_RATIO = 0.4  # 3 of 7.5, in the middle of the paper's 2 to 5

# By how the family's name in a LoRA's header begins (kohya's name, or the host's class).
_W_TEXT = {
    "sd3": 4.5,  # stabilityai/stable-diffusion-3.5-medium
    "Lumina2": 4.0,  # Alpha-VLLM/Lumina-Image-2.0
    "QwenImage": 4.0,  # Qwen/Qwen-Image
    "WAN2": 5.0,  # Wan-AI/Wan2.1
    "LTX": 3.0,  # Lightricks/LTX-Video
    "AuraFlow": 3.5,  # fal/AuraFlow
}
# Guidance is distilled into these: they run at cfg 1, where w_rg 0 is the base and 1 the plain LoRA. It makes the
# prompt stronger already, so w_rg is from the upper part of the paper's range.
_DISTILLED = ("flux1", "HunyuanVideo", "HunyuanVideoI2V")
_DISTILLED_RATIO = 0.6
_BY_PREDICTION = {"epsilon": 7.5, "v": 7.5, "flow": 4.0}  # the paper's; flow models have 3 to 5


def suggested_scales(family: str, prediction: str | None) -> Scales | None:
    """(w_text, w_rg) to begin with; None for a kind of prediction that is not known.

    family: the base's name in a LoRA's header. prediction: epsilon, v or flow.
    """
    if family == "ToyWorld":
        return TOY_WORLD
    if family in _DISTILLED:
        return Scales(1.0, _DISTILLED_RATIO)
    named = next((w for start, w in _W_TEXT.items() if family.startswith(start)), None)
    w_text = named or _BY_PREDICTION.get(prediction or "")
    return None if w_text is None else Scales(w_text, round(_RATIO * w_text, 2))
