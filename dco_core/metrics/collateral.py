"""Collateral damage: how much a LoRA changes pictures that do not show what it has learned."""

from __future__ import annotations

from torch import Tensor

from ..errors import DCOError


def collateral_rmse(pictures: Tensor, base_pictures: Tensor) -> Tensor:
    """Pictures with the LoRA and without it, of the same prompts from the same noise, [N, ...] each -> the root of the
    mean squared difference of each pair, [N]. DCOError unless there are as many, of one size."""
    if pictures.shape != base_pictures.shape:
        raise DCOError(
            f"Pictures of shape {list(pictures.shape)} cannot be compared with {list(base_pictures.shape)}: give one "
            "picture of the base model for each, of the same size."
        )
    return (pictures.float() - base_pictures.float()).flatten(1).square().mean(1).sqrt()
