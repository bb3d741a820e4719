"""Random draws from examples: which one, its noise, its timestep. A function of the seed and the batch's number."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DCOError
from .config import TrainingConfig
from .examples import Example
from .noise_levels import NoiseLevels


@dataclass(frozen=True)
class Draw:
    """One random draw: which example, its noise [C, H, W] (offset included: it is part of the target), the
    timestep index, the standard normal [C, H, W] that samples the VAE's posterior (None: its mean), whether the
    caption is dropped, which rejected image goes with it, and which preservation prompt (-1: none)."""

    image: int
    noise: Tensor
    t: int
    posterior: Tensor | None = None
    dropped: bool = False
    rejected: int = 0
    preserved: int = -1


def _generator(seed: int, what: str, index: int) -> torch.Generator:
    """Random numbers of their own for each thing drawn."""
    digest = hashlib.blake2b(f"{seed} {what} {index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _in_rounds(indices: Sequence[int], seed: int, what: str, place: int) -> int:
    """The index at a place of endless shuffled rounds, in which all are seen equally often."""
    turn, at = divmod(place, len(indices))
    return indices[int(torch.randperm(len(indices), generator=_generator(seed, what, turn))[at])]


def random_draws(
    examples: Sequence[Example], levels: NoiseLevels | int, config: TrainingConfig, start: int = 0
) -> Iterator[list[Draw]]:
    """Endless batches of draws from the seed, beginning with batch number `start`: images in shuffled rounds,
    Gaussian noise plus `offset_noise` times a constant per channel (Guttenberg 2023), timesteps as `levels` draws
    them (a number: uniform among so many). Where there are class images, as many of them follow the references in every
    batch.

    A batch depends on the seed and its number alone, so a resumed run goes on where it was without a state of
    random numbers; drawn on the CPU, so that the seed means the same everywhere."""
    if isinstance(levels, int):
        if config.timestep_sampling != "uniform":
            raise DCOError(f"timestep_sampling {config.timestep_sampling} needs the model's noise levels.")
        levels = NoiseLevels("uniform", levels)
    references = [i for i, e in enumerate(examples) if not e.prior]
    class_images = [i for i, e in enumerate(examples) if e.prior]
    size = config.batch_size
    for number in itertools.count(start):
        generator = _generator(config.seed, "batch", number)
        places = range(number * size, (number + 1) * size)
        images = [_in_rounds(references, config.seed, "references", p) for p in places]
        if class_images:
            images += [_in_rounds(class_images, config.seed, "class images", p) for p in places]
        draws = [_draw(examples[i], i, levels, config, generator) for i in images]
        if config.preservation_prompts:
            draws = _with_preservation(draws, examples, config, number)
        yield draws


def _with_preservation(
    draws: list[Draw], examples: Sequence[Example], config: TrainingConfig, number: int
) -> list[Draw]:
    """In a share of the batches, a preservation prompt for each reference, with random numbers of their own: all else
    is drawn as it would be without."""
    generator = _generator(config.seed, "preservation", number)
    if not torch.rand((), generator=generator) < config.preservation_share:
        return draws

    def prompt(d: Draw) -> int:
        count = len(examples[d.image].preserved)
        return int(torch.randint(count, (), generator=generator)) if count else -1

    return [dataclasses.replace(d, preserved=prompt(d)) for d in draws]


def _draw(
    example: Example, image: int, levels: NoiseLevels, config: TrainingConfig, generator: torch.Generator
) -> Draw:
    shape = example.latent.shape
    noise = torch.randn(shape, generator=generator)
    if config.offset_noise:
        offset = torch.randn((shape[0],) + (1,) * (len(shape) - 1), generator=generator)
        noise = noise + config.offset_noise * offset
    t = levels.draw(shape, generator)
    posterior = None if example.std is None else torch.randn(shape, generator=generator)
    dropout = config.caption_dropout
    dropped = dropout > 0 and bool(torch.rand((), generator=generator) < dropout)
    several = len(example.rejected) > 1
    rejected = int(torch.randint(len(example.rejected), (), generator=generator)) if several else 0
    return Draw(image, noise, t, posterior, dropped, rejected)
