"""Draws Toy World scenes: signed distance functions, antialiased over one pixel, no loops over images, on the device
where the scenes are."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .backgrounds import backgrounds
from .canvas import cover, pixels
from .world import SHAPES, TOY, Scenes

COLOUR_RGB = torch.tensor([
    [0.88, 0.12, 0.12], [1.00, 0.52, 0.05], [0.98, 0.88, 0.12], [0.10, 0.62, 0.20],
    [0.12, 0.30, 0.90], [0.52, 0.16, 0.72], [1.00, 0.50, 0.75],
])  # fmt: skip  # in the order of world.COLOURS
EYE_RGB = torch.tensor([0.06, 0.05, 0.08])
FAR = 99.0
OUTLINE = 2.8  # pixels
SCREEN = 8  # pixels: period of a print's pattern


@functools.cache
def constants(device: torch.device) -> tuple[Tensor, ...]:
    """What `draw` needs on a device: pixel centres, colours, backgrounds and the screens of prints, on a device."""
    y, x = pixels()
    return tuple(c.to(device) for c in (y, x, COLOUR_RGB, EYE_RGB, backgrounds(), _screens(y, x)))


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
    kinds = torch.stack([
        torch.hypot(x, y) - 0.92, _box(x, y, 0.80, 0.80), triangle, _star(x, y), _heart(x, y), cross,
    ])  # fmt: skip
    return kinds[shape.clamp(max=len(SHAPES) - 2), torch.arange(len(shape), device=shape.device)]


def _toy_layers(s: Scenes, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Signed distances of a toy's silhouette, its accent parts (ears, belly), its face and the light in its eyes."""
    at = (slice(None), None, None)
    stretch, ear, mirrored = s.stretch[at], s.ear_size[at], x.abs()
    body = torch.hypot(x, y / stretch) - 0.74
    feet = torch.hypot(mirrored - 0.36, (y - 0.70 * stretch) / 0.75) - 0.22
    ear_y = y + 0.62 * stretch
    round_ears = torch.hypot(mirrored - 0.50, ear_y) - ear
    pointed = torch.maximum(ear_y, (mirrored - 0.45).abs() * 0.9 - ear_y * 0.45 - ear)
    far = torch.full_like(body, FAR)
    ears = torch.stack([far, round_ears, pointed])[s.ears, torch.arange(len(s), device=x.device)]
    belly = torch.hypot(x, (y - 0.34) / 0.9) - 0.36
    accent = torch.minimum(torch.maximum(ears, -body), belly)
    eyes = torch.hypot(mirrored - 0.27, y + 0.24) - 0.14
    smile = torch.maximum((torch.hypot(x, y + 0.16) - 0.14).abs() - 0.035, -0.08 - y)
    light = torch.hypot(mirrored - 0.27 - 0.05, y + 0.30) - 0.05
    return torch.minimum(torch.minimum(body, feet), ears), accent, torch.minimum(eyes, smile), light


def _screens(y: Tensor, x: Tensor) -> Tensor:
    """Distance [K, H, W] of every pixel to the nearest mark of a print's pattern, in pixels; in the order of
    world.PATTERNS."""

    def gap(v: Tensor, period: float) -> Tensor:
        v = torch.remainder(v, period)
        return torch.minimum(v, period - v)

    # rows of dots half a period apart, each moved by half a period against the last
    even = torch.hypot(gap(x - 2, SCREEN), gap(y - 2, SCREEN))
    odd = torch.hypot(gap(x - 6, SCREEN), gap(y - 6, SCREEN))
    stripes = gap(x + y, SCREEN) / math.sqrt(2)
    checks = torch.minimum(gap(x - 4, SCREEN), gap(y - 4, SCREEN))
    return torch.stack([torch.minimum(even, odd), stripes, checks])


def _luminance(rgb: Tensor) -> Tensor:
    return (rgb * torch.tensor([0.299, 0.587, 0.114], device=rgb.device)).sum(-1)


def _ground(scenes: Scenes, background: Tensor, screens: Tensor) -> Tensor:
    """The ground of a print [B, H, W, 3]: the darker the background, the broader the ink's marks on the paper."""
    dark = (1.02 - _luminance(background)).clamp(0, 1)
    kind = scenes.pattern[:, None, None]
    # the half widths at which marks of a kind cover about the same share of the paper
    broad = torch.where(
        kind == 0, 0.5 + 1.9 * dark, torch.where(kind == 1, 0.35 + 1.5 * dark, 0.3 + 1.7 * dark)
    )
    marks = cover(screens[scenes.pattern] - broad)
    paper, ink = scenes.paper_rgb[:, None, None], scenes.ink_rgb[:, None, None]
    tinted = torch.lerp(paper.expand_as(background), ink.expand_as(background), 0.30 * dark[..., None])
    return torch.lerp(tinted, ink.expand_as(background), 0.80 * marks[..., None])


def render(scenes: Scenes) -> Tensor:
    """Draw B scenes -> images [B, 3, 64, 64] in -1..1 (the latents of the Toy World)."""
    return draw(scenes, *constants(scenes.shape.device))


def draw(
    scenes: Scenes, y: Tensor, x: Tensor, colours: Tensor, dark: Tensor, grounds: Tensor, screens: Tensor
) -> Tensor:
    """`render` with its constants handed over, which torch.compile makes few kernels of."""
    at = (slice(None), None, None)
    dx, dy = x - scenes.centre[:, 0][at], y - scenes.centre[:, 1][at]
    cos, sin, r = scenes.rotation.cos()[at], scenes.rotation.sin()[at], scenes.radius[at]
    px, py = (cos * dx + sin * dy) / r, (cos * dy - sin * dx) / r

    is_toy = (scenes.shape == TOY)[at]
    layers = [layer * r for layer in _toy_layers(scenes, px, py)]
    distance = torch.where(is_toy, layers[0], _shape_distance(scenes.shape, px, py) * r)
    accent, face, light = (torch.where(is_toy, layer, FAR) for layer in layers[1:])

    rgb = torch.where(
        is_toy[..., None], scenes.body_rgb[:, None, None], colours[scenes.colour][:, None, None]
    )
    rgb = torch.lerp(rgb, scenes.accent_rgb[:, None, None], cover(accent)[..., None])
    rgb = torch.lerp(rgb, dark.expand_as(rgb), cover(face)[..., None])
    rgb = torch.lerp(rgb, torch.ones_like(rgb), 0.9 * cover(light)[..., None])
    background = grounds[scenes.background]
    inside, lined = cover(distance)[..., None], cover(distance - OUTLINE)[..., None]
    flat = torch.lerp(background, rgb, inside)

    outline = torch.lerp(torch.lerp(background, torch.zeros_like(background), lined), rgb, inside)
    glow = torch.exp(-((distance.clamp(min=0) / 5) ** 2))[..., None]
    bright = rgb / rgb.amax(-1, keepdim=True).clamp(min=0.2)
    neon = background * 0.22 * (1 - glow) + bright * glow * 0.75
    neon = torch.lerp(neon, 0.35 * bright, cover(distance + 3.2)[..., None])
    neon = torch.lerp(neon, dark.expand_as(neon), cover(face)[..., None])
    pastel = 0.42 * flat + 0.58
    ground = _ground(scenes, background, screens)
    printed = torch.lerp(
        torch.lerp(ground, scenes.ink_rgb[:, None, None].expand_as(ground), lined), rgb, inside
    )

    styles = torch.stack([flat, outline, neon, pastel, printed])
    image = styles[scenes.style, torch.arange(len(scenes), device=x.device)]
    return image.permute(0, 3, 1, 2) * 2 - 1
