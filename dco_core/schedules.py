"""Noise schedules and prediction types, in one place.

x_t = alpha_t x0 + sigma_t eps for every family. What the network predicts, and therefore what the losses
compare, is its native target:

    epsilon   eps                       alpha^2 + sigma^2 = 1     SD1.5, SDXL, the Toy World
    v         alpha eps - sigma x0      alpha^2 + sigma^2 = 1     SD2 768, zero-terminal-SNR models
    flow      eps - x0                  alpha + sigma = 1         SD3, Flux, Lumina2, Qwen-Image, the Toy World
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import DCOError

PREDICTIONS = ("epsilon", "v", "flow")


@dataclass(frozen=True)
class Schedule:
    """alpha, sigma: [T] tables over the timestep index t = 0 (almost clean) to T - 1 (almost noise)."""

    prediction: str
    alpha: Tensor
    sigma: Tensor

    def __post_init__(self):
        if self.prediction not in PREDICTIONS:
            raise DCOError(
                f"prediction type {self.prediction!r} is unknown: use one of {', '.join(PREDICTIONS)}."
            )

    def __len__(self) -> int:
        return len(self.sigma)

    @staticmethod
    def from_sigmas(prediction: str, sigmas: Tensor) -> Schedule:
        """From a table of k-diffusion sigmas [T]: noise over signal for epsilon and v, the flow time for flow."""
        sigmas = sigmas.detach().float().cpu()
        if prediction == "flow":
            return Schedule(prediction, 1 - sigmas, sigmas)
        alpha = (1 + sigmas**2).rsqrt()
        return Schedule(prediction, alpha, sigmas * alpha)

    @staticmethod
    def stable_diffusion(prediction: str = "epsilon") -> Schedule:
        """The scaled-linear schedule of Stable Diffusion 1, 2 and XL: sqrt(beta) from sqrt(0.00085) to
        sqrt(0.012) (Rombach et al. 2022)."""
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        signal = torch.cumprod(1 - betas, 0)
        return Schedule.from_sigmas(prediction, ((1 - signal) / signal).sqrt())

    @staticmethod
    def flow(steps: int = 1000, shift: float = 1.0) -> Schedule:
        """Rectified flow with uniform times (1..T)/T, shifted as in SD3 (Esser et al. 2024, Sec. 5.3.2)."""
        t = torch.arange(1, steps + 1) / steps
        return Schedule.from_sigmas("flow", shift * t / (1 + (shift - 1) * t))

    def even_timesteps(self, count: int) -> list[int]:
        """`count` indices in the middles of as many equal parts."""
        return [(2 * i + 1) * len(self) // (2 * count) for i in range(count)]

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at indices t [B], shaped to broadcast over `like` [B, ...]."""
        shape = (-1,) + (1,) * (like.ndim - 1)
        t = t.cpu()
        return self.alpha[t].to(like).view(shape), self.sigma[t].to(like).view(shape)

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t eps, [B, ...]."""
        alpha, sigma = self.at(t, x0)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should predict, [B, ...]."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "flow":
            return noise - x0
        alpha, sigma = self.at(t, x0)
        return alpha * noise - sigma * x0

    def denoised(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The estimate of x0 that a native prediction implies, [B, ...]."""
        alpha, sigma = self.at(t, x_t)
        if self.prediction == "epsilon":
            return (x_t - sigma * prediction) / alpha
        if self.prediction == "flow":
            return x_t - sigma * prediction
        return alpha * x_t - sigma * prediction
