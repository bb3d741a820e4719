"""Two scores against each other, a curve a method: the paper's Fig. 1, 5, 8 and 9, drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import DCOError
from .axes import Axis, nice_axis
from .point_labels import Box, Point, place_labels
from .text import wrapped

_INK, _SOFT, _GRID = (34, 34, 40), (96, 96, 104), (230, 230, 233)
# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is left out: it is too pale on white.
COLOURS = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (70, 70, 78),
    (128, 64, 160),
)  # fmt: skip
# Regular polygons: corners, rotation in degrees; 0 corners is a circle. Seven against eight colours: 56 curves differ.
SHAPES = ((0, 0), (4, 45), (3, -90), (4, 0), (3, 90), (5, -90), (6, 0))
_FINE = 2  # drawn at twice the size and reduced: smooth edges
_WIDTH, _HEIGHT = 760, 560  # of the plotting area, in pixels of the result
_LEFT, _TOP, _BOTTOM, _GAP, _LEGEND = 84, 56, 64, 26, 250


@dataclass(frozen=True)
class Curve:
    """One method. points: (x, y), connected in this order. spread: half lengths (x, y) of the error bars of each
    point. markers: a small text for each point, such as its w_rg; "" for none. apart: points beside the curve, drawn
    hollow, as the paper's diamonds for plain guidance."""

    label: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[tuple[float, float]] | None = None
    markers: Sequence[str] | None = None
    apart: Sequence[tuple[float, float]] = ()


def pareto_plot(curves: Sequence[Curve], title: str, x_label: str, y_label: str) -> np.ndarray:
    """The plot, uint8 [H, W, 3]; up and to the right is better. The legend has a column of its own beside the plot.
    DCOError for no curve, for a curve without points, for a number that is not finite and for lists whose lengths
    differ."""
    _check(curves)
    x_axis, y_axis = (_axis(curves, i) for i in (0, 1))
    return _Plot(curves, x_axis, y_axis, title).draw(x_label, y_label)


def _check(curves: Sequence[Curve]) -> None:
    if not curves:
        raise DCOError("There is no curve to plot: give at least one method with its scores.")
    for curve in curves:
        if not curve.points:
            raise DCOError(f'The curve "{curve.label}" has no points: give it at least one pair of scores.')
        for name, values in (("error bars", curve.spread), ("texts", curve.markers)):
            if values is not None and len(values) != len(curve.points):
                raise DCOError(
                    f'The curve "{curve.label}" has {len(curve.points)} points and {len(values)} {name}: '
                    "give one to each point."
                )
        for point in (*curve.points, *(curve.spread or ()), *curve.apart):
            if not all(map(math.isfinite, point)):
                raise DCOError(
                    f'The curve "{curve.label}" has the point ({point[0]:g}, {point[1]:g}), which cannot be drawn: '
                    "leave it out, or find out why the score is not finite."
                )


def _axis(curves: Sequence[Curve], i: int) -> Axis:
    ends = []
    for curve in curves:
        spread = curve.spread or [(0.0, 0.0)] * len(curve.points)
        for point, half in zip(curve.points, spread, strict=True):
            ends += [point[i] - abs(half[i]), point[i] + abs(half[i])]
        ends += [point[i] for point in curve.apart]
    return nice_axis(min(ends), max(ends))


class _Plot:
    """All lengths here are in fine pixels, _FINE to one of the result."""

    def __init__(self, curves: Sequence[Curve], x_axis: Axis, y_axis: Axis, title: str):
        self._curves, self._x, self._y = curves, x_axis, y_axis
        self._font, self._small, self._large = (
            ImageFont.load_default(size=_FINE * size) for size in (14, 11, 19)
        )
        self._title = wrapped(title, self._large, _FINE * (_WIDTH + _GAP + _LEGEND))
        self._legend = [wrapped(curve.label, self._font, _FINE * (_LEGEND - 44)) for curve in curves]
        self._left, self._top = _FINE * _LEFT, _FINE * (_TOP + 26 * (len(self._title) - 1))
        self._right, self._bottom = self._left + _FINE * _WIDTH, self._top + _FINE * _HEIGHT

    def draw(self, x_label: str, y_label: str) -> np.ndarray:
        legend = _FINE * (12 + sum(18 * len(lines) + 8 for lines in self._legend))
        width = self._right + _FINE * (_GAP + _LEGEND)
        height = max(self._bottom + _FINE * _BOTTOM, self._top + legend)
        self._image = Image.new("RGB", (width, height), "white")
        self._pen = ImageDraw.Draw(self._image)
        self._draw_axes(x_label, y_label)
        for i in range(len(self._curves)):
            self._draw_error_bars(i)
        for i in range(len(self._curves)):
            self._draw_line(i)
        for i, curve in enumerate(self._curves):
            for point in curve.points:
                self._draw_symbol(i, *self._at(point))
            for point in curve.apart:
                self._draw_symbol(i, *self._at(point), hollow=True)
        self._draw_point_labels()
        self._draw_legend()
        return np.asarray(self._image.resize((width // _FINE, height // _FINE), Image.Resampling.LANCZOS))

    def _at(self, point: tuple[float, float]) -> tuple[float, float]:
        return (
            self._left + self._x.share(point[0]) * (self._right - self._left),
            self._bottom - self._y.share(point[1]) * (self._bottom - self._top),
        )

    def _draw_axes(self, x_label: str, y_label: str) -> None:
        pen, gap = self._pen, _FINE * 8
        for tick, text in self._x.ticks():
            x = self._at((tick, self._y.low))[0]
            pen.line([(x, self._top), (x, self._bottom)], fill=_GRID, width=_FINE)
            pen.text((x, self._bottom + gap), text, fill=_SOFT, font=self._font, anchor="mt")
        for tick, text in self._y.ticks():
            y = self._at((self._x.low, tick))[1]
            pen.line([(self._left, y), (self._right, y)], fill=_GRID, width=_FINE)
            pen.text((self._left - gap, y), text, fill=_SOFT, font=self._font, anchor="rm")
        pen.line(
            [(self._left, self._top), (self._left, self._bottom), (self._right, self._bottom)],
            fill=_INK, width=_FINE,
        )  # fmt: skip
        for line, text in enumerate(self._title):
            pen.text(
                (self._left, _FINE * (_TOP - 16 + 26 * line)), text, fill=_INK, font=self._large, anchor="ls"
            )
        middle = (self._left + self._right) // 2
        pen.text((middle, self._bottom + 5 * gap), x_label, fill=_INK, font=self._font, anchor="mm")
        self._draw_upright(y_label)

    def _draw_upright(self, text: str) -> None:
        size = (int(self._font.getlength(text)) + _FINE, _FINE * 20)
        label = Image.new("RGB", size, "white")
        ImageDraw.Draw(label).text((0, size[1] // 2), text, fill=_INK, font=self._font, anchor="lm")
        turned = label.rotate(90, expand=True)
        self._image.paste(turned, (_FINE * 6, (self._top + self._bottom - turned.height) // 2))

    def _error_bars(self, i: int) -> list[tuple[Point, Point]]:
        """Both ends of each bar of a curve."""
        bars = []
        for (x, y), (half_x, half_y) in zip(
            self._curves[i].points, self._curves[i].spread or (), strict=False
        ):
            if half_x:
                bars.append((self._at((x - abs(half_x), y)), self._at((x + abs(half_x), y))))
            if half_y:
                bars.append((self._at((x, y - abs(half_y))), self._at((x, y + abs(half_y)))))
        return bars

    def _draw_error_bars(self, i: int) -> None:
        colour, cap = _paler(COLOURS[i % len(COLOURS)], 0.55), _FINE * 4
        for a, b in self._error_bars(i):
            dx, dy = (0, cap) if a[1] == b[1] else (cap, 0)
            self._pen.line([a, b], fill=colour, width=_FINE)
            for x, y in (a, b):
                self._pen.line([(x - dx, y - dy), (x + dx, y + dy)], fill=colour, width=_FINE)

    def _draw_line(self, i: int) -> None:
        points = [self._at(point) for point in self._curves[i].points]
        if len(points) > 1:
            self._pen.line(
                points, fill=_paler(COLOURS[i % len(COLOURS)], 0.25), width=2 * _FINE, joint="curve"
            )

    def _draw_symbol(self, i: int, x: float, y: float, hollow: bool = False) -> None:
        corners, turn = SHAPES[i % len(SHAPES)]
        colour, radius = COLOURS[i % len(COLOURS)], _FINE * (5 if corners == 0 else 6)
        if hollow:
            corners = corners or 32  # a circle
            self._pen.regular_polygon((x, y, radius + _FINE), corners, turn + 90, fill=colour)
            self._pen.regular_polygon((x, y, radius - _FINE), corners, turn + 90, fill="white")
            return
        if corners == 0:
            box = [x - radius, y - radius, x + radius, y + radius]
            self._pen.ellipse(box, fill=colour, outline="white", width=_FINE)
        else:
            self._pen.regular_polygon((x, y, radius + _FINE), corners, turn + 90, fill="white")
            self._pen.regular_polygon((x, y, radius), corners, turn + 90, fill=colour)

    def _draw_point_labels(self) -> None:
        symbols = [self._at(point) for curve in self._curves for point in (*curve.points, *curve.apart)]
        lines = [
            (self._at(a), self._at(b))
            for curve in self._curves
            for a, b in zip(curve.points, curve.points[1:], strict=False)
        ]
        lines += [bar for i in range(len(self._curves)) for bar in self._error_bars(i)]
        wanted = [
            (self._at(point), text, i)
            for i, curve in enumerate(self._curves)
            for point, text in zip(curve.points, curve.markers or (), strict=False)
            if text
        ]
        sizes = [(self._small.getlength(text), _FINE * 11.0) for _, text, _ in wanted]
        area = Box(self._left, self._top, self._right, self._bottom)
        places = place_labels([at for at, _, _ in wanted], sizes, symbols, lines, area, _FINE * 9.0)
        for (at, text, i), box in zip(wanted, places, strict=True):
            colour = _darker(COLOURS[i % len(COLOURS)])
            middle = ((box.left + box.right) / 2, (box.top + box.bottom) / 2)
            edge = (min(max(at[0], box.left), box.right), min(max(at[1], box.top), box.bottom))
            if math.dist(at, edge) > _FINE * 22:  # too far to be seen as this point's
                self._pen.line([at, edge], fill=_paler(colour, 0.5), width=_FINE // 2)
            self._pen.text(
                middle,
                text,
                fill=colour,
                font=self._small,
                anchor="mm",
                stroke_width=_FINE,
                stroke_fill="white",
            )

    def _draw_legend(self) -> None:
        x, y = self._right + _FINE * _GAP, self._top + _FINE * 12
        for i, lines in enumerate(self._legend):
            if len(self._curves[i].points) > 1:
                colour = _paler(COLOURS[i % len(COLOURS)], 0.25)
                self._pen.line([(x, y), (x + _FINE * 28, y)], fill=colour, width=2 * _FINE)
            self._draw_symbol(i, x + _FINE * 14, y)
            for line in lines:
                self._pen.text((x + _FINE * 38, y), line, fill=_INK, font=self._font, anchor="lm")
                y += _FINE * 18
            y += _FINE * 8


def _paler(colour: tuple[int, ...], by: float) -> tuple[int, ...]:
    return tuple(round(c + (255 - c) * by) for c in colour)


def _darker(colour: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(round(0.7 * c) for c in colour)
