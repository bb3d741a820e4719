"""Pictures that the base model makes before training, as latents: class images for prior preservation, rejected
ones for MaPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DCOError
from ..network.denoiser import Denoiser
from ..sampling import sample
from ..training.examples import Conditioning

AT_ONCE = 4  # pictures of one prompt


@dataclass(frozen=True)
class GenerationConfig:
    """class_prompt: of the subject's class; empty: from the captions' markers. class_images: how many, where none
    are given. rejected_images: how many of each caption. generation_steps: of the sampler. generation_w_text: text
    guidance; None: the model's own."""

    class_prompt: str = ""
    class_images: int = 50
    rejected_images: int = 1
    generation_steps: int = 30
    generation_w_text: float | None = None

    def check(self) -> None:
        """Raise DCOError for a value that cannot be."""
        for name in ("class_images", "rejected_images", "generation_steps"):
            if not getattr(self, name) >= 1:
                raise DCOError(f"{name} is {getattr(self, name)}: it must be at least 1.")
        if self.generation_w_text is not None and not self.generation_w_text >= 0:
            raise DCOError(f"generation_w_text is {self.generation_w_text:g}: it cannot be negative.")


def generate(
    denoiser: Denoiser,
    conditioning: Conditioning,
    empty_conditioning: Conditioning,
    shape: Sequence[int],
    seeds: Sequence[int],
    *,
    w_text: float,
    steps: int = 30,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """One latent [C, H, W] a seed that the base model makes of a prompt, in its own scale: the adapter is switched off,
    and sampling is `sampling.sample`. The same seeds in the same order give the same latents.

    conditioning, empty_conditioning: of the prompt and of the empty one. shape: of a latent.
    Raises DCOError where the base model gives NaN, and for a number of steps that the schedule does not have.
    """
    made: list[Tensor] = []
    for start in range(0, len(seeds), AT_ONCE):
        noise = torch.stack([_noise(seed, shape) for seed in seeds[start : start + AT_ONCE]]).to(device)
        n = len(noise)
        latents = sample(
            denoiser, None, [conditioning] * n, [empty_conditioning] * n, noise, w_rg=0.0, w_text=w_text, steps=steps
        )
        if not torch.isfinite(latents).all():
            raise DCOError(
                "The pictures that the base model makes are not finite, as with fp16 weights that overflow: load it "
                "in bf16 or fp32."
            )
        made += latents
    return made


def _noise(seed: int, shape: Sequence[int]) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed % 2**64))
