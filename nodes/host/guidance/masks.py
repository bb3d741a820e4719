"""Where a LoRA acts: a MASK as it is given, at the size of the latent, and in the window that is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ....dco_core.errors import DCOError


def checked_mask(mask: Tensor) -> Tensor:
    """A MASK as [N, H, W] in 0..1, float32 on the CPU, of [H, W], [N, H, W] or [N, 1, H, W]. DCOError for anything
    else."""
    shape = tuple(mask.shape)
    if mask.ndim == 4 and shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or mask.numel() == 0:
        raise DCOError(
            f"The mask of a LoRA has shape {shape}: connect a MASK, which is images x height x width."
        )
    mask = mask.detach().float().cpu()
    low, high = float(mask.min()), float(mask.max())
    if not (low >= -0.01 and high <= 1.01):  # what resampling overshoots is clamped
        raise DCOError(
            f"The mask of a LoRA has values from {low:g} to {high:g}: 1 is where the LoRA acts, 0 where it does not."
        )
    return mask.clamp(0, 1)


def fitted_mask(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """A mask (checked_mask) at the size of a latent, by area: each cell gets the mean of what it covers.

    mask: [N, h, w]: one for all, one for each image, or for videos one for each frame, of the latent or of the pixels.
    shape: of the latent, [B, C, H, W] or [B, C, T, H, W]. Returns [1 or B, 1, H, W] or [1 or B, 1, 1 or T, H, W].
    DCOError for another number of masks, another aspect ratio, and a latent that is no picture or video.
    """
    if len(shape) not in (4, 5):
        raise DCOError(
            f"A mask says where a LoRA acts in pictures and videos, and the latent has shape {tuple(shape)}: take the "
            "mask off."
        )
    batch, frames, (height, width) = shape[0], shape[2] if len(shape) == 5 else 1, shape[-2:]
    count, h, w = mask.shape
    if abs(h * width / w - height) > 1 and abs(w * height / h - width) > 1:  # more than a cell to stretch
        raise DCOError(
            f"The mask of a LoRA is {w} x {h} and the latent {width} x {height}: give the mask the proportions of the "
            "picture."
        )
    if frames > 1 and count > 1:
        per_frame, rest = divmod(count - 1, frames - 1)
        if rest or per_frame == 0:
            raise DCOError(
                f"The mask of a LoRA has {count} frames and the latent video {frames}: give one mask for all, or one "
                "for each frame of the video."
            )
        # video encoders take the first frame alone, and the others in groups
        grouped = mask[1:].unflatten(0, (frames - 1, per_frame)).mean(1)
        mask = torch.cat([mask[:1], grouped])
    elif count not in (1, batch):
        raise DCOError(
            f"There are {count} masks of a LoRA and {batch} images: give one mask for all, or one for each."
        )
    small = F.interpolate(mask[:, None], size=(height, width), mode="area")
    if len(shape) == 4:
        return small
    return small.movedim(0, 1)[None] if frames > 1 else small[:, :, None]


def in_window(mask: Tensor, shape: Sequence[int], x: Tensor, options: dict[str, Any]) -> Tensor:
    """A fitted mask as it is for x, which is the whole latent (of `shape`) or one of the host's context windows of it:
    some frames of a video, or some images of a batch.

    options: the model options, which say how the windows are made and which one is sampled.
    """
    window = options.get("transformer_options", {}).get("context_window")
    if window is None or options.get("context_handler") is None:
        return mask
    dim, whole = window.dim, shape[window.dim]
    if mask.shape[dim] == 1 or not len(window.index_list) < whole or window.total_frames > whole:
        return mask  # the same in all of them, or a window of an earlier run
    mask = window.get_tensor(mask, dim=dim)
    more = x.shape[dim] - mask.shape[dim]  # guide frames behind the window, whose prediction is not kept
    if more <= 0:
        return mask
    return torch.cat([mask, torch.zeros_like(mask.narrow(dim, 0, 1)).repeat_interleave(more, dim)], dim)
