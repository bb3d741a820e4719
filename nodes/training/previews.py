"""Previews of the trainer node: live pictures during the session, the last ones through the VAE."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...dco_core.data.pixels import as_image, as_uint8
from ...dco_core.drawing.preview_sheet import preview_sheet
from ...dco_core.pipeline.examples import PreparedPictures
from ...dco_core.pipeline.previews import TrainingPreviews
from ...dco_core.training.previews import Preview
from ...dco_core.training.step_report import StepReport
from ...dco_core.training.trainer import Training
from ..host.progress import raise_if_interrupted
from ..host.training import previews
from ..host.training.image_model import HostImageModel
from .progress import TrainerProgress


class NodePreviews:
    """Pictures every so many steps (0: none) and in the end. Make it before the training session, while the host may
    still load a previewer; `begin` and `last` belong inside, `images` after it."""

    def __init__(self, model, every: int, seed: int):
        self._every, self._seed = every, seed
        self._picture = previews.live(model) if every else None
        self._taken: list[Preview] = []
        self._sheets: list[np.ndarray] = []

    def begin(self, run: Training, progress: TrainerProgress, prepared: PreparedPictures) -> None:
        self._progress = progress
        self._when = None
        if self._every:
            shown = prepared.previews(run.denoiser, self._seed, raise_if_interrupted)
            self._when = TrainingPreviews(run, shown, self._every, self._show)

    def on_step(self, report: StepReport) -> None:
        if self._when is not None:
            self._when.on_step(report)

    def last(self) -> None:
        if self._when is not None:
            self._when.last()

    def _show(self, step: int, taken: list[Preview]) -> None:
        self._step, self._taken = step, taken
        if self._picture is not None:
            picture = preview_sheet(taken, [self._picture(p.latent) for p in taken], f"step {step}")
            self._progress.show_picture(step, picture)
            self._sheets.append(picture)

    def images(self, model: HostImageModel) -> Any:
        """All sheets [N, H, W, 3] in 0..1, the last one through the VAE; where there are none, an output that keeps
        what is connected to it from running."""
        if not self._taken:
            return previews.NOTHING
        pictures = [as_uint8(image) for image in model.decode_latents([p.latent for p in self._taken])]
        self._sheets[-1:] = [preview_sheet(self._taken, pictures, f"step {self._step}")]
        return as_image(np.stack(self._sheets))
