"""The loss and margin plot, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..training.step_report import StepReport

_INK, _GRID, _FAINT, _LINE = (40, 40, 48), (226, 226, 230), (186, 200, 226), (30, 84, 180)
_ROWS = (
    ("loss", "loss"),
    ("margin", "margin (above 0: better than the base)"),
    ("gate", "gate (share of full rate)"),
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 900, 210, 78, 30, 14


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last `window` values at each position; shorter at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def _panel(
    draw: ImageDraw.ImageDraw, top: int, title: str, values: Sequence[float], smooth: Sequence[float], font
) -> None:
    left, right, bottom = _LEFT, _WIDTH - 20, top + _HEIGHT - _TOP - _GAP
    low, high = float(np.percentile(values, 1)), float(np.percentile(values, 99))
    low, high = min(low, min(smooth), 0.0), max(high, max(smooth))
    if high - low < 1e-12:
        high = low + 1.0
    span = len(values) - 1 or 1

    def xy(i: int, value: float) -> tuple[float, float]:
        share = (min(max(value, low), high) - low) / (high - low)
        return left + i / span * (right - left), bottom - share * (bottom - top)

    draw.text((left, top - 20), title, fill=_INK, font=font)
    for share in (0, 0.5, 1):
        y = bottom - share * (bottom - top)
        draw.line([(left, y), (right, y)], fill=_GRID)
        draw.text((6, y - 7), f"{low + share * (high - low):.4g}", fill=_INK, font=font)
    if low < 0 < high:
        draw.line([xy(0, 0), xy(span, 0)], fill=(150, 150, 156))
    draw.line([xy(i, v) for i, v in enumerate(values)] or [(left, bottom)], fill=_FAINT)
    draw.line([xy(i, v) for i, v in enumerate(smooth)], fill=_LINE, width=2)
    x, y = xy(len(smooth) - 1, smooth[-1])
    draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=_LINE)


def loss_plot(reports: Sequence[StepReport]) -> np.ndarray:
    """Loss, and margin and gate where the objective has them, over the steps -> uint8 [H, W, 3]. Faint: each step
    (outer 1 % clipped); bold: the mean of the last twentieth."""
    rows = _ROWS if any(report.has_margin for report in reports) else _ROWS[:1]
    image = Image.new("RGB", (_WIDTH, len(rows) * _HEIGHT + 34), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=13)
    window = max(1, len(reports) // 20)
    for row, (name, title) in enumerate(rows):
        values = [getattr(r, name) for r in reports]
        _panel(draw, row * _HEIGHT + _TOP, title, values, smoothed(values, window), font)
    text = f"step 1 to {reports[-1].step}; bold: mean of the last {window}"
    draw.text((_LEFT, len(rows) * _HEIGHT + 6), text, fill=_INK, font=font)
    return np.asarray(image)
