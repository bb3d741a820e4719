"""The reports of guidance nodes: the network rows that a step evaluates."""

from __future__ import annotations

from collections.abc import Sequence

from ...dco_core.guidance import rows_of
from ..host.guidance.engine import Region, acting

_ALL = ("LoRA on the prompt", "base on the prompt", "base on the negative")
_BASE = ("base on the prompt", "base on the negative")
_OTHER_METHODS = {
    "auto": _ALL,
    "personalization": ("LoRA on the prompt", "part of the LoRA on the negative"),
    "negative": ("base on the prompt", "LoRA on the negative"),
}


def reward_report(
    w_rg: float, w_text: float | None, regions: Sequence[Region] | None = None, **options
) -> str:
    """Reward guidance. w_text: None where the sampler decides (its cfg). regions: of the node, None: one LoRA that acts
    everywhere. options: those of inputs.guidance_options()."""
    act = None if regions is None else acting(regions)
    falls = options.get("w_rg_schedule", "constant") != "constant"
    if w_rg == 0 or act == []:
        return _base(w_text)
    if act is not None and (len(act) > 1 or act[0].mask is not None or act[0].factor != 1):
        text = _regional(len(act), w_text)
    elif w_text is None:
        if w_rg == 1 and not falls:
            text = f"{_rows(_ALL)}; 1 where cfg is 1"
        else:
            text = f"{_rows(_ALL)}; 2 where cfg is 1" + f" or w_rg ({w_rg:g})" * (not falls)
    elif falls:  # w_rg moves, so that it is w_text for a moment at most
        text = _rows(_ALL[:2] if w_text == 1 else _ALL)
    else:
        text = _rows(rows_of(w_rg, w_text))
    idle = 0 if regions is None or act is None else len(regions) - len(act)
    if idle:
        text += f". {idle} of {len(regions or ())} LoRAs {'takes' if idle == 1 else 'take'} no part"
    return text + _beside(w_text, **options)


def _regional(count: int, w_text: float | None) -> str:
    """The base model on the prompt is needed wherever a mask is not 1."""
    loras = [f"LoRA {n} on the prompt" for n in range(1, count + 1)] if count > 1 else [_ALL[0]]
    text = _rows([*loras, *(_BASE[:1] if w_text == 1 else _BASE)])
    return text if w_text is not None else f"{text}; {count + 1} where cfg is 1"


def method_report(kind: str, scale: float, adds: bool = True, **options) -> str:
    """The other guidance methods, at the sampler's cfg."""
    if not adds or (kind, scale) == ("auto", 1):
        return _base(None)
    names = _OTHER_METHODS[kind]
    text = f"{_rows(names)}; {len(names) - 1} where cfg is 1"  # the negative falls away
    return text + _beside(None, in_interval=kind == "auto", **options)


def _base(w_text: float | None) -> str:
    if w_text is None:
        return f"{_rows(_BASE)}; 1 where cfg is 1. The LoRA takes no part."
    return f"{_rows(_BASE[:1] if w_text == 1 else _BASE)}. The LoRA takes no part."


def _beside(
    w_text: float | None, in_interval: bool = True, start_percent: float = 0.0, end_percent: float = 1.0,
    low_memory: bool = False, self_check: bool = True, **_,
) -> str:  # fmt: skip
    text = ""
    if in_interval and (start_percent > 0 or end_percent < 1):
        outside = _BASE[:1] if w_text == 1 else _BASE
        text += (
            f". Outside of {start_percent:.0%} to {end_percent:.0%} of the noise schedule: {_rows(outside)}"
        )
    if low_memory:
        text += ". One row at a time"
    if self_check:
        text += ". The self-check runs the first step with the LoRA again"
    return text + "."


def _rows(names: Sequence[str]) -> str:
    return f"{len(names)} UNet row{'s' * (len(names) > 1)} a step: {', '.join(names)}"
