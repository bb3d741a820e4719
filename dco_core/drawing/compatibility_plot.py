"""The picture of a compatibility report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..merging.compatibility import Compatibility
from . import figure as charts
from .text import wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR, _BELOW = charts.colour(charts.COLOURS[0]), charts.colour(charts.COLOURS[1])
_ROW, _HEAD = 0.21, 0.95  # inches: a bar, and the title, axis and gaps of a panel
_RATIO = 4.0  # log2 of the norm ratio at both ends


def compatibility_plot(found: Compatibility, title: str = "") -> np.ndarray:
    """`compatibility_figure` as pixels, uint8 [H, W, 3]."""
    return charts.to_array(compatibility_figure(found, title))


def compatibility_figure(found: Compatibility, title: str = "") -> Figure:
    """Bars of the column cosine per layer type (the paper's Fig. 10), and of cross-talk and norm ratio per block.
    Bars beyond the axis end there; numbers say what they are."""
    layer_types, blocks = found.by_layer_type(), found.by_block()
    cross_talk = {block: fit.cross_talk for block, fit in blocks.items()}
    ratio = {
        block: math.log2(fit.norm_a / fit.norm_b) if fit.norm_a and fit.norm_b else math.nan
        for block, fit in blocks.items()
    }
    heights = [max(1, len(values)) * _ROW + _HEAD for values in (layer_types, blocks)]
    figure = charts.new_figure(sum(heights))
    lines = wrapped(title, charts.text_width(figure, charts.TEXT + 1), charts.WIDTH - 0.2) if title.strip() else []
    figure.set_size_inches(charts.WIDTH, sum(heights) + len(lines) * 0.22 + 0.1)
    if lines:
        figure.suptitle("\n".join(lines), x=0.015, ha="left", **charts.text_style(charts.TEXT + 1))
    panels = figure.subplot_mosaic([["layers", "layers"], ["talk", "ratio"]], height_ratios=heights)
    _bars(panels["layers"], "column cosine by layer type", layer_types, (-1.0, 1.0))
    _bars(panels["talk"], "cross-talk by block", cross_talk, (0.0, 1.0))
    _bars(panels["ratio"], "norm ratio |first| / |second|", ratio, (-_RATIO, _RATIO), ratios=True)
    return charts.frozen(figure)


def _bars(
    axes: Axes, heading: str, values: Mapping[str, float], ends: tuple[float, float], ratios: bool = False
) -> None:
    """Horizontal bars from 0, the first on top, each with its number. ratios: values are log2 of what is written, and
    labels are those of the panel to the left."""
    charts.style(axes)
    axes.grid(axis="y", visible=False)
    axes.set_title(heading, loc="left", **charts.text_style(charts.TEXT))
    room = 0.0 if ends[0] < 0 else 0.22  # for the number at the end of a long bar
    axes.set_xlim(ends[0], ends[1] + room * (ends[1] - ends[0]))
    if ratios:
        axes.set_xticks([-4, -2, 0, 2, 4], ["1/16", "1/4", "1", "4", "16"])
    elif ends[0] < 0:
        axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    else:
        axes.set_xticks([0, 0.5, 1])
    n = max(1, len(values))
    axes.set_ylim(n - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    if values:
        axes.axvline(0, color=charts.SOFT, linewidth=0.9, zorder=3)
    names = [] if ratios else list(values)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelcolor=charts.INK, labelsize=charts.SMALL, labelleft=not ratios)
    if not values:
        charts.nothing(axes, "no layer in common")
    for row, value in enumerate(values.values()):
        shown = min(max(value, ends[0]), ends[1]) if math.isfinite(value) else 0.0
        axes.barh(row, shown, height=0.72, color=_BAR if shown >= 0 else _BELOW, zorder=2)
        # beside the bar: on the far side of 0 for a bar whose own side is full
        full = ends[0] < 0 and abs(shown) > 0.6 * ends[1]
        right = (shown >= 0) != full
        text = f"{value:.3f}" if not ratios else _ratio(value)
        axes.annotate(
            text, (0.0 if full else shown, row), (4 if right else -4, 0), textcoords="offset points", va="center",
            ha="left" if right else "right", annotation_clip=False, zorder=4, **charts.text_style(charts.SMALL),
        )  # fmt: skip


def _ratio(log: float) -> str:
    """The number whose log2 is given."""
    if not math.isfinite(log):
        return "none"
    return f"{2**log:.0f}" if log >= 10 else f"{2**log:.3g}"
