"""When a training shows pictures: after every so many steps, and in the end, of what would be saved then."""

from __future__ import annotations

from collections.abc import Callable

from ..training.previews import Preview, Previews
from ..training.step_report import StepReport
from ..training.trainer import Training


class TrainingPreviews:
    """previews: see PreparedPictures.previews. every: steps between them. show: told the step and the pictures."""

    def __init__(
        self, run: Training, previews: Previews, every: int, show: Callable[[int, list[Preview]], None]
    ):
        self._run, self._previews, self._every, self._show = run, previews, every, show

    def on_step(self, report: StepReport) -> None:
        """After a step: show what the model makes now, where it is time to."""
        if report.step % self._every == 0 and report.step < report.steps:
            self._take(report.step)

    def last(self) -> None:
        """After the last step: also for a run that had been finished before."""
        self._take(self._run.step)

    def _take(self, step: int) -> None:
        with self._run.result():
            taken = self._previews.take()
        self._show(step, taken)
