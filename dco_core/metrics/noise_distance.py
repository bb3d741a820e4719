"""Noise distance over t: how far theta's predictions lie from phi's on the references (Sec. 5.4, Fig. 8c)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import DCOError
from ..losses import mean_squared_error
from ..network.denoiser import Denoiser
from ..training.config import TrainingConfig
from ..training.draws import Draw, random_draws
from ..training.examples import Example, Prompt
from ..training.predictions import in_order, predict


@dataclass(frozen=True)
class NoiseDistance:
    """At timestep index t, whose noise level is sigma: the mean over `draws` noises of |theta - phi|^2, an element mean
    (the paper's squared norm over the number of elements). native: of the predictions as they are, the space of the
    losses; deviation: its standard deviation over the draws. epsilon: of the noises that they imply, the paper's
    |eps_theta - eps_phi|^2; the same as native for epsilon prediction, alpha^2 times it for v and flow."""

    t: int
    sigma: float
    native: float
    deviation: float
    epsilon: float
    draws: int


def noise_distance(
    denoiser: Denoiser,
    examples: Sequence[Example],
    *,
    timesteps: int | Sequence[int] = 20,
    draws: int = 100,
    seed: int = 0,
    batch_size: int = 16,
) -> list[NoiseDistance]:
    """A row for each timestep: those given, or so many spread evenly. `draws` noises each, over the references in turn
    (class images are left out). theta reads the examples' own captions, phi the base captions, as in training. The
    draws depend on the seed and the examples alone, so that models can be compared on the same ones. No gradient, no
    global random number. DCOError for no reference, for too few draws and for a timestep outside the schedule."""
    references = [e for e in examples if not e.prior]
    length = len(denoiser.schedule)
    at = denoiser.schedule.even_timesteps(timesteps) if isinstance(timesteps, int) else list(timesteps)
    if not references:
        raise DCOError("There are no references to measure the noise distance on: give at least one image.")
    if draws < 1 or not at:
        raise DCOError(f"{draws} draws at {len(at)} timesteps measure nothing: take at least one of each.")
    wrong = [t for t in at if not 0 <= t < length]
    if wrong:
        raise DCOError(f"Timestep {wrong[0]} is outside of the schedule: use 0 to {length - 1}.")
    stream = random_draws(references, length, TrainingConfig(batch_size=1, seed=seed))
    rows = []
    for t in at:
        chosen = [dataclasses.replace(batch[0], t=t) for batch in itertools.islice(stream, draws)]
        found = torch.cat(
            [
                _distances(denoiser, references, chosen[i : i + batch_size])
                for i in range(0, draws, batch_size)
            ]
        )
        schedule = denoiser.schedule
        native = found.mean().item()
        factor = 1.0 if schedule.prediction == "epsilon" else schedule.alpha[t].item() ** 2
        deviation = found.std(correction=0).item()
        rows.append(NoiseDistance(t, schedule.sigma[t].item(), native, deviation, factor * native, draws))
    return rows


@torch.no_grad()
def _distances(denoiser: Denoiser, examples: Sequence[Example], draws: Sequence[Draw]) -> torch.Tensor:
    """|theta - phi|^2 of each draw, [B]."""
    theta = predict(denoiser, examples, draws, adapter=True)
    phi = predict(denoiser, examples, draws, adapter=False, prompt=Prompt.BASE)
    parts = [
        (a.places, mean_squared_error(a.output, b.output).cpu().double())
        for a, b in zip(theta, phi, strict=True)
    ]
    return in_order(parts)
