"""The Pareto plot: that its marks stand where the numbers say, nothing covers anything, and bad input is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dco_core.drawing.axes import nice_axis
from dco_core.drawing.pareto_plot import COLOURS, SHAPES, Curve, pareto_plot
from dco_core.drawing.point_labels import Box, place_labels
from dco_core.errors import DCOError


def plot(*curves: Curve, title: str = "title") -> np.ndarray:
    return pareto_plot(curves, title, "prompt alignment", "subject likeness")


def spots(picture: np.ndarray, colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the pixels of exactly that colour."""
    return np.where((picture == np.array(colour, np.uint8)).all(-1))


def middle(picture: np.ndarray, colour: tuple[int, int, int]) -> tuple[float, float]:
    """(x, y) of the symbol of a colour inside the plotting area, whose legend stands beside it."""
    rows, columns = spots(picture, colour)
    inside = columns < 850
    return columns[inside].mean(), rows[inside].mean()


def test_symbols_stand_where_the_numbers_say():
    points = [(0.2, 0.9), (0.4, 0.1), (0.8, 0.5)]
    picture = plot(*(Curve(f"curve {i}", [point]) for i, point in enumerate(points)))
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    seen = np.array([middle(picture, COLOURS[i]) for i in range(3)])
    expected = np.array(points)
    for axis, sign in ((0, 1), (1, -1)):
        pixels = (seen[2, axis] - seen[0, axis]) / (seen[1, axis] - seen[0, axis])
        values = (expected[2, axis] - expected[0, axis]) / (expected[1, axis] - expected[0, axis])
        assert pixels == pytest.approx(values, abs=0.01)
        order = np.argsort(seen[:, axis])
        assert (np.diff(sign * expected[order, axis]) > 0).all()


def test_every_curve_is_in_the_legend_beside_the_plot():
    picture = plot(*(Curve(f"curve {i}", [(i, i)]) for i in range(6)))
    for i in range(6):
        rows, columns = spots(picture, COLOURS[i])
        assert (columns > 860).any() and (columns < 850).any()
    assert (picture[:, 848:866] == 255).all()  # a gap between them


def test_a_long_legend_and_a_long_title_make_room():
    few = plot(Curve("a", [(0, 0)]))
    many = plot(
        *(Curve("a method with a long name in several words, and more " * 2, [(i, 0)]) for i in range(30))
    )
    assert many.shape[0] > few.shape[0] and many.shape[1] == few.shape[1]
    assert (many[:, -4:] == 255).all() and (many[-2:] == 255).all()
    titled = plot(Curve("a", [(0, 0)]), title="a title in many words " * 20)
    assert titled.shape[0] > few.shape[0] and (titled[:, -4:] == 255).all()


def test_error_bars_and_texts_are_drawn():
    point = [(0.5, 0.5)]
    plain, other = plot(Curve("a", point), Curve("b", [(1, 1)])), Curve("b", [(1, 1)])
    for curve in (Curve("a", point, [(0.1, 0.1)]), Curve("a", point, None, ["w 2"])):
        picture = plot(curve, other)
        assert picture.shape == plain.shape and (picture != plain).any(-1).sum() > 60


def test_no_two_of_56_curves_look_the_same():
    assert len({(COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)]) for i in range(56)}) == 56


@pytest.mark.parametrize(
    "values", [(0.3, 0.3), (1.0, 1.0), (0.0, 0.0), (-1.0, 1.0), (0.0, 1e-9), (1e-7, 3e-6), (5, 4e9)]
)
def test_axes_have_round_ticks_and_hold_all_values(values):
    axis = nice_axis(*values)
    ticks = axis.ticks()
    assert axis.low < values[0] <= values[1] < axis.high
    assert 3 <= len(ticks) <= 10
    assert len({text for _, text in ticks}) == len(ticks)
    for value, text in ticks:
        assert float(text) == pytest.approx(value, abs=1e-3 * axis.step)
        assert 0 <= axis.share(value) <= 1


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_axes_for_any_values(low, span):
    axis = nice_axis(low, low + span)
    assert axis.low < low and low + span < axis.high and 3 <= len(axis.ticks()) <= 10


def test_texts_of_points_close_together_do_not_cover_each_other():
    area, size = Box(0, 0, 800, 600), (60.0, 20.0)
    points = [(400.0 + 14 * i, 300.0 + 3 * i) for i in range(8)] + [(799.0, 1.0)]
    boxes = place_labels(points, [size] * len(points), points, [], area, 9.0)
    for i, box in enumerate(boxes):
        assert box.shared(area) == pytest.approx(size[0] * size[1])
        assert all(box.shared(other) < 1e-6 for other in boxes[i + 1 :])
        assert math.dist(points[i], ((box.left + box.right) / 2, (box.top + box.bottom) / 2)) < 110


@pytest.mark.parametrize(
    "curves, message",
    [
        ([], "no curve to plot"),
        ([Curve("DCO", [])], '"DCO" has no points'),
        ([Curve("DCO", [(0, math.nan)])], '"DCO" has the point (0, nan)'),
        ([Curve("DCO", [(0, 1)], [(math.inf, 0)])], '"DCO" has the point (inf, 0)'),
        ([Curve("DCO", [(0, 1)], [])], "has 1 points and 0 error bars"),
        ([Curve("DCO", [(0, 1)], None, ["a", "b"])], "has 1 points and 2 texts"),
    ],
)
def test_says_what_cannot_be_drawn(curves, message):
    with pytest.raises(DCOError) as error:
        pareto_plot(curves, "t", "x", "y")
    assert message in str(error.value)
