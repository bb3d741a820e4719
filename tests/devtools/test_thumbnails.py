"""Thumbnails are cut out of the demo's sheet where its report says that the cells lie."""

import json

import numpy as np
from PIL import Image

from dco_core.drawing.contact_sheet import Row, Section, draw_sheet
from devtools.make_thumbnails import CELLS, GUTTER, SIDE, from_sheet


def picture(section, row, column):
    return np.full((256, 256, 3), (60 * section + 9, 20 * row + 9, 30 * column + 9), np.uint8)


def test_the_cells_of_every_template_are_cut_out_whole():
    rows = [
        [Row([picture(s, r, c) for c in range(6)], f"row {r}", "likeness 0.9") for r in range(n)]
        for s, n in enumerate((1, 3, 1, 1))
    ]
    headings = ["a toy on a beach, seen from far above"] * 6
    sections = [Section(rows[0], title="a"), *(Section(r, headings, t) for r, t in zip(rows[1:], "bcd", strict=True))]
    sheet = draw_sheet(sections, "title", cell=128)
    boxes = json.loads(json.dumps(sheet.cells))  # as the report keeps them
    half = (SIDE - GUTTER) // 2
    for cells in CELLS.values():
        thumbnail = np.asarray(from_sheet(Image.fromarray(sheet.picture), boxes, cells))
        assert thumbnail.shape == (SIDE, SIDE, 3)
        for i, cell in enumerate(cells):
            y, x = ((half + GUTTER) * k for k in divmod(i, 2))
            assert (thumbnail[y : y + half, x : x + half] == picture(*cell)[0, 0]).all()
