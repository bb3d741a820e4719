"""DARE: drop and rescale (Yu et al. 2023, arXiv 2311.03099, Eq. 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dare(
    deltas: Sequence[Tensor], weights: Sequence[float], drop: float, generator: torch.Generator
) -> Tensor:
    """Each entry of each dW is dropped with probability `drop` and what stays is divided by 1 - drop, so that the mean
    over draws is the plain weighted sum."""
    total = torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        kept = torch.rand(delta.shape, generator=generator) >= drop
        total += weight / (1 - drop) * delta * kept
    return total
