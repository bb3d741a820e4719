"""The state of a run as the tensors and values of a checkpoint, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import step_report
from .checkpoints import Saved
from .config import TrainingConfig
from .optimizers import packed, unpack
from .step_report import StepReport
from .validation import Score


class RunState(NamedTuple):
    """Beside the trained values and the optimizer's. ema: their moving average; best: those of the best score; both
    empty where there are none."""

    ema: dict[str, Tensor]
    best: dict[str, Tensor]
    history: list[StepReport]
    scores: list[Score]


def to_checkpoint(
    state: RunState, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint, and what it says about itself."""
    packed_tensors, rest = packed(optimizer, parameters)
    tensors = {f"value.{name}": p.detach() for name, p in parameters.items()}
    tensors |= {f"optimizer.{name}": t for name, t in packed_tensors.items()}
    tensors |= {f"ema.{name}": t for name, t in state.ema.items()}
    tensors |= {f"best.{name}": t for name, t in state.best.items()}
    tensors |= {f"history.{name}": t for name, t in step_report.to_tensors(state.history).items()}
    return tensors, {"optimizer": rest, "scores": [dataclasses.asdict(score) for score in state.scores]}


def from_checkpoint(
    saved: Saved, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: int
) -> RunState:
    """Write a checkpoint's values into the parameters and the optimizer; the rest. steps: that are asked for now."""

    def part(prefix: str) -> dict[str, Tensor]:
        found = {k: t for k, t in saved.tensors.items() if k.startswith(prefix)}
        return {k[len(prefix) :]: t for k, t in found.items()}

    with torch.no_grad():
        for name, value in part("value.").items():
            parameters[name].copy_(value)
    ema, best = (
        {name: found[name].to(p.device) for name, p in parameters.items()} if found else {}
        for found in (part("ema."), part("best."))
    )
    unpack(optimizer, parameters, part("optimizer."), saved.about["optimizer"])
    history = step_report.from_tensors(part("history."), steps)
    return RunState(ema, best, history, [Score(**score) for score in saved.about["scores"]])


def differences(asked: TrainingConfig, content: str, other: Mapping[str, Any]) -> Sequence[str]:
    """What tells a run from another, whose checkpoint says `other` about itself."""
    now, then = dataclasses.asdict(asked), other.get("asked", {})
    changed = [f"{k} {then[k]} (now {now[k]})" for k in now if k in then and then[k] != now[k]]
    if other.get("content") != content:
        changed.append("another model or other patches on it, other pictures, captions or settings of the LoRA")
    return changed or ["another start or another noise schedule"]
