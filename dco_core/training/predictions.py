"""What a network makes of draws from examples: theta or phi on a batch of noised latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..network.denoiser import Denoiser
from .draws import Draw
from .examples import Example, Prompt


class Prediction(NamedTuple):
    """A network's predictions for some draws of a batch: their places in the batch, the native predictions
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
    """theta (with `adapter`) or phi on the draws, reading the conditioning `prompt`. Latents of
    one size share a call. rejected: look at the rejected images instead of the references, on the same noise."""
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
    conditioning = [e.conditioning_of(_read(d, prompt), d.preserved) for e, d in chosen]
    schedule = denoiser.schedule
    output = denoiser.predict(schedule.noised(x0, noise, t), t, conditioning, adapter=adapter)
    mask = None
    if not rejected and any(e.mask is not None for e, _ in chosen):
        masks = [torch.ones(x0.shape[-2:]) if e.mask is None else e.mask for e, _ in chosen]
        one_of_each = (1,) * (x0.ndim - 3)  # channels, and frames where there are any
        mask = torch.stack([m.to(x0).reshape(*one_of_each, *m.shape) for m in masks])
    return Prediction(places, output, schedule.target(x0, noise, t), mask)


def _read(draw: Draw, prompt: Prompt) -> Prompt:
    return Prompt.EMPTY if draw.dropped and prompt is not Prompt.PRESERVED else prompt


def _sampled(example: Example, draw: Draw) -> Tensor:
    if example.std is None or draw.posterior is None:
        return example.latent
    return example.latent + example.std * draw.posterior.to(example.latent)


def in_order(parts: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """Per-sample values of several groups, [B], in the order of the batch."""
    places = torch.tensor([p for group, _ in parts for p in group])
    return torch.cat([values for _, values in parts])[torch.argsort(places)]
