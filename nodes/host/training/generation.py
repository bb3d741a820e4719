"""Pictures that the base model makes before training: class images and rejected ones, as latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import sampling
from .conditioning import encode_captions, with_size


def generate(
    model, clip, prompts: Sequence[str], size: tuple[int, int], seed: int, steps: int, w_text: float,
    inpaint: Mapping[str, Any], told: Callable[[str], None],
) -> list[Tensor]:  # fmt: skip
    """One latent [C, h, w] a prompt, in the VAE's scale, at size (height, width) in pixels. inpaint: what an inpainting
    model is given (see inpainting.py); empty for a picture from nothing. told: called with a line before each
    picture."""
    (empty,) = encode_captions(clip, [""])
    latents = []
    for i, positive in enumerate(encode_captions(clip, prompts)):
        told(f"The base model makes picture {i + 1} of {len(prompts)} ...")
        start = {
            "samples": torch.zeros(1, 4, size[0] // 8, size[1] // 8),
            "downscale_ratio_spacial": 8,  # the host's own spelling
        }
        done = sampling.ksample(
            model, (seed + i) % 2**64, steps, w_text, "euler", "normal", with_size(positive, inpaint),
            with_size(empty, inpaint), start, 1.0
        )  # fmt: skip
        latents.append(done["samples"][0])
    return latents
