"""The Toy World's canvas and its antialiasing."""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 64  # pixels
PIXELS_PER_CELL = 8  # of the pictures users see: one cell is 8x8 pixels, as in the families they know


def pixels() -> tuple[Tensor, Tensor]:
    """y and x [64, 64] of the pixels' centres."""
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    return y, x


def cover(distance: Tensor) -> Tensor:
    """Share of a pixel that lies inside, from the signed distance in pixels (negative inside)."""
    return (0.5 - distance).clamp(0, 1)
