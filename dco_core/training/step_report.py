"""What training says about its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepReport:
    """What happened in one step. step counts from 1; loss is what was minimised; margin and gate are means over
    the batch (gate = 1 - sigmoid(margin): 1 learns at full rate, 0 is closed; where the objective has no margin
    they are 0 and 1, which no margin gives: has_margin); errors are mean squared errors in the native prediction
    space (error_phi NaN where phi was not asked); seconds is how long the step took; skipped: the loss or gradient
    was not finite and nothing was learned."""

    step: int
    steps: int
    loss: float
    margin: float
    gate: float
    learning_rate: float
    gradient_norm: float
    error_theta: float
    error_phi: float
    seconds: float = 0.0
    skipped: bool = False

    @property
    def has_margin(self) -> bool:
        """Whether the objective has a margin."""
        return not (self.margin == 0 and self.gate == 1)

    def line(self, seconds_left: float) -> str:
        """`step 12/300  loss 0.6912  margin 0.010  gate 0.50  2:31 left`; margin and gate where there are any."""
        left = f"{int(seconds_left) // 60}:{int(seconds_left) % 60:02d} left"
        if self.skipped:
            return f"step {self.step}/{self.steps}  skipped: not finite  {left}"
        gate = f"margin {self.margin:.3f}  gate {self.gate:.2f}  " if self.has_margin else ""
        return f"step {self.step}/{self.steps}  loss {self.loss:.4f}  {gate}{left}"


_FIELDS = [f.name for f in dataclasses.fields(StepReport)]


def to_tensors(history: Sequence[StepReport]) -> dict[str, Tensor]:
    """{field: float64 [steps]}."""
    return {
        name: torch.tensor([float(getattr(report, name)) for report in history], dtype=torch.float64)
        for name in _FIELDS
    }


def from_tensors(columns: Mapping[str, Tensor], steps: int) -> list[StepReport]:
    """The reports in to_tensors' columns, for a run of `steps` steps."""
    history = []
    for row in zip(*(columns[name].tolist() for name in _FIELDS), strict=True):
        values = dict(zip(_FIELDS, row, strict=True))
        values |= {"step": int(values["step"]), "steps": steps, "skipped": bool(values["skipped"])}
        history.append(StepReport(**values))
    return history
