"""Draws Toy World scenes: signed distance functions, antialiased over one pixel, no loops over images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .world import SHAPES, TOY, Scenes

SIZE = 32  # pixels of the canvas
PIXELS_PER_CELL = 8  # of the pictures users see: one cell is 8x8 pixels, as in the families they know

COLOUR_RGB = torch.tensor([
    [0.88, 0.12, 0.12], [1.00, 0.52, 0.05], [0.98, 0.88, 0.12], [0.10, 0.62, 0.20],
    [0.12, 0.30, 0.90], [0.52, 0.16, 0.72], [1.00, 0.50, 0.75],
])  # fmt: skip  # in the order of world.COLOURS
PATTERN_INK = 0.4  # of a sketch's paper, where its pattern is: so much of its ink
EYE_RGB = torch.tensor([0.06, 0.05, 0.08])


def _cover(distance: Tensor) -> Tensor:
    """Share of a pixel that lies inside, from the signed distance in pixels (negative inside)."""
    return (0.5 - distance).clamp(0, 1)


def _box(x: Tensor, y: Tensor, half_w: float, half_h: float) -> Tensor:
    return torch.maximum(x.abs() - half_w, y.abs() - half_h)


def _star(x: Tensor, y: Tensor, outer: float = 1.05, inner: float = 0.45) -> Tensor:
    sector = math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y), 2 * sector)
    angle = torch.minimum(angle, 2 * sector - angle)
    rho = torch.hypot(x, y)
    px, py = rho * angle.cos(), rho * angle.sin()
    ex, ey = inner * math.cos(sector) - outer, inner * math.sin(sector)
    return (ey * (px - outer) - ex * py) / math.hypot(ex, ey)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    lobes = torch.hypot(x.abs() - 0.44, y + 0.32) - 0.50
    tip = torch.maximum(x.abs() + y - 0.827, x.abs() - y - 0.76) / math.sqrt(2)
    return torch.minimum(lobes, tip)


def _shape_distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance [B, H, W] in units of the radius, for the plain shapes."""
    triangle = torch.maximum(y - 0.62, x.abs() * 0.866 - y * 0.5 - 0.50)
    cross = torch.minimum(_box(x, y, 0.95, 0.33), _box(x, y, 0.33, 0.95))
    shapes = torch.stack([
        torch.hypot(x, y) - 0.92, _box(x, y, 0.80, 0.80), triangle, _star(x, y), _heart(x, y), cross,
    ])  # fmt: skip
    return shapes[shape.clamp(max=len(SHAPES) - 2), torch.arange(len(shape))]


def _toy_layers(s: Scenes, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signed distances of a toy's silhouette, its accent parts (ears, belly) and its eyes."""
    at = (slice(None), None, None)
    stretch, ear = s.stretch[at], s.ear_size[at]
    body = torch.hypot(x, y / stretch) - 0.74
    ear_y = y + 0.62 * stretch
    round_ears = torch.hypot(x.abs() - 0.50, ear_y) - ear
    pointed = torch.maximum(ear_y, (x.abs() - 0.45).abs() * 0.9 - ear_y * 0.45 - ear)
    far = torch.full_like(body, 9.0)
    ears = torch.stack([far, round_ears, pointed])[s.ears, torch.arange(len(s))]
    belly = torch.hypot(x, (y - 0.34) / 0.9) - 0.36
    accent = torch.minimum(torch.maximum(ears, -body), belly)
    eyes = torch.hypot(x.abs() - 0.26, y + 0.22) - 0.13
    return torch.minimum(body, ears), accent, eyes


def _gradient(v: Tensor, *stops: tuple[float, tuple[float, float, float]]) -> Tensor:
    """Vertical colour gradient [H, W, 3] through (height, rgb) stops."""
    out = torch.tensor(stops[0][1]).expand(*v.shape, 3)
    for (a, ca), (b, cb) in zip(stops, stops[1:], strict=False):
        mix = ((v - a) / max(b - a, 1e-6)).clamp(0, 1)[..., None]
        out = out + mix * (torch.tensor(cb) - torch.tensor(ca))
    return out


def _backgrounds() -> Tensor:
    """All backgrounds [K, H, W, 3] in the order of world.BACKGROUNDS."""
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    v = y / SIZE

    def disc(image: Tensor, cx: float, cy: float, r: float, rgb: tuple[float, float, float]) -> Tensor:
        cover = _cover(torch.hypot(x - cx, y - cy) - r)[..., None]
        return image * (1 - cover) + cover * torch.tensor(rgb)

    white = _gradient(v, (0.0, (0.97, 0.97, 0.97)), (1.0, (0.90, 0.90, 0.92)))
    sky = _gradient(v, (0.0, (0.38, 0.66, 0.95)), (1.0, (0.72, 0.88, 1.00)))
    for cx, cy, r in (
        (5, 5, 2.6),
        (8.5, 4.5, 3.4),
        (12, 5.2, 2.4),
        (22, 27, 2.6),
        (25.5, 26.5, 3.4),
        (29, 27.2, 2.6),
    ):
        sky = disc(sky, cx, cy, r, (1.0, 1.0, 1.0))
    grass = _gradient(
        v,
        (0.0, (0.62, 0.84, 0.98)),
        (0.52, (0.80, 0.93, 1.00)),
        (0.56, (0.45, 0.75, 0.28)),
        (1.0, (0.24, 0.52, 0.14)),
    )
    night = _gradient(v, (0.0, (0.03, 0.04, 0.16)), (1.0, (0.13, 0.12, 0.32)))
    night = disc(night, 26, 5.5, 3.2, (0.98, 0.96, 0.80))
    for cx, cy in ((4, 4), (11, 7), (17, 3), (7, 12), (29, 14), (3, 27), (27, 26), (15, 29)):
        night = disc(night, cx, cy, 0.7, (0.95, 0.95, 1.0))
    beach = _gradient(
        v, (0.0, (0.60, 0.85, 0.98)), (0.36, (0.80, 0.94, 1.00)), (0.39, (0.10, 0.50, 0.76)),
        (0.58, (0.22, 0.66, 0.82)), (0.62, (0.95, 0.85, 0.60)), (1.0, (0.86, 0.72, 0.44)),
    )  # fmt: skip
    sunset = _gradient(
        v, (0.0, (0.36, 0.18, 0.48)), (0.45, (0.92, 0.42, 0.38)), (0.72, (1.00, 0.72, 0.36)),
        (0.75, (0.30, 0.14, 0.26)), (1.0, (0.18, 0.08, 0.18)),
    )  # fmt: skip
    return torch.stack([white, sky, grass, night, beach, sunset])


_BACKGROUND_IMAGES = _backgrounds()


def _patterns() -> Tensor:
    """Where each pattern has ink, [K, H, W] of 0 and 1, in the order of world.PATTERNS. All of them lie flat: of other
    patterns of the same coarseness (upright, checked, dotted, hatched) a LoRA of a thousand steps learns little."""
    y = torch.arange(SIZE)[:, None].expand(SIZE, SIZE)
    bands, high_bands, stripes = (y + 4) // 8 % 2, y // 8 % 2, y // 4 % 2
    return torch.stack([bands, high_bands, stripes]).float()


PATTERN_IMAGES = _patterns()


def _luminance(rgb: Tensor) -> Tensor:
    return (rgb * torch.tensor([0.299, 0.587, 0.114])).sum(-1, keepdim=True)


def render(scenes: Scenes) -> Tensor:
    """Draw B scenes -> images [B, 3, 32, 32] in -1..1 (the latents of the Toy World)."""
    at = (slice(None), None, None)
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    dx, dy = x - scenes.centre[:, 0][at], y - scenes.centre[:, 1][at]
    cos, sin, r = scenes.rotation.cos()[at], scenes.rotation.sin()[at], scenes.radius[at]
    px, py = (cos * dx + sin * dy) / r, (cos * dy - sin * dx) / r

    silhouette, accent, eyes = _toy_layers(scenes, px, py)
    is_toy = (scenes.shape == TOY)[at]
    distance = torch.where(is_toy, silhouette, _shape_distance(scenes.shape, px, py)) * r
    far = torch.full_like(distance, 9.0)
    accent, eyes = torch.where(is_toy, accent * r, far), torch.where(is_toy, eyes * r, far)

    rgb = torch.where(
        is_toy[..., None], scenes.body_rgb[:, None, None], COLOUR_RGB[scenes.colour][:, None, None]
    )
    rgb = torch.lerp(rgb, scenes.accent_rgb[:, None, None], _cover(accent)[..., None])
    rgb = torch.lerp(rgb, EYE_RGB.expand_as(rgb), _cover(eyes)[..., None])
    background = _BACKGROUND_IMAGES[scenes.background]
    cover = _cover(distance)[..., None]
    flat = torch.lerp(background, rgb, cover)

    line = torch.lerp(background, torch.zeros_like(background), _cover(distance - 1.6)[..., None])
    outline = torch.lerp(line, rgb, _cover(distance)[..., None])
    glow = torch.exp(-((distance.clamp(min=0) / 2.5) ** 2))[..., None]
    bright = rgb / rgb.amax(-1, keepdim=True).clamp(min=0.2)
    neon = background * 0.22 * (1 - glow) + bright * glow * 0.75
    neon = torch.lerp(neon, 0.35 * bright, _cover(distance + 1.6)[..., None])
    neon = torch.lerp(neon, EYE_RGB.expand_as(neon), _cover(eyes)[..., None])
    pastel = 0.42 * flat + 0.58
    tone = ((_luminance(outline) - 0.05) / 0.9).clamp(0, 1)
    printed = scenes.ink_rgb[:, None, None] + tone * (scenes.paper_rgb - scenes.ink_rgb)[:, None, None]

    ink, paper = (colour[:, None, None].expand_as(rgb) for colour in (scenes.ink_rgb, scenes.paper_rgb))
    patterned = torch.lerp(paper, ink, PATTERN_INK * PATTERN_IMAGES[scenes.pattern][..., None])
    sketch = torch.lerp(patterned, ink, _cover(distance - scenes.line[at])[..., None])
    sketch = torch.lerp(sketch, rgb, cover)

    styles = torch.stack([flat, outline, neon, pastel, printed, sketch])
    image = styles[scenes.style, torch.arange(len(scenes))]
    return image.permute(0, 3, 1, 2) * 2 - 1
