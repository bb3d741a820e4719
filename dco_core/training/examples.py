"""What training sees: examples, each an image and its text, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from ..errors import DCOError

# What a network reads: whatever its Denoiser understands, or, while tokens train, a function that makes it anew.
Conditioning = Any


class Prompt(Enum):
    """Which of an example's prompts a network reads: theta's own, phi's base caption, the class prompt, the empty one,
    or the preservation prompt that the draw says."""

    OWN = "own"
    BASE = "base"
    CLASS = "class"
    EMPTY = "empty"
    PRESERVED = "preserved"


@dataclass(frozen=True)
class Example:
    """One reference image, encoded once.

    latent: [C, H, W], or [C, T, H, W] with frames, in the model's own scale; with `std` of the same shape it is the
        mean of the VAE's posterior, which every draw samples anew, as the authors do.
    conditioning: what theta reads; a function without arguments is called in every step (learned tokens).
    base_conditioning: what phi reads: the base caption (None: the same as theta).
    class_conditioning: the class prompt, for output preservation.
    empty_conditioning: the empty prompt, for caption dropout.
    mask: weights of the loss [H, W] in 0..1 at the latent's size (None: everything counts).
    prior: a class image, for prior preservation; it is drawn beside the references.
    rejected: latents [C, H, W] of images that the base model makes of the same caption, for MaPO.
    preserved: the preservation prompts, the same ones in every example.
    """

    latent: Tensor
    conditioning: Conditioning
    base_conditioning: Conditioning = None
    std: Tensor | None = None
    class_conditioning: Conditioning = None
    empty_conditioning: Conditioning = None
    mask: Tensor | None = None
    prior: bool = False
    rejected: Sequence[Tensor] = ()
    preserved: Sequence[Conditioning] = ()

    def conditioning_of(self, prompt: Prompt, preserved: int = 0) -> Conditioning:
        """What a network reads for `prompt`; preserved: which of them. DCOError where the example has no class, empty
        or preservation prompt."""
        chosen = {
            Prompt.OWN: self.conditioning,
            Prompt.BASE: self.conditioning if self.base_conditioning is None else self.base_conditioning,
            Prompt.CLASS: self.class_conditioning,
            Prompt.EMPTY: self.empty_conditioning,
            Prompt.PRESERVED: self.preserved[preserved] if self.preserved else None,
        }[prompt]
        if chosen is None and prompt not in (Prompt.OWN, Prompt.BASE):
            raise DCOError(f"The examples have no {prompt.value} conditioning, which this training needs.")
        return chosen() if callable(chosen) else chosen


def check_examples(examples: Sequence[Example], need: Callable[[Example], str | None]) -> None:
    """Raise DCOError for examples that cannot be trained on. need: what an objective misses in an example."""
    if not [e for e in examples if not e.prior]:
        raise DCOError("There are no images to train on: connect at least one.")
    for i, example in enumerate(examples):
        if not torch.isfinite(example.latent).all():
            raise DCOError(
                f"The latent of image {i + 1} holds NaN or infinity: the VAE overflowed. "
                "Use an fp32 or a fixed-fp16 VAE."
            )
        if example.mask is not None and not example.mask.sum() > 0:
            raise DCOError(
                f"The mask of image {i + 1} is empty: nothing of the picture would be learned. "
                "Paint what counts in white (invert the mask of Load Image), or leave the mask away."
            )
        missing = need(example)
        if missing:
            raise DCOError(f"Image {i + 1}: {missing}")
