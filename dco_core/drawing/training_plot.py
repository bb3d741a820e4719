"""Loss, margin and gate over the steps of a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DCOError
from ..training.step_report import StepReport
from ..training.validation import Score
from . import figure as charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE, _VALIDATION = charts.colour(charts.COLOURS[0]), charts.colour(charts.COLOURS[1])
_PANEL, _REST = 1.9, 0.8  # height of a panel and of all the rest, in inches
_LABELS = {"loss": "loss", "margin": "margin", "gate": "gate"}
_LOG = 50  # a loss that spans more than this factor is drawn on a log axis


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean over the finite ones among the last `window` values at each position, NaN where there are none; shorter at
    the beginning."""
    array = np.asarray(values, float)
    there = np.isfinite(array)
    sums, counts = (np.concatenate([[0.0], np.cumsum(v)]) for v in (np.where(there, array, 0.0), there))
    ends = np.arange(1, len(array) + 1)
    starts = np.maximum(0, ends - window)
    n = counts[ends] - counts[starts]
    return np.where(n > 0, (sums[ends] - sums[starts]) / np.maximum(n, 1), np.nan).tolist()


def loss_plot(reports: Sequence[StepReport], scores: Sequence[Score] = ()) -> np.ndarray:
    """`loss_figure` as pixels, uint8 [H, W, 3]."""
    return charts.to_array(loss_figure(reports, scores))


def loss_figure(reports: Sequence[StepReport], scores: Sequence[Score] = ()) -> Figure:
    """Loss, and margin and gate where the objective has them, over the steps. Faint: each step, as far as the inner
    98 % reach; bold: the mean of the last twentieth. The loss is on a log axis where it spans a factor of more than 50.

    scores: of the validation draws, drawn with the margin, the best one marked. Numbers that are not finite are gaps.
    DCOError for no step."""
    if not reports:
        raise DCOError("There is no step to plot: train at least one whose loss is finite.")
    own = any(report.has_margin for report in reports)
    names = ["loss", *(["margin"] if own or scores else []), *(["gate"] if own else [])]
    figure = charts.new_figure(_PANEL * len(names) + _REST)
    panels = dict(zip(names, figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0], strict=True))
    steps = [report.step for report in reports]
    window = max(1, len(reports) // 20)
    for name, axes in panels.items():
        charts.style(axes, y_label=_LABELS[name])
        if name == "loss" or own:
            _draw_steps(axes, name, steps, [getattr(report, name) for report in reports], window)
    if "margin" in panels:
        _draw_margin(panels["margin"], scores, own)
    last = panels[names[-1]]
    last.set_xlabel("step", **charts.text_style())
    last.set_xlim(*_steps_span([*steps, *(score.step for score in scores)]))
    if len(set(steps)) > 1:
        last.xaxis.get_major_locator().set_params(integer=True, nbins=8)
    else:
        last.set_xticks(steps[:1])
    _legend(figure, panels, window)
    return charts.frozen(figure)


def _steps_span(steps: Sequence[int]) -> tuple[float, float]:
    """Room to the right for the last value."""
    low, high = min(steps), max(steps)
    room = max(high - low, 1)
    return low - 0.02 * room - (0.5 if high == low else 0), high + 0.13 * room


def _draw_steps(axes: Axes, name: str, steps: Sequence[int], values: Sequence[float], window: int) -> None:
    array = np.array([value if math.isfinite(value) else np.nan for value in values], float)
    smooth = np.array(smoothed(array.tolist(), window))
    there = array[np.isfinite(array)]
    if not len(there):
        _nothing(axes)
        return
    alone: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(steps) < 20 else {}  # one step has no line
    if window > 1:
        axes.plot(steps, array, color=_LINE, alpha=0.3, linewidth=0.9, label="each step", zorder=2)
    axes.plot(steps, smooth, color=_LINE, linewidth=2.0, zorder=3, label=name, **alone)
    _scale(axes, name, there, smooth[np.isfinite(smooth)])
    last = int(np.flatnonzero(np.isfinite(smooth))[-1])
    axes.plot([steps[last]], [smooth[last]], marker="o", markersize=5, color=_LINE, zorder=4)
    _value(axes, steps[last], smooth[last], f"{smooth[last]:.3g}", _LINE)


def _scale(axes: Axes, name: str, values: np.ndarray, smooth: np.ndarray) -> None:
    low, high = (float(value) for value in np.percentile(values, (1, 99)))
    low, high = min(low, float(smooth.min())), max(high, float(smooth.max()))
    if name == "gate":
        axes.set_ylim(-0.03, 1.06)
        axes.set_yticks([0, 0.5, 1])
    elif name == "loss" and low > 0 and high > _LOG * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_ylim(*charts.span([low, high]))
        axes.locator_params(axis="y", nbins=5)


def _draw_margin(axes: Axes, scores: Sequence[Score], own: bool) -> None:
    shown = [score for score in scores if math.isfinite(score.margin)]
    if shown:
        steps, margins = [score.step for score in shown], [score.margin for score in shown]
        axes.plot(
            steps, margins, color=_VALIDATION, linewidth=1.6, marker="D", markersize=5, markeredgecolor="white",
            markeredgewidth=0.6, label="validation", zorder=5,
        )  # fmt: skip
        best = max(shown, key=lambda score: score.margin)
        ends = axes.get_ylim() if own and axes.has_data() else (min(margins), max(margins))
        axes.set_ylim(*charts.span([*(charts.finite(ends) if own else []), *margins, 0.0], 0.07))
        axes.annotate(
            f"best {best.margin:.3g}, step {best.step}", (best.step, best.margin), (0, 9), textcoords="offset points",
            ha=_side(axes, best.step), va="bottom", zorder=6, annotation_clip=False, path_effects=[charts.halo()],
            **(charts.text_style(charts.SMALL) | {"color": _VALIDATION, "fontweight": "bold"}),
        )  # fmt: skip
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.2 * (high - low))  # for that text
    elif not own:
        _nothing(axes)
    low, high = axes.get_ylim()
    if low < 0 < high:
        axes.axhline(
            0, color=charts.SOFT, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1, label="0: as good as the base"
        )


def _nothing(axes: Axes) -> None:
    axes.set_yticks([])
    if not axes.texts:
        charts.nothing(axes, "no finite value")


def _side(axes: Axes, step: int) -> str:
    """Which way a text at a step runs: into the plot."""
    steps = np.concatenate([line.get_xdata() for line in axes.lines])
    share = (step - steps.min()) / max(steps.max() - steps.min(), 1)
    return "left" if share < 0.25 else "right" if share > 0.75 else "center"


def _value(axes: Axes, x: float, y: float, text: str, ink: tuple[float, ...]) -> None:
    axes.annotate(
        text, (x, y), (7, 0), textcoords="offset points", ha="left", va="center_baseline", annotation_clip=False,
        **(charts.text_style(charts.TEXT - 1) | {"color": ink, "fontweight": "bold"}),
    )  # fmt: skip


def _legend(figure: Figure, panels: dict[str, Axes], window: int) -> None:
    """One legend for all panels, above them."""
    found = {}
    for axes in panels.values():
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found[f"mean of {window} steps" if label in _LABELS and window > 1 else label] = handle
    named = {label: handle for label, handle in found.items() if label not in _LABELS}
    if named:
        drawn = figure.legend(
            list(named.values()), list(named), loc="outside upper left", ncols=4, frameon=False, handlelength=1.6,
            columnspacing=1.3, borderaxespad=0.2,
        )  # fmt: skip
        for text in drawn.get_texts():
            text.set(**charts.text_style(charts.TEXT - 1))
