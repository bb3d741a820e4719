"""Pictures as numbers: 0..1 in tensors, uint8 in what is drawn, shown and saved."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def as_uint8(image: Tensor) -> np.ndarray:
    """[..., C] in 0..1 -> uint8 [..., 3], on the CPU; what is outside of 0..1 is clamped."""
    return image[..., :3].float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8).numpy()


def as_image(picture: np.ndarray | Image.Image) -> Tensor:
    """uint8 [...] -> float32 [...] in 0..1."""
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)
