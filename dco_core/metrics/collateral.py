"""Collateral damage: how much a trained adapter changes pictures of other things."""

from __future__ import annotations

from torch import Tensor

from ..errors import DCOError


def collateral_rmse(pictures: Tensor, base_pictures: Tensor) -> Tensor:
    """Root mean square difference [B] of each picture [B, ...] from the base model's of the same prompt and noise, in
    the pictures' own units; 0 where the adapter changes nothing. The prompts should not name what was learned.

    DCOError for groups of unlike shapes, and for none."""
    if pictures.shape != base_pictures.shape or pictures.ndim < 2 or not pictures.numel():
        raise DCOError(
            f"Pictures {list(pictures.shape)} cannot be compared with the base model's {list(base_pictures.shape)}: "
            "give as many of one size, made from the same prompts and noise."
        )
    return (pictures.float() - base_pictures.float()).flatten(1).square().mean(1).sqrt()
