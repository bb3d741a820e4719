"""Previews of the trainer node: prompts encoded before the session, pictures during it, the last through the VAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...dco_core.captions.markers import base_caption
from ...dco_core.drawing.preview_sheet import preview_sheet
from ...dco_core.training.examples import Example
from ...dco_core.training.previews import Preview, PreviewPrompt, Previews
from ...dco_core.training.step_report import StepReport
from ...dco_core.training.trainer import Training
from ..host.progress import raise_if_interrupted
from ..host.training import conditioning, learned_tokens, previews
from .data import Encoded, Vocabulary
from .progress import TrainerProgress


class TrainingPreviews:
    """Pictures every `preview_every` steps (0: none) and in the end, of what would be saved then. Make it before the
    training session, while the host may still move its models; `begin` and `last` belong inside, `images` after it."""

    def __init__(self, model, clip, words: Vocabulary, captions: Sequence[str], values: Mapping[str, Any]):
        self._model, self._seed, self._every = model, values["seed"], values["preview_every"]
        self._taken: list[Preview] = []
        self._sheets: list[np.ndarray] = []
        if not self._every:
            return
        lines = [line.strip() for line in values["preview_prompts"].splitlines()]
        self._texts = [line for line in lines if line] or list(captions[:1])
        plain = [base_caption(text, words.initializers) for text in self._texts]
        *self._base, self._empty = conditioning.encode_captions(clip, [*plain, ""])
        self._own = self._base
        if words.fixed:
            reader = learned_tokens.PromptReader(clip, words.fixed, words.initializers)
            self._own = [reader.encode(text, disable_weights=True) for text in self._texts]
        self._picture = previews.live(model)

    def begin(
        self, run: Training, progress: TrainerProgress, examples: Sequence[Example], encoded: Sequence[Encoded],
        encoder: learned_tokens.TrainingTextEncoder | None,
    ) -> None:  # fmt: skip
        """Pictures have the size of the first reference, and SDXL is told that nothing is cut off."""
        if not self._every:
            return
        self._run, self._progress = run, progress
        x0, target = examples[0].latent, encoded[0].sizes
        sizes = target | {
            "height": target["target_height"],
            "width": target["target_width"],
            "crop_h": 0,
            "crop_w": 0,
        }

        def conditions(text: list) -> Any:
            return run.denoiser.model_conditions(conditioning.with_size(text, sizes), x0)  # type: ignore[attr-defined]

        def learned(text: str, encoder: learned_tokens.TrainingTextEncoder) -> Any:
            tokens = encoder.tokens(text)
            return lambda: conditions(encoder.encode(tokens))

        empty = conditions(self._empty)
        prompts = [
            PreviewPrompt(
                text, learned(text, encoder) if encoder else conditions(own), conditions(base), empty
            )
            for text, own, base in zip(self._texts, self._own, self._base, strict=True)
        ]
        w_rg, w_text = previews.scales(self._model)
        self._previews = Previews(
            run.denoiser, prompts, x0.shape, self._seed, w_rg=w_rg, w_text=w_text, device=x0.device,
            tick=raise_if_interrupted,
        )  # fmt: skip

    def on_step(self, report: StepReport) -> None:
        """After a step: show what the model makes now, where it is time to."""
        if self._every and report.step % self._every == 0 and report.step < report.steps:
            self._take(report.step)

    def last(self) -> None:
        """After the last step: also for a run that had been finished before."""
        if self._every:
            self._take(self._run.step)

    def _take(self, step: int) -> None:
        with self._run.result():
            self._taken = self._previews.take()
        if self._picture is not None:
            picture = preview_sheet(self._taken, [self._picture(p.latent) for p in self._taken], f"step {step}")
            self._progress.show_picture(step, picture)
            self._sheets.append(picture)

    def images(self, vae) -> Any:
        """All sheets [N, H, W, 3] in 0..1, the last one through the VAE; where there are none, an output that keeps
        what is connected to it from running."""
        if not self._taken:
            return previews.NOTHING
        pictures = previews.decode(self._model, vae, [p.latent for p in self._taken])
        self._sheets[-1:] = [preview_sheet(self._taken, pictures, f"step {self._run.step}")]
        return torch.from_numpy(np.stack(self._sheets)).float() / 255
