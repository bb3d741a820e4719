"""The six backgrounds of the Toy World, one picture each."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .canvas import SIZE, cover, pixels

Rgb = tuple[float, float, float]


def _gradient(v: Tensor, *stops: tuple[float, Rgb]) -> Tensor:
    """Vertical colour gradient [H, W, 3] through (height, rgb) stops."""
    out = torch.tensor(stops[0][1]).expand(*v.shape, 3)
    for (a, ca), (b, cb) in zip(stops, stops[1:], strict=False):
        mix = ((v - a) / max(b - a, 1e-6)).clamp(0, 1)[..., None]
        out = out + mix * (torch.tensor(cb) - torch.tensor(ca))
    return out


def _paint(image: Tensor, distance: Tensor, rgb: Rgb, opacity: float = 1.0) -> Tensor:
    return torch.lerp(image, torch.tensor(rgb).expand_as(image), opacity * cover(distance)[..., None])


def _discs(image: Tensor, rgb: Rgb, *circles: tuple[float, float, float], opacity: float = 1.0) -> Tensor:
    """Paint the union of circles (x, y, radius)."""
    y, x = pixels()
    distances = [torch.hypot(x - cx, y - cy) - r for cx, cy, r in circles]
    return _paint(image, torch.stack(distances).amin(0), rgb, opacity)


@functools.cache
def backgrounds() -> Tensor:
    """All backgrounds [K, 64, 64, 3] in 0..1, in the order of world.BACKGROUNDS."""
    y, x = pixels()
    v = y / SIZE

    white = _gradient(v, (0.0, (0.98, 0.98, 0.98)), (0.78, (0.94, 0.94, 0.95)), (0.86, (0.88, 0.88, 0.90)),
                      (1.0, (0.92, 0.92, 0.94)))  # fmt: skip

    sky = _gradient(v, (0.0, (0.33, 0.62, 0.95)), (1.0, (0.72, 0.88, 1.00)))
    sky = _discs(
        sky,
        (1.0, 1.0, 1.0),
        (9, 11, 4.5),
        (15, 8.5, 6.5),
        (22, 11, 5),
        (48, 55, 4.5),
        (54, 52, 6),
        (60, 55, 4.5),
    )
    sky = _discs(sky, (1.0, 1.0, 1.0), (50, 13, 3), (54, 11, 4), (58, 13, 3), (6, 50, 3.5), (11, 48, 4.5), (16, 51, 3),
                 opacity=0.85)  # fmt: skip

    grass = _gradient(v, (0.0, (0.62, 0.84, 0.98)), (0.55, (0.84, 0.95, 1.00)))
    grass = _discs(grass, (1.0, 0.90, 0.40), (55, 9, 5))
    far_hill, near_hill = 32 + 3.5 * torch.sin(x / 9 + 1.0), 38 + 2.5 * torch.sin(x / 12 + 4.0)
    grass = _paint(grass, far_hill - y, (0.56, 0.80, 0.42))
    near = _gradient(v, (0.6, (0.40, 0.70, 0.24)), (1.0, (0.22, 0.50, 0.13)))
    grass = torch.lerp(grass, near, cover(near_hill - y)[..., None])
    grass = _discs(grass, (1.0, 0.95, 0.55), (5, 53, 1.3), (17, 60, 1.3), (40, 58, 1.3), (58, 50, 1.3), (50, 61, 1.3),
                   (29, 54, 1.3))  # fmt: skip

    night = _gradient(v, (0.0, (0.03, 0.04, 0.16)), (1.0, (0.14, 0.13, 0.34)))
    night = _discs(night, (0.98, 0.96, 0.80), (53, 11, 6.5))
    night = torch.lerp(night, _gradient(v, (0.0, (0.03, 0.04, 0.16)), (1.0, (0.14, 0.13, 0.34))),
                       cover(torch.hypot(x - 50, y - 9) - 5.5)[..., None])  # fmt: skip
    night = _discs(night, (0.95, 0.95, 1.0), (8, 8, 1.1), (22, 14, 1.1), (34, 6, 1.1), (13, 24, 1.1), (59, 29, 1.1),
                   (6, 54, 1.1), (54, 52, 1.1), (30, 59, 1.1), (42, 20, 0.8), (60, 60, 0.8), (18, 42, 0.8))  # fmt: skip

    beach = _gradient(
        v, (0.0, (0.60, 0.85, 0.98)), (0.36, (0.80, 0.94, 1.00)), (0.375, (0.10, 0.50, 0.76)),
        (0.6, (0.22, 0.68, 0.84)),
    )  # fmt: skip
    shore = 38.5 + 1.2 * torch.sin(x / 7)
    sand = _gradient(v, (0.6, (0.97, 0.88, 0.64)), (1.0, (0.88, 0.74, 0.46)))
    beach = _paint(beach, shore - 1.8 - y, (0.96, 0.99, 1.0))
    beach = torch.lerp(beach, sand, cover(shore - y)[..., None])
    beach = _discs(beach, (1.0, 0.93, 0.55), (10, 9, 5))
    sail = torch.maximum(torch.maximum(y - 22, 47 - x), (x - 47) - (y - 11) * 0.6)
    beach = _paint(beach, sail, (1.0, 1.0, 1.0))
    beach = _paint(
        beach, torch.maximum((y - 23.8).abs() - 1.3, (x - 49).abs() - 5 + (y - 23.8)), (0.75, 0.25, 0.2)
    )

    sunset = _gradient(v, (0.0, (0.36, 0.18, 0.48)), (0.45, (0.92, 0.42, 0.38)), (0.74, (1.00, 0.74, 0.36)))
    sunset = _discs(sunset, (1.0, 0.86, 0.45), (32, 44, 12))
    land = 48 + 1.8 * torch.sin(x / 8 + 2)
    dusk = _gradient(v, (0.75, (0.32, 0.14, 0.28)), (1.0, (0.18, 0.08, 0.18)))
    sunset = torch.lerp(sunset, dusk, cover(land - y)[..., None])
    return torch.stack([white, sky, grass, night, beach, sunset])
