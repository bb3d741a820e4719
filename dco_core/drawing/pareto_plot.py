"""Two scores against each other, a curve a method: the paper's Fig. 1, 5, 8 and 9."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DCOError
from . import figure as charts
from .point_labels import Box, Point, place_labels
from .text import wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Seven against eight colours: 56 curves differ. Size in points: so that all look as large.
SHAPES = (("o", 7.0), ("D", 6.2), ("^", 7.8), ("s", 6.6), ("v", 7.8), ("p", 8.2), ("h", 8.2))
_PLOT = 4.6  # height of the plotting area with its axis, in inches
_LINE = charts.TEXT * 1.3 / 72  # of the legend, in inches


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
    """`pareto_figure` as pixels, uint8 [H, W, 3]."""
    return charts.to_array(pareto_figure(curves, title, x_label, y_label))


def pareto_figure(curves: Sequence[Curve], title: str, x_label: str, y_label: str) -> Figure:
    """The plot; up and to the right is better. The legend is below it.
    DCOError for no curve, for a curve without points, for a number that is not finite and for lists whose lengths
    differ."""
    _check(curves)
    figure = charts.new_figure(_PLOT)
    legend, columns = _legend_labels(figure, curves)
    lines = sum(
        max(label.count("\n") + 1 for label in legend[i::rows])
        for rows in [math.ceil(len(legend) / columns)]
        for i in range(rows)
    )
    heading = wrapped(title, charts.text_width(figure, charts.TITLE), charts.WIDTH - 0.2) if title.strip() else []
    figure.set_size_inches(charts.WIDTH, _PLOT + lines * _LINE + len(heading) * charts.TITLE * 1.3 / 72 + 0.2)
    if heading:
        figure.suptitle("\n".join(heading), x=0.015, ha="left", **charts.text_style(charts.TITLE))
    axes = figure.subplots()
    charts.style(axes, x_label, y_label)
    axes.set_xlim(*_span(curves, 0))
    axes.set_ylim(*_span(curves, 1))
    axes.locator_params(nbins=9, steps=[1, 2, 2.5, 5, 10])
    handles = [_draw_curve(axes, i, curve) for i, curve in enumerate(curves)]
    # set below: the legend would leave out names that begin with _
    drawn = figure.legend(
        handles, [str(i) for i in range(len(legend))], loc="outside lower left", ncols=columns, frameon=False,
        handlelength=2.2, borderaxespad=0.5, labelspacing=0.35, columnspacing=1.4,
    )  # fmt: skip
    for text, label in zip(drawn.get_texts(), legend, strict=True):
        text.set(text=label, **charts.text_style())
    charts.frozen(figure)
    _draw_point_labels(figure, axes, curves)
    return figure


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


def _legend_labels(figure: Figure, curves: Sequence[Curve]) -> tuple[list[str], int]:
    """The curves' names in lines, and in how many columns they stand."""
    width, handle = charts.text_width(figure, charts.TEXT), 0.62  # inches of the symbol and the gaps of a column
    widest = max(width(curve.label) for curve in curves)
    columns = max(1, min(3, len(curves), int((charts.WIDTH - 0.2) / (widest + handle)) or 2))
    room = (charts.WIDTH - 0.2) / columns - handle
    return ["\n".join(wrapped(curve.label, width, room)) for curve in curves], columns


def _span(curves: Sequence[Curve], i: int) -> tuple[float, float]:
    ends = []
    for curve in curves:
        spread = curve.spread or [(0.0, 0.0)] * len(curve.points)
        for point, half in zip(curve.points, spread, strict=True):
            ends += [point[i] - abs(half[i]), point[i] + abs(half[i])]
        ends += [point[i] for point in curve.apart]
    return charts.span(ends)


def _look(i: int) -> tuple[tuple[float, float, float], str, float]:
    """Colour, shape and size of the symbols of a curve."""
    return (charts.colour(charts.COLOURS[i % len(charts.COLOURS)]), *SHAPES[i % len(SHAPES)])


def _draw_curve(axes: Axes, i: int, curve: Curve) -> Any:
    """What stands for the curve in the legend."""
    ink, shape, size = _look(i)
    xs, ys = (np.array(values, float) for values in zip(*curve.points, strict=True))
    if curve.spread is not None:
        bars = np.abs(np.array(curve.spread, float)).T
        axes.errorbar(
            xs,
            ys,
            bars[1],
            bars[0],
            fmt="none",
            ecolor=ink,
            elinewidth=1.0,
            capsize=2.5,
            alpha=0.45,
            zorder=2,
        )
    (line,) = axes.plot(
        xs, ys, color=ink, marker=shape, markersize=size, linewidth=1.8 if len(xs) > 1 else 0, linestyle="-",
        markeredgecolor="white", markeredgewidth=0.8, zorder=3,
    )  # fmt: skip
    for x, y in curve.apart:
        axes.plot(
            [x], [y], linestyle="none", marker=shape, markersize=size, markerfacecolor="white", markeredgecolor=ink,
            markeredgewidth=1.6, zorder=4,
        )  # fmt: skip
    return line


def _draw_point_labels(figure: Figure, axes: Axes, curves: Sequence[Curve]) -> None:
    """The small texts beside the points, where they cover the least; places in points, from the left top."""
    to_points = 72 / figure.dpi
    height = figure.bbox.height * to_points

    def at(point: Sequence[float]) -> Point:
        x, y = axes.transData.transform(point) * to_points
        return float(x), float(height - y)

    wanted = [
        (point, text, i)
        for i, curve in enumerate(curves)
        for point, text in zip(curve.points, curve.markers or (), strict=False)
        if text
    ]
    width = charts.text_width(figure, charts.SMALL)
    sizes = [(72 * width(text) + 1, charts.SMALL) for _, text, _ in wanted]
    symbols = [at(point) for curve in curves for point in (*curve.points, *curve.apart)]
    box = axes.get_window_extent()
    area = Box(
        box.x0 * to_points, height - box.y1 * to_points, box.x1 * to_points, height - box.y0 * to_points
    )
    points = [at(point) for point, _, _ in wanted]
    places = place_labels(points, sizes, symbols, _lines(curves, at), area, 4.5)
    for (data, text, i), point, place in zip(wanted, points, places, strict=True):
        ink = tuple(0.7 * value for value in _look(i)[0])
        middle = ((place.left + place.right) / 2, (place.top + place.bottom) / 2)
        edge = (min(max(point[0], place.left), place.right), min(max(point[1], place.top), place.bottom))
        far = math.dist(point, edge) > 11  # too far to be seen as this point's
        axes.annotate(
            text, data, (middle[0] - point[0], point[1] - middle[1]), textcoords="offset points", ha="center",
            va="center_baseline", zorder=6, annotation_clip=False, path_effects=[charts.halo()],
            arrowprops={"arrowstyle": "-", "color": ink, "alpha": 0.5, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            if far else None, **(charts.text_style(charts.SMALL) | {"color": ink}),
        )  # fmt: skip


def _lines(curves: Sequence[Curve], at: Any) -> list[tuple[Point, Point]]:
    """Curves and error bars, which the texts of points should not cover."""
    lines = [(at(a), at(b)) for curve in curves for a, b in zip(curve.points, curve.points[1:], strict=False)]
    for curve in curves:
        for (x, y), (half_x, half_y) in zip(curve.points, curve.spread or (), strict=False):
            if half_x:
                lines.append((at((x - half_x, y)), at((x + half_x, y))))
            if half_y:
                lines.append((at((x, y - half_y)), at((x, y + half_y))))
    return lines
