"""When to stop: the same validation draws (noise and timesteps that training does not use) at every checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses import T, mean_squared_error, weights_at
from ..network.denoiser import Denoiser
from .config import TrainingConfig
from .draws import Draw, random_draws
from .examples import Example, Prompt
from .predictions import predict

DRAWS = 16


@dataclass(frozen=True)
class Score:
    """step: after how many steps. margin: mean of beta*T w(t) (error_phi - error_theta) on the validation draws, the
    DCO margin (beta 1 for objectives without it): how far theta is ahead. distance: mean squared distance between
    the two predictions, in the native space (the paper's Fig. 8c; metrics/noise_distance.py has it over t): how far the
    model is from the base."""

    step: int
    margin: float
    distance: float


def summary(scores: Sequence[Score]) -> str:
    """`Validation margin: best 1.234 at step 50, last 1.100; distance to the base 0.0123.`; "" without scores."""
    if not scores:
        return ""
    best, last = max(scores, key=lambda score: score.margin), scores[-1]
    return (
        f"Validation margin: best {best.margin:.3f} at step {best.step}, last {last.margin:.3f}; "
        f"distance to the base {last.distance:.3g}."
    )


class Validation:
    """Scores the adapter on fixed draws; phi's side is computed once."""

    def __init__(self, denoiser: Denoiser, examples: Sequence[Example], config: TrainingConfig):
        self._denoiser = denoiser
        self._examples = [e for e in examples if not e.prior]
        self._beta_T = config.beta_T if config.beta is not None else T
        plain = dataclasses.replace(
            config, batch_size=1, caption_dropout=0.0, seed=config.seed ^ 0x0E1D, timestep_sampling="uniform"
        )
        stream = random_draws(self._examples, len(denoiser.schedule), plain)
        draws = [d for batch in itertools.islice(stream, DRAWS) for d in batch]
        # timesteps spread evenly: sixteen random ones would miss whole regions
        spread = denoiser.schedule.even_timesteps(DRAWS)
        self._draws = [dataclasses.replace(d, t=t) for d, t in zip(draws, spread, strict=True)]
        t = torch.tensor(spread)
        self._weights = weights_at(denoiser.schedule, t, config.settled_weighting, config.snr_gamma).tolist()
        self._phi: list[tuple[Tensor, float]] | None = None

    @property
    def draws(self) -> list[Draw]:
        """The validation draws."""
        return list(self._draws)

    @property
    def factors(self) -> list[float]:
        """beta*T w(t) of each draw."""
        return [self._beta_T * weight for weight in self._weights]

    def score(self, step: int) -> Score:
        """The adapter as it is now. No gradient, no random number."""
        with torch.no_grad():
            if self._phi is None:
                self._phi = [self._look(i, adapter=False) for i in range(len(self._draws))]
            margins, distances = [], []
            for i, (phi, error_phi) in enumerate(self._phi):
                theta, error_theta = self._look(i, adapter=True)
                margins.append(self.factors[i] * (error_phi - error_theta))
                distances.append(mean_squared_error(theta, phi.to(theta)).item())
        return Score(step, sum(margins) / len(margins), sum(distances) / len(distances))

    def _look(self, i: int, *, adapter: bool) -> tuple[Tensor, float]:
        (prediction,) = predict(
            self._denoiser,
            self._examples,
            [self._draws[i]],
            adapter=adapter,
            prompt=Prompt.OWN if adapter else Prompt.BASE,
        )
        error = mean_squared_error(prediction.output, prediction.target, prediction.mask).item()
        return (prediction.output if adapter else prediction.output.cpu()), error
