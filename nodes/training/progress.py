"""What the trainer shows while it works: progress bar, a line of text, and the user's way to stop it."""

from __future__ import annotations

import time

import numpy as np

from ...dco_core.training.step_report import StepReport
from ...dco_core.training.trainer import Training
from ..host.progress import NodeText, progress_bar, raise_if_interrupted
from ..host.training import previews

_SECONDS_BETWEEN_LINES = 0.5


class TrainerProgress:
    """on_trial_step while beta is sought, begin(run), then on_step after every step."""

    def __init__(self, text: NodeText, steps: int):
        self._text, self._bar = text, progress_bar(steps)
        self._steps, self._shown, self._trial = steps, 0.0, 0

    def on_trial_step(self) -> None:
        """After every step of the search for an automatic beta."""
        self._trial += 1
        self._text.progress(f"Finding beta on your images: trial step {self._trial} ...")
        raise_if_interrupted()

    def begin(self, run: Training) -> None:
        self._first_step, self._started = run.step, time.monotonic()
        self._text.message("\n".join(run.notes))

    def on_step(self, report: StepReport) -> None:
        self._bar.update_absolute(report.step)
        now = time.monotonic()
        if now - self._shown >= _SECONDS_BETWEEN_LINES or report.step == report.steps:
            self._shown = now
            a_step = (now - self._started) / (report.step - self._first_step)
            self._text.progress(report.line(a_step * (report.steps - report.step)))
        raise_if_interrupted()

    def show_picture(self, step: int, picture: np.ndarray) -> None:
        """A picture (uint8 [H, W, 3]) on the node while it runs."""
        previews.show(self._bar, step, self._steps, picture)
