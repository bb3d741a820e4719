"""The chart of a training: every value where it belongs, whatever the length and the numbers."""

import math

import numpy as np
import pytest

from dco_core.drawing.training_plot import loss_figure, loss_plot, smoothed
from dco_core.errors import DCOError
from dco_core.training.trainer import StepReport
from dco_core.training.validation import Score


def report(step, value, margin=None, gate=0.5):
    return StepReport(step, 100, value, -value if margin is None else margin, gate, 1e-4, 1.0, 0.1, 0.1)


def plain(step, value):
    """Of an objective without margin."""
    return report(step, value, 0.0, 1.0)


def panels(figure):
    return {axes.get_ylabel(): axes for axes in figure.axes}


def curve(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line


def test_smoothing_is_a_trailing_mean():
    assert smoothed([1.0, 2.0, 3.0, 4.0], 2) == pytest.approx([1.0, 1.5, 2.5, 3.5])
    assert smoothed([1.0, math.nan, 3.0, math.nan, math.nan], 2) == pytest.approx(
        [1.0, 1.0, 3.0, 3.0, math.nan], nan_ok=True
    )


@pytest.mark.parametrize("steps", [1, 2, 300])
def test_the_plot_shows_its_curves_for_any_length(steps):
    reports = [report(i + 1, float(np.sin(i / 20))) for i in range(steps)]
    picture = loss_plot(reports)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    blue = (picture[..., 2] > 150) & (picture[..., 0] < 60)
    assert blue.sum() > (50 if steps == 1 else 300)
    found = panels(loss_figure(reports))
    assert list(found) == ["loss", "margin", "gate"]
    for name, axes in found.items():
        values = [getattr(r, name) for r in reports]
        line = curve(axes, name)
        assert line.get_xdata().tolist() == [r.step for r in reports]
        assert np.allclose(line.get_ydata(), smoothed(values, max(1, steps // 20)))
        assert f"{line.get_ydata()[-1]:.3g}" in [text.get_text() for text in axes.texts]


def test_steps_that_were_skipped_leave_a_gap_on_the_axis():
    (axes,) = loss_figure([plain(1, 0.5), plain(2, 0.4), plain(9, 0.3)]).axes
    assert curve(axes, "loss").get_xdata().tolist() == [1, 2, 9]


def test_a_constant_curve_has_an_axis_around_it():
    (axes,) = loss_figure([plain(i + 1, 0.5) for i in range(10)]).axes
    low, high = axes.get_ylim()
    assert low < 0.46 and high > 0.54


def test_the_loss_is_on_a_log_axis_only_where_it_spans_magnitudes():
    wide = loss_figure([plain(i + 1, 10.0 ** -(i % 4)) for i in range(40)]).axes[0]
    narrow = loss_figure([plain(i + 1, 0.6 + 0.1 * (i % 2)) for i in range(40)]).axes[0]
    negative = loss_figure([plain(i + 1, 10.0 ** -(i % 4) - 0.5) for i in range(40)]).axes[0]
    assert [axes.get_yscale() for axes in (wide, narrow, negative)] == ["log", "linear", "linear"]
    assert "0.01" in [text.get_text() for text in wide.get_yticklabels()]


def test_the_validation_margin_stands_beside_the_margin_and_its_best_is_named():
    reports = [report(i + 1, 0.6, i / 100) for i in range(100)]
    scores = [Score(25, 0.2, 0.01), Score(50, 3.0, 0.02), Score(75, -2.0, 0.03), Score(100, math.nan, 0.03)]
    axes = panels(loss_figure(reports, scores))["margin"]
    line = curve(axes, "validation")
    assert line.get_xdata().tolist() == [25, 50, 75] and line.get_ydata().tolist() == [0.2, 3.0, -2.0]
    low, high = axes.get_ylim()
    assert low < -2 and high > 3
    assert "best 3, step 50" in [text.get_text() for text in axes.texts]


def test_an_objective_without_margin_shows_the_validation_one_alone():
    reports = [plain(i + 1, 0.1) for i in range(10)]
    assert list(panels(loss_figure(reports))) == ["loss"]
    found = panels(loss_figure(reports, [Score(5, 0.2, 0.1), Score(10, 0.3, 0.1)]))
    assert list(found) == ["loss", "margin"]
    assert [line.get_label() for line in found["margin"].lines][0] == "validation"


def test_numbers_that_are_not_finite_are_gaps():
    reports = [report(i + 1, math.nan if 40 < i < 80 else math.inf if i == 5 else 0.5, 0.1) for i in range(100)]
    line = curve(panels(loss_figure(reports))["loss"], "loss")
    assert np.flatnonzero(np.isnan(line.get_ydata())).tolist() == list(range(45, 80))  # means of 5 steps bridge some
    nothing = loss_figure([report(i + 1, math.nan, math.nan, math.nan) for i in range(9)])
    assert [[text.get_text() for text in axes.texts] for axes in nothing.axes] == [["no finite value"]] * 3
    assert loss_plot([report(1, math.nan)]).size


def test_no_step_is_told():
    with pytest.raises(DCOError, match="no step to plot"):
        loss_plot([])
