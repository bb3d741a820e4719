"""Where theta is held to phi beside the objective, whichever it is: outside of the pictures' masks (the mask prior),
and on prompts that are not to change (preservation).

    loss + mask_prior * |theta(x_t, c) - phi(x_t, c)|^2 outside of the mask
         + preservation_weight * |theta(x_t, c') - phi(x_t, c')|^2 on a preservation prompt c', same x_t

phi is frozen, so that its predictions for draws to come can be had ahead (reference_pass.py). Where an error of phi is
one number, a prediction is as large as a latent: those that a term needs are kept until their step, of masked pictures
and of preservation prompts alone (at SDXL's 1024 px 0.13 MB each in fp16, at most a window's 8 draws of each kind).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..losses import mean_squared_error, outside_drift
from ..network.denoiser import Denoiser
from .config import TrainingConfig
from .draws import Draw
from .examples import Example, Prompt
from .predictions import Prediction, in_order, predict


class Reference(NamedTuple):
    """phi on n draws of references. errors: [n] on the base captions; empty where nothing asks for them.
    outside: of each draw, the prediction on its base caption where the mask prior needs it; preserved: of each draw,
    the prediction on its preservation prompt where it has one. Each [C, H, W], or None."""

    errors: Tensor
    outside: Sequence[Tensor | None]
    preserved: Sequence[Tensor | None]

    def part(self, start: int, stop: int) -> Reference:
        """Of the draws from start to stop."""
        return Reference(self.errors[start:stop], self.outside[start:stop], self.preserved[start:stop])


def reference_of(
    denoiser: Denoiser, examples: Sequence[Example], draws: Sequence[Draw], config: TrainingConfig
) -> Reference:
    """phi on the draws, without gradient: one call for what reads the base captions, one for preservation prompts."""
    outside: list[Tensor | None] = [None] * len(draws)
    preserved: list[Tensor | None] = [None] * len(draws)
    errors = torch.zeros(0)
    masked = config.mask_prior > 0 and any(has_outside(examples[d.image]) for d in draws)
    with torch.no_grad():
        if draws and (config.is_dco or masked):
            found = predict(denoiser, examples, draws, adapter=False, prompt=Prompt.BASE)
            errors = in_order([(p.places, mean_squared_error(p.output, p.target, p.mask)) for p in found])
            if masked:
                _keep(found, [has_outside(examples[d.image]) for d in draws], outside)
        places = [place for place, d in enumerate(draws) if d.preserved >= 0]
        if places:
            chosen = [draws[place] for place in places]
            kept: list[Tensor | None] = [None] * len(chosen)
            found = predict(denoiser, examples, chosen, adapter=False, prompt=Prompt.PRESERVED)
            _keep(found, [True] * len(chosen), kept)
            for place, prediction in zip(places, kept, strict=True):
                preserved[place] = prediction
    return Reference(errors, outside, preserved)


def _keep(found: Sequence[Prediction], wanted: Sequence[bool], kept: list[Tensor | None]) -> None:
    for p in found:
        for place, output in zip(p.places, p.output, strict=True):
            if wanted[place]:
                kept[place] = output.clone()  # not the whole batch's memory


def has_outside(example: Example) -> bool:
    """Whether the mask leaves anything of the picture to the mask prior."""
    return example.mask is not None and not example.prior and bool((example.mask < 1).any())


def drift_outside(found: Sequence[Prediction], reference: Reference) -> Tensor:
    """outside_drift [n] of theta's predictions on n references; 0 for pictures without a mask."""
    parts = []
    for p in found:
        kept = [reference.outside[place] for place in p.places]
        if p.mask is None or not any(k is not None for k in kept):
            parts.append((p.places, p.output.new_zeros(len(kept), dtype=torch.float32)))
            continue
        # where nothing is outside any value does: it has no weight
        phi = torch.stack([o.detach() if k is None else k.to(o) for k, o in zip(kept, p.output, strict=True)])
        parts.append((p.places, outside_drift(p.output, phi, p.mask)))
    return in_order(parts)


def drift_preserved(
    denoiser: Denoiser, examples: Sequence[Example], draws: Sequence[Draw], reference: Reference
) -> Tensor:
    """Mean squared distance [m] between theta and phi on the preservation prompts of the m draws that have one, in
    their order; one call of theta."""
    pairs = [(d, kept) for d, kept in zip(draws, reference.preserved, strict=True) if kept is not None]
    found = predict(denoiser, examples, [d for d, _ in pairs], adapter=True, prompt=Prompt.PRESERVED)
    parts = []
    for p in found:
        phi = torch.stack([kept for place in p.places if (kept := pairs[place][1]) is not None]).to(p.output)
        parts.append((p.places, mean_squared_error(p.output, phi)))
    return in_order(parts)
