"""Aspect-ratio buckets: which size a picture is trained at, and the picture brought to that size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DCOError

# Enlarging anything smaller to a bucket teaches the model blur.
MIN_SIDE = 16
MAX_RATIO = 4  # of the edges of a bucket


@dataclass(frozen=True)
class BucketedImage:
    """A picture at its bucket's size, with what SDXL is told about how it got there (all in pixels).

    image: [height, width, 3].
    mask: [height, width] in 0..1, or None.
    original_size: (height, width) of the picture before resizing.
    crop: (top, left) cut off after resizing.
    """

    image: Tensor
    mask: Tensor | None
    original_size: tuple[int, int]
    crop: tuple[int, int]

    @property
    def target_size(self) -> tuple[int, int]:
        """(height, width) of image."""
        return self.image.shape[0], self.image.shape[1]


def bucket_step(resolution: int) -> int:
    """What both edges of a bucket are multiples of, in pixels: 64 from 512 px up, about an eighth below."""
    return 64 if resolution >= 512 else max(8, resolution // 8 // 8 * 8)


def bucket_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """(width, height) in pixels of the bucket for a picture of width x height.

    Among the sizes whose edges are multiples of bucket_step, whose area is at most resolution**2 but would not be with
    one more step on either edge, and whose edges differ by at most the factor MAX_RATIO: the one whose aspect ratio is
    nearest to the picture's in log space; of several, the largest. The largest square is always among them. (1920 x
    1080 becomes 1344 x 768 at 1024, as in SDXL's own buckets.)

    Raises DCOError for edges below 1 and a resolution below a step.
    """
    if width < 1 or height < 1:
        raise DCOError(f"A picture of {width} x {height} px has no aspect ratio: use edges of 1 px or more.")
    step = bucket_step(resolution)
    if step > resolution:
        raise DCOError(f"No bucket of resolution {resolution} has edges of whole steps of {step} px: use a higher one.")

    # Only landscape is searched, so that a picture and its rotation always get the same bucket rotated; and in
    # fractions, because rounding would decide ties.
    ratio = min(Fraction(max(width, height), min(width, height)), Fraction(MAX_RATIO))
    area = resolution**2 // step**2
    best: tuple[Fraction, int] | None = None
    long, short = 1, 1
    side = math.isqrt(area)
    for columns in range(side, min(area, math.isqrt(MAX_RATIO * area)) + 1):
        # only the shapes that cannot grow on either edge, and the square: a handful for each number of columns
        most = min(columns, area // columns)
        for rows in range(min(most, area // (columns + 1) + 1), most + 1):
            if columns > MAX_RATIO * rows:
                continue
            found = Fraction(columns, rows)
            distance = max(found / ratio, ratio / found)
            if best is None or (distance, -columns * rows) < best:
                best, long, short = (distance, -columns * rows), columns, rows
    return (long * step, short * step) if width >= height else (short * step, long * step)


def fit(image: Tensor, size: tuple[int, int], mask: Tensor | None = None) -> BucketedImage:
    """Resize the picture until it just covers `size`, and crop what sticks out, alike on both sides; a picture that
    already has the size comes back bit for bit.

    image: [H, W, C], floating point in 0..1. C is 1 (grey), 3 (RGB) or 4 (RGBA, which is put on white).
    size: (width, height) in pixels.
    mask: [h, w] of any resolution, stretched over the whole picture and cropped with it.

    Raises DCOError for other shapes, for integer pixels, for a shorter edge below MIN_SIDE, and for NaN or
    infinity.
    """
    width, height = size
    if width < 1 or height < 1:
        raise DCOError(f"The size to fit is {width} x {height} px: use edges of 1 px or more.")
    image = _rgb(image)
    rows, columns = image.shape[:2]

    # Integers, so that the edge that decides the scale is met exactly and only the other one is cut.
    if width * rows >= height * columns:
        resized = (max(height, round(Fraction(rows * width, columns))), width)
    else:
        resized = (height, max(width, round(Fraction(columns * height, rows))))
    top, left = (resized[0] - height) // 2, (resized[1] - width) // 2
    window = (..., slice(top, top + height), slice(left, left + width))

    cropped = _resize(image.movedim(-1, 0), resized)[window].movedim(0, -1).contiguous()
    if mask is not None:
        planes = _resize(_plane(mask), (rows, columns))
        mask = _resize(planes, resized)[window][0].contiguous()
    return BucketedImage(cropped, mask, (rows, columns), (top, left))


def latent_mask(mask: Tensor | None, latent: Tensor) -> Tensor | None:
    """A picture's mask [H, W] at the size of its latent [..., h, w]: each cell's mean."""
    if mask is None:
        return None
    return F.interpolate(mask[None, None].float(), size=latent.shape[-2:], mode="area")[0, 0]


def _rgb(image: Tensor) -> Tensor:
    """The picture as float32 [H, W, 3], refused if it cannot be one."""
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
        raise DCOError(
            f"A picture has the shape {tuple(image.shape)}: "
            f"use one picture at a time, [height, width, channels] with 1, 3 or 4 channels."
        )
    rows, columns, channels = image.shape
    if min(rows, columns) < MIN_SIDE:
        raise DCOError(
            f"A picture of {columns} x {rows} px is too small to learn from: "
            f"use one whose shorter edge has at least {MIN_SIDE} px."
        )
    if not image.is_floating_point():
        raise DCOError(f"A picture has pixels of type {image.dtype}: convert them to floats in 0..1.")
    if not torch.isfinite(image).all():
        raise DCOError(
            f"A picture of {columns} x {rows} px has NaN or infinite pixels: replace it or load it again."
        )
    image = image.float()
    if channels == 4:
        alpha = image[..., 3:]
        return image[..., :3] * alpha + (1 - alpha)
    return image.expand(-1, -1, 3)


def _plane(mask: Tensor) -> Tensor:
    """The mask as float32 [1, h, w] in 0..1, refused if it cannot be one."""
    if mask.ndim != 2 or not mask.numel():
        raise DCOError(
            f"A mask has the shape {tuple(mask.shape)}: use one mask per picture, [height, width], not empty."
        )
    if not torch.isfinite(mask).all():
        raise DCOError(
            f"A mask of {mask.shape[1]} x {mask.shape[0]} px has NaN or infinite values: draw it again."
        )
    return mask.float().clamp(0, 1)[None]


def _resize(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """[C, h, w] resampled to `size` (height, width); untouched where it has that size."""
    if tuple(planes.shape[1:]) == size:
        return planes
    return F.interpolate(planes[None], size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)
