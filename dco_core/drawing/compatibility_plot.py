"""The picture of a compatibility report."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..merging.compatibility import Compatibility

_INK, _GRID, _BAR, _BELOW = (40, 40, 48), (226, 226, 230), (30, 84, 180), (196, 84, 48)
_WIDTH, _LEFT, _RIGHT, _LINE, _HEAD = 900, 150, 80, 20, 40


def compatibility_plot(found: Compatibility, title: str = "") -> np.ndarray:
    """Bars of the column cosine per kind of layer (the paper's Fig. 10), and of cross-talk and norm ratio per block,
    uint8 [H, W, 3]."""
    blocks = found.by_block()
    panels = [
        ("column cosine by kind of layer (-1 to 1)", found.by_kind(), (-1.0, 1.0)),
        ("cross-talk by block (0 to 1)", {b: f.cross_talk for b, f in blocks.items()}, (0.0, 1.0)),
        (
            "log2 of the norm ratio, first over second, by block (-4 to 4)",
            {b: float(np.log2(f.norm_a / f.norm_b)) for b, f in blocks.items() if f.norm_a and f.norm_b},
            (-4.0, 4.0),
        ),
    ]
    height = 36 + sum(_HEAD + _LINE * max(1, len(values)) for _, values, _ in panels)
    image = Image.new("RGB", (_WIDTH, height), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=13)
    draw.text((12, 10), title, fill=_INK, font=font)
    top = 36
    for name, values, span in panels:
        top = _panel(draw, font, top, name, values, span)
    return np.asarray(image)


def _panel(
    draw: ImageDraw.ImageDraw, font, top: int, name: str, values: dict[str, float], span: tuple[float, float]
) -> int:
    """Horizontal bars under a heading; returns where the next panel begins."""
    low, high = span
    right = _WIDTH - _RIGHT

    def x(value: float) -> float:
        return _LEFT + (min(max(value, low), high) - low) / (high - low) * (right - _LEFT)

    draw.text((12, top + 8), name, fill=_INK, font=font)
    top += _HEAD - 8
    bottom = top + _LINE * max(1, len(values))
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = _LEFT + share * (right - _LEFT)
        draw.line([(at, top), (at, bottom)], fill=_GRID)
    if not values:
        draw.text((_LEFT, top), "no layer in common", fill=_INK, font=font)
    for row, (label, value) in enumerate(values.items()):
        y = top + row * _LINE
        draw.text((12, y + 2), label, fill=_INK, font=font)
        ends = sorted((x(0.0), x(value)))
        draw.rectangle(
            [ends[0], y + 4, max(ends[1], ends[0] + 1), y + _LINE - 4], fill=_BAR if value >= 0 else _BELOW
        )
        draw.text((right + 8, y + 2), f"{value:+.3f}", fill=_INK, font=font)
    return bottom + 8
