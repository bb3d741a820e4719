"""Pictures that the base model makes before training: class images and rejected ones, as latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import sampling
from .conditioning import encode_captions


def generate(
    model, clip, prompts: Sequence[str], size: tuple[int, int], seed: int, steps: int, w_text: float
) -> list[Tensor]:
    """One latent [C, h, w] a prompt, in the VAE's scale, at size (height, width) in pixels."""
    (empty,) = encode_captions(clip, [""])
    latents = []
    for i, positive in enumerate(encode_captions(clip, prompts)):
        start = {
            "samples": torch.zeros(1, 4, size[0] // 8, size[1] // 8),
            "downscale_ratio_spacial": 8,  # the host's own spelling
        }
        done = sampling.ksample(
            model, (seed + i) % 2**64, steps, w_text, "euler", "normal", positive, empty, start, 1.0
        )
        latents.append(done["samples"][0])
    return latents
