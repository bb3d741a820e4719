"""The Pareto plot: that its marks stand where the numbers say, nothing covers anything, and bad input is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dco_core.drawing.figure import COLOURS, colour, span, to_svg
from dco_core.drawing.pareto_plot import SHAPES, Curve, pareto_figure, pareto_plot
from dco_core.drawing.point_labels import Box, place_labels
from dco_core.errors import DCOError


def plot(*curves: Curve, title: str = "title") -> np.ndarray:
    return pareto_plot(curves, title, "prompt alignment", "subject likeness")


def figure(*curves: Curve, title: str = "title"):
    return pareto_figure(curves, title, "prompt alignment", "subject likeness")


def spots(picture: np.ndarray, wanted: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the pixels of exactly that colour."""
    return np.where((picture == np.array(wanted, np.uint8)).all(-1))


def test_symbols_stand_where_the_numbers_say():
    points = [(0.2, 0.9), (0.4, 0.1), (0.8, 0.5)]
    curves = [Curve(f"curve {i}", [point]) for i, point in enumerate(points)]
    picture, (axes,) = plot(*curves), figure(*curves).axes
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    bottom = picture.shape[0] - axes.get_window_extent().y0
    for i, point in enumerate(points):
        rows, columns = spots(picture, COLOURS[i])
        inside = rows < bottom  # the legend is below
        expected = axes.transData.transform(point)
        assert columns[inside].mean() == pytest.approx(expected[0], abs=1.5)
        assert rows[inside].mean() == pytest.approx(picture.shape[0] - expected[1], abs=3)  # a triangle hangs low


def test_every_curve_is_in_the_legend_below_the_plot():
    curves = [Curve(f"curve {i}", [(i, i)]) for i in range(6)]
    made, picture = figure(*curves), plot(*curves)
    (axes,), (legend,) = made.axes, made.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == [f"curve {i}" for i in range(6)]
    below = picture.shape[0] - legend.get_window_extent().y1
    for i in range(6):
        rows, _ = spots(picture, COLOURS[i])
        assert (rows > below).any() and (rows < picture.shape[0] - axes.get_window_extent().y0).any()


def test_any_name_is_in_the_legend():
    names = ["_mine", "", "$x$", "DCO"]
    made = figure(*(Curve(name, [(i, i)]) for i, name in enumerate(names)))
    assert [text.get_text() for text in made.legends[0].get_texts()] == names


def inside(made) -> None:
    """All texts lie on the paper, and those outside the plotting area do not lie on each other."""
    (axes,), paper = made.axes, made.bbox
    title = [made._suptitle] if made._suptitle else []
    texts = [*title, axes.xaxis.label, axes.yaxis.label, *made.legends[0].get_texts()]
    boxes = [text.get_window_extent() for text in texts]
    for i, box in enumerate(boxes):
        assert paper.x0 <= box.x0 and box.x1 <= paper.x1 and paper.y0 <= box.y0 and box.y1 <= paper.y1, texts[i]
        for other in boxes[i + 1 :]:
            assert not (box.shrunk(0.98, 0.9).overlaps(other.shrunk(0.98, 0.9)))


def test_a_long_legend_and_a_long_title_make_room():
    few = figure(Curve("a", [(0, 0)]))
    names = ["a method with a long name in several words, and more " * 2, "w" * 150, "b"]
    many = figure(*(Curve(names[i % 3], [(i, 0)]) for i in range(30)))
    titled = figure(Curve("a", [(0, 0)]), title="a title in many words " * 20)
    for made in (few, many, titled):
        inside(made)
        assert made.axes[0].get_window_extent().height > 450  # of pixels: the plot itself does not shrink
    assert many.bbox.height > few.bbox.height and titled.bbox.height > few.bbox.height
    assert many.bbox.width == few.bbox.width == titled.bbox.width


def test_error_bars_points_apart_and_texts_are_drawn():
    point, other = [(0.5, 0.5)], Curve("b", [(1, 1)])
    plain = plot(Curve("a", point), other)
    for curve in (
        Curve("a", point, [(0.1, 0.1)]),
        Curve("a", point, None, ["w 2"]),
        Curve("a", point, apart=[(0.7, 0.8)]),
    ):
        picture = plot(curve, other)
        assert picture.shape == plain.shape and (picture != plain).any(-1).sum() > 60
    (axes,) = figure(Curve("a", point, [(0.1, 0.2)]), other).axes
    (bars,) = axes.containers
    lengths = [np.ptp(lines.get_segments()[0], axis=0) for lines in bars[2]]
    assert np.allclose(lengths, [[0.2, 0], [0, 0.4]])


def test_no_text_of_a_point_covers_another():
    rng = np.random.default_rng(0)
    curves = [
        Curve(f"{i}", [tuple(rng.uniform(0.4, 0.6, 2)) for _ in range(6)], None, [f"w_rg {j}" for j in range(6)])
        for i in range(5)
    ]
    boxes = [text.get_window_extent() for text in figure(*curves).axes[0].texts]
    assert len(boxes) == 30
    for i, box in enumerate(boxes):
        assert not any(box.shrunk(0.95, 0.7).overlaps(other.shrunk(0.95, 0.7)) for other in boxes[i + 1 :])


def test_a_dollar_is_a_dollar():
    curve = Curve("costs $5 and $x_{", [(0, 0), (1, 1)], None, ["$", "$a$"])
    made = pareto_figure([curve], "$\\frac{", "$x", "y$_$")
    assert made.legends[0].get_texts()[0].get_text() == curve.label
    assert "<svg" in to_svg(made)


def test_no_two_of_56_curves_look_the_same():
    assert len({(COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)]) for i in range(56)}) == 56
    lines = figure(*(Curve(str(i), [(i, i)]) for i in range(56))).axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 56
    assert lines[0].get_color() == colour(COLOURS[0])


@pytest.mark.parametrize(
    "values", [(0.3, 0.3), (1.0, 1.0), (0.0, 0.0), (-1.0, 1.0), (0.0, 1e-9), (1e-7, 3e-6), (5, 4e9)]
)
def test_axes_have_ticks_and_hold_all_values(values):
    made = figure(Curve("a", [(value, value) for value in values]))
    (axes,) = made.axes
    for low, high, ticks in (
        (*axes.get_xlim(), axes.get_xticks()),
        (*axes.get_ylim(), axes.get_yticks()),
    ):
        assert low < values[0] <= values[1] < high
        assert 3 <= sum(low <= tick <= high for tick in ticks) <= 11


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_spans_for_any_values(low, width):
    ends = span([low, low + width])
    assert ends[0] < low and low + width < ends[1]
    if width > 1e-5 * abs(low) + 1e-8:
        assert ends[1] - ends[0] == pytest.approx(1.14 * (low + width - low), rel=1e-6)
    else:
        assert ends[1] - ends[0] > 1e-9  # never of a few last digits


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
