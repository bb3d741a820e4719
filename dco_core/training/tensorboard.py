"""The run as a TensorBoard log, by the package `tensorboard`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from ..errors import DCOError
from .step_report import StepReport
from .trainer import Training

_NOT_CURVES = ("step", "steps", "skipped")
_OF_MARGIN = ("margin", "gate")


def summary_writer() -> Any:
    """The class that writes logs. Raises DCOError without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise DCOError(
            "A TensorBoard log needs the package tensorboard, which is not installed: run `pip install "
            "tensorboard` with the same Python, or leave the log away."
        ) from error
    return SummaryWriter


class EventLog:
    """Call it after every step of `run`: its report goes to a log in `folder` as train/loss, train/margin and so on,
    validation scores as validation/margin and validation/distance. Of a run that goes on from a checkpoint the
    steps before are written too, in place of what the folder has.

    Raises DCOError without the package, and for a folder that cannot be written."""

    def __init__(self, folder: Path, run: Training):
        try:
            self._writer = summary_writer()(str(folder), purge_step=0)
        except OSError as error:
            raise DCOError(
                f"The log cannot be written to {folder} ({error}): choose another folder."
            ) from None
        self._run, self._scores = run, 0
        for report in run.history:
            self(report)

    def __call__(self, report: StepReport) -> None:
        curves = dataclasses.asdict(report)
        left_out = _NOT_CURVES if report.has_margin else (*_NOT_CURVES, *_OF_MARGIN)
        for name, value in curves.items():
            if name not in left_out and not math.isnan(value):
                self._writer.add_scalar(f"train/{name}", value, report.step)
        for score in self._run.scores[self._scores :]:
            self._writer.add_scalar("validation/margin", score.margin, score.step)
            self._writer.add_scalar("validation/distance", score.distance, score.step)
        self._scores = len(self._run.scores)

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()
