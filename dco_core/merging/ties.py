"""TIES: trim, elect sign, disjoint merge (Yadav et al. 2023, arXiv 2306.01708, Sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ties(deltas: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """One dW of several of one shape: of each, the `density` share with the largest entries; of each entry, the sign
    with the larger sum; the mean of those that have it. weights scale the dW before. Where no two meet in an entry it
    is the sum of the trimmed ones.

    The paper trims a whole task vector at once; here each layer is trimmed alone, as in peft. Written out because
    peft.utils.merge_utils.ties elects the sign before it weights: a weight below 0 would have no say in the sign."""
    trimmed = torch.stack([w * trim(d, density) for d, w in zip(deltas, weights, strict=True)])
    sign = trimmed.sum(0).sign()
    agree = trimmed.sign() == sign
    return (trimmed * agree).sum(0) / (agree & (trimmed != 0)).sum(0).clamp(min=1)


def trim(delta: Tensor, density: float) -> Tensor:
    """The share of entries with the largest magnitude; 0 elsewhere."""
    keep = max(1, round(density * delta.numel()))
    if keep >= delta.numel():
        return delta
    kept = delta.flatten().abs().topk(keep).indices
    out = torch.zeros(delta.numel(), dtype=delta.dtype)
    out[kept] = delta.flatten()[kept]
    return out.reshape(delta.shape)
