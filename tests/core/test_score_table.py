"""Tables of scores, the curves they make, and contact sheets that follow from labels."""

from __future__ import annotations

import numpy as np
import pytest

from dco_core.drawing.pareto_plot import Curve
from dco_core.errors import DCOError
from dco_core.evidence.labelled_sheet import _row_labels, labelled_sheet
from dco_core.evidence.score_table import ScoreTable, split_label


def table() -> ScoreTable:
    labels = ("w_rg 0", "w_rg 2", "w_rg 0", "w_rg 2")
    return (
        ScoreTable(labels)
        .with_column("likeness", [0, 1, 0.2, 0.5])
        .with_column("alignment", [1, 0.5, 0.8, 0.5])
    )


def test_pictures_of_a_label_are_one_point_with_its_standard_error():
    (curve,) = table().curves("DCO")
    assert curve.label == "DCO" and curve.markers == ["w_rg 0", "w_rg 2"]
    assert np.allclose(curve.points, [(0.9, 0.1), (0.5, 0.75)])
    assert np.allclose(curve.spread, [(0.1, 0.1), (0.0, 0.25)])
    (turned,) = table().curves("DCO", "likeness", "alignment")
    assert np.allclose(turned.points, [(0.1, 0.9), (0.75, 0.5)])


def test_each_series_is_a_curve():
    labels = ("w_text 3, w_rg 0", "w_text 3, w_rg 2", "w_text 5, w_rg 0")
    scores = ScoreTable(labels).with_column("likeness", [0, 1, 2]).with_column("alignment", [3, 4, 5])
    curves = scores.curves("DCO")
    assert [curve.label for curve in curves] == ["DCO, w_text 3", "DCO, w_text 5"]
    assert curves[0].points == [(3, 0), (4, 1)] and curves[1].markers == ["w_rg 0"]
    assert split_label("plain") == ("", "plain")


def test_without_labels_all_pictures_are_one_point():
    scores = ScoreTable(("", "")).with_column("likeness", [0, 1]).with_column("alignment", [1, 1])
    (curve,) = scores.curves("base model")
    assert curve == Curve("base model", [(1, 0.5)], [(0, 0.5)], [""])


def test_the_summary_has_a_row_for_each_label():
    assert table().summary()[1] == {"label": "w_rg 2", "pictures": 2, "likeness": 0.75, "alignment": 0.5}
    assert "| w_rg 0 | 2 | 0.100 | 0.900 |" in table().text()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: table().with_column("likeness", [0] * 4), 'has "likeness" already'),
        (lambda: table().with_column("style_likeness", [0] * 3), "4 pictures, the new scores 3"),
        (
            lambda: table().curves("DCO", y="style_likeness"),
            'DCO has no "style_likeness" (only likeness, alignment)',
        ),
        (lambda: labelled_sheet([]), "no pictures"),
        (lambda: labelled_sheet([picture(0)], ["a", "b"]), "1 pictures have 2 labels"),
        (lambda: labelled_sheet([picture(0)], ["a"], ["x", "y"]), "1 rows, but 2 names"),
    ],
)
def test_says_what_does_not_fit(call, message):
    with pytest.raises(DCOError) as error:
        call()
    assert message in str(error.value)


def picture(value: int) -> np.ndarray:
    return np.full((64, 64, 3), value, np.uint8)


def places(sheet: np.ndarray, value: int) -> tuple[float, float]:
    """(x, y) of the middle of the picture of that colour."""
    rows, columns = np.where((sheet == value).all(-1))
    assert len(rows) > 2000
    return columns.mean(), rows.mean()


def test_labels_put_pictures_in_rows_and_columns():
    labels = ["w_text 3, w_rg 0", "w_text 3, w_rg 2", "w_text 5, w_rg 0", "w_text 5, w_rg 2"]
    sheet = labelled_sheet([picture(40 + i) for i in range(4)], labels)
    at = [places(sheet, 40 + i) for i in range(4)]
    assert at[0][1] == at[1][1] < at[2][1] == at[3][1] and at[0][0] == at[2][0] < at[1][0] == at[3][0]


def test_labels_that_come_again_begin_a_row():
    sheet = labelled_sheet(
        [picture(40 + i) for i in range(4)],
        ["w_rg 0", "w_rg 2"] * 2,
        ["a dog at sea " * 6, "a dog in the woods"],
    )
    at = [places(sheet, 40 + i) for i in range(4)]
    assert at[0][1] == at[1][1] < at[2][1] == at[3][1] and at[0][0] == at[2][0] < at[1][0]
    assert sheet.shape[1] < 500  # long names are set in lines


def test_row_names_for_several_pictures_of_a_prompt():
    rows = [("", time) for time in (1, 2, 3, 4)]
    assert _row_labels(rows, ["dog", "cat"]) == ["dog, 1", "dog, 2", "cat, 1", "cat, 2"]
    assert _row_labels(rows, []) == ["1", "2", "3", "4"]
    assert _row_labels([("w_text 3", 1), ("w_text 5", 1)], []) == ["w_text 3", "w_text 5"]
    both = [("w_text 3", 1), ("w_text 5", 1), ("w_text 3", 2), ("w_text 5", 2)]
    assert _row_labels(both, ["dog", "cat"]) == [
        "w_text 3, dog", "w_text 5, dog", "w_text 3, cat", "w_text 5, cat",
    ]  # fmt: skip


def test_many_pictures_go_below_one_another():
    sheet = labelled_sheet([picture(40 + i) for i in range(5)], columns=2, title="five pictures")
    at = [places(sheet, 40 + i) for i in range(5)]
    assert at[0][1] == at[1][1] < at[2][1] == at[3][1] < at[4][1]
    assert at[0][0] == at[2][0] == at[4][0] < at[1][0] == at[3][0]
    assert labelled_sheet([picture(i) for i in range(40)]).shape[1] < 8 * 100
