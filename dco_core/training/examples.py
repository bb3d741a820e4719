"""What training sees: examples (image and text, encoded), random draws from them, and what a network makes of
them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DCOError
from ..network.denoiser import Denoiser
from .config import TrainingConfig

# What a network reads: whatever its Denoiser understands, or, while tokens train, a function that makes it anew.
Conditioning = Any


class Prompt(Enum):
    """Which of an example's prompts a network reads: theta's own, phi's base caption, the class prompt,
    or the empty one."""

    OWN = "own"
    BASE = "base"
    CLASS = "class"
    EMPTY = "empty"


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

    def conditioning_of(self, prompt: Prompt) -> Conditioning:
        """What a network reads for `prompt`. DCOError where the example has no class or empty prompt."""
        chosen = {
            Prompt.OWN: self.conditioning,
            Prompt.BASE: self.conditioning if self.base_conditioning is None else self.base_conditioning,
            Prompt.CLASS: self.class_conditioning,
            Prompt.EMPTY: self.empty_conditioning,
        }[prompt]
        if chosen is None and prompt in (Prompt.CLASS, Prompt.EMPTY):
            raise DCOError(f"The examples have no {prompt.value} conditioning, which this training needs.")
        return chosen() if callable(chosen) else chosen


@dataclass(frozen=True)
class Draw:
    """One random draw: which example, its noise [C, H, W] (offset included: it is part of the target), the
    timestep index, the standard normal [C, H, W] that samples the VAE's posterior (None: its mean), whether the
    caption is dropped, and which rejected image goes with it."""

    image: int
    noise: Tensor
    t: int
    posterior: Tensor | None = None
    dropped: bool = False
    rejected: int = 0


def _generator(seed: int, what: str, index: int) -> torch.Generator:
    """Random numbers of their own for each thing drawn."""
    digest = hashlib.blake2b(f"{seed} {what} {index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _in_rounds(indices: Sequence[int], seed: int, what: str, place: int) -> int:
    """The index at a place of endless shuffled rounds, in which all are seen equally often."""
    turn, at = divmod(place, len(indices))
    return indices[int(torch.randperm(len(indices), generator=_generator(seed, what, turn))[at])]


def random_draws(
    examples: Sequence[Example], n_timesteps: int, config: TrainingConfig, start: int = 0
) -> Iterator[list[Draw]]:
    """Endless batches of draws from the seed, beginning with batch number `start`: images in shuffled rounds,
    Gaussian noise plus `offset_noise` times a constant per channel (Guttenberg 2023), uniform timesteps. Where
    there are class images, as many of them follow the references in every batch.

    A batch depends on the seed and its number alone, so a resumed run goes on where it was without a state of
    random numbers; drawn on the CPU, so that the seed means the same everywhere."""
    references = [i for i, e in enumerate(examples) if not e.prior]
    class_images = [i for i, e in enumerate(examples) if e.prior]
    size = config.batch_size
    for number in itertools.count(start):
        generator = _generator(config.seed, "batch", number)
        places = range(number * size, (number + 1) * size)
        images = [_in_rounds(references, config.seed, "references", p) for p in places]
        if class_images:
            images += [_in_rounds(class_images, config.seed, "class images", p) for p in places]
        yield [_draw(examples[i], i, n_timesteps, config, generator) for i in images]


def _draw(
    example: Example, image: int, n_timesteps: int, config: TrainingConfig, generator: torch.Generator
) -> Draw:
    shape = example.latent.shape
    noise = torch.randn(shape, generator=generator)
    if config.offset_noise:
        offset = torch.randn((shape[0],) + (1,) * (len(shape) - 1), generator=generator)
        noise = noise + config.offset_noise * offset
    t = int(torch.randint(n_timesteps, (), generator=generator))
    posterior = None if example.std is None else torch.randn(shape, generator=generator)
    dropout = config.caption_dropout
    dropped = dropout > 0 and bool(torch.rand((), generator=generator) < dropout)
    several = len(example.rejected) > 1
    rejected = int(torch.randint(len(example.rejected), (), generator=generator)) if several else 0
    return Draw(image, noise, t, posterior, dropped, rejected)


class Prediction(NamedTuple):
    """What a network said about some draws of a batch: their places in the batch, the native predictions
    [B, ...], the targets [B, ...], and the masks or None: [B, 1, H, W] for pictures, [B, 1, 1, H, W] for latents with
    frames."""

    places: list[int]
    output: Tensor
    target: Tensor
    mask: Tensor | None


def predict(
    denoiser: Denoiser,
    examples: Sequence[Example],
    draws: Sequence[Draw],
    *,
    adapter: bool,
    prompt: Prompt = Prompt.OWN,
    rejected: bool = False,
) -> list[Prediction]:
    """theta (with `adapter`) or phi on the draws, reading `prompt`, or the empty one where a draw drops the caption.
    Latents of one size share a call. rejected: look at the rejected images instead of the references, on the same
    noise."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, draw in enumerate(draws):
        groups.setdefault(tuple(examples[draw.image].latent.shape), []).append(place)
    return [
        _predict(denoiser, examples, draws, places, adapter, prompt, rejected) for places in groups.values()
    ]


def _predict(
    denoiser: Denoiser,
    examples: Sequence[Example],
    draws: Sequence[Draw],
    places: list[int],
    adapter: bool,
    prompt: Prompt,
    rejected: bool,
) -> Prediction:
    chosen = [(examples[draws[p].image], draws[p]) for p in places]
    x0 = torch.stack([e.rejected[d.rejected] if rejected else _sampled(e, d) for e, d in chosen])
    noise = torch.stack([d.noise for _, d in chosen]).to(x0)
    t = torch.tensor([d.t for _, d in chosen])
    conditioning = [e.conditioning_of(Prompt.EMPTY if d.dropped else prompt) for e, d in chosen]
    schedule = denoiser.schedule
    output = denoiser.predict(schedule.noised(x0, noise, t), t, conditioning, adapter=adapter)
    mask = None
    if not rejected and any(e.mask is not None for e, _ in chosen):
        masks = [torch.ones(x0.shape[-2:]) if e.mask is None else e.mask for e, _ in chosen]
        one_of_each = (1,) * (x0.ndim - 3)  # channels, and frames where there are any
        mask = torch.stack([m.to(x0).reshape(*one_of_each, *m.shape) for m in masks])
    return Prediction(places, output, schedule.target(x0, noise, t), mask)


def _sampled(example: Example, draw: Draw) -> Tensor:
    if example.std is None or draw.posterior is None:
        return example.latent
    return example.latent + example.std * draw.posterior.to(example.latent)


def in_order(parts: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """Per-sample values of several groups, [B], in the order of the batch."""
    places = torch.tensor([p for group, _ in parts for p in group])
    return torch.cat([values for _, values in parts])[torch.argsort(places)]


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
