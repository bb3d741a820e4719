"""Sheets of pictures: every picture in its cell, labels beside them and never on them, and bad input."""

import numpy as np
import pytest
from PIL import ImageFont

from dco_core.drawing.contact_sheet import MAX_SIDE, Row, Section, contact_sheet, draw_sheet
from dco_core.drawing.text import wrapped
from dco_core.errors import DCOError


def flat(value, height=64, width=64):
    return np.full((height, width, 3), (value, 255 - value, 7), np.uint8)


def cell(sheet, box):
    return sheet.picture[box.top : box.bottom, box.left : box.right]


def test_cells_hold_their_pictures_in_every_section():
    sections = [
        Section([Row([flat(1), flat(2)], "references", "one\ntwo")], title="What is taught"),
        Section([Row([flat(3 + 2 * i), None], f"row {i}") for i in range(2)], ["a", "b"], "Places"),
        Section([Row([flat(9), flat(10), flat(11)])], ["x", "y", "z " * 200], "Style " * 100),
    ]
    sheet = draw_sheet(sections, "A title " * 30)
    assert sheet.picture.dtype == np.uint8
    assert [[len(row) for row in section] for section in sheet.cells] == [[2], [2, 2], [3]]
    for section, rows in zip(sections, sheet.cells, strict=True):
        for row, boxes in zip(section.rows, rows, strict=True):
            for picture, box in zip(row.pictures, boxes, strict=True):
                if picture is not None:
                    assert np.array_equal(cell(sheet, box), picture)  # nothing is written on it
                else:
                    assert len(np.unique(cell(sheet, box))) <= 3


def test_a_cell_size_of_ones_own_and_pictures_of_several_shapes():
    sheet = draw_sheet([Section([Row([flat(1, 200, 100), flat(2, 50, 100)])])], cell=128)
    ((boxes,),) = sheet.cells
    assert [(box.bottom - box.top, box.right - box.left) for box in boxes] == [(128, 64)] * 2
    assert (cell(sheet, boxes[0]) == flat(1)[0, 0]).all()
    wide = (cell(sheet, boxes[1]) == flat(2)[0, 0]).all(-1)
    assert wide[:32].all() and not wide[33:].any()  # its proportions are kept


def test_the_size_does_not_depend_on_section_titles():
    sizes = {
        draw_sheet([Section([Row([flat(1)] * 3)], ["a", "b", "c"], title)], cell=96, title_lines=2).picture.shape
        for title in ("x", "many words " * 50, "w" * 400)
    }
    assert len(sizes) == 1


def test_long_labels_stay_in_their_row():
    label = "a label that goes on and on " * 40
    sheet = draw_sheet([Section([Row([flat(1)], label, "note\n" * 20), Row([flat(2)], "second")])])
    (first,), (second,) = sheet.cells[0]
    between = sheet.picture[first.bottom : second.top, : first.left]
    assert (between == between[0, 0]).all()


def test_a_sheet_never_gets_enormous():
    sheet = contact_sheet([[flat(1, 3000, 3000)] * 8], [""], [""] * 8)
    assert max(sheet.shape) <= MAX_SIDE


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: draw_sheet([]), "at least one picture"),
        (lambda: contact_sheet([[None]], ["a"], ["b"]), "at least one picture"),
        (lambda: contact_sheet([[flat(1)]], ["a", "b"], ["c"]), "1 rows and 2 labels"),
        (lambda: contact_sheet([[flat(1)]], ["a"], ["b", "c"]), '"a" of the contact sheet has 1 pictures under 2'),
    ],
)
def test_says_what_does_not_fit(call, message):
    with pytest.raises(DCOError) as error:
        call()
    assert message in str(error.value)


def test_text_in_lines():
    font = ImageFont.load_default(size=14)
    text = "a photo of a <dog> " * 9 + "w" * 90
    for lines in (None, 1, 2, 3):
        found = wrapped(text, font.getlength, 100, lines)
        assert all(font.getlength(line) <= 100 for line in found)
        if lines is None:
            assert "".join("".join(found).split()) == "".join(text.split())
        else:
            assert len(found) == lines and found[-1].endswith("...")
    assert wrapped("", len, 5) == wrapped(" \n\t", len, 5) == [""]
    assert wrapped("one two", len, 7, 1) == ["one two"]
    assert wrapped("abc", len, 0) == ["a", "b", "c"]  # narrower than a letter: a letter a line
