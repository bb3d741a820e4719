"""A contact sheet from pictures and their labels alone: who stands where follows from the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..drawing.contact_sheet import Row, Section, draw_sheet
from ..errors import DCOError
from .score_table import split_label

WIDE = 8  # columns, where none are asked for and there are more different labels than this


def labelled_sheet(
    pictures: Sequence[np.ndarray],
    labels: Sequence[str] = (),
    row_names: Sequence[str] = (),
    columns: int = 0,
    title: str = "",
) -> np.ndarray:
    """Pictures uint8 [H, W, 3] -> the sheet, uint8 [H, W, 3]. A label "series, point" puts a picture in the row of the
    series and the column of the point; where a label comes again, a new row begins. Without labels the pictures are
    numbered. row_names: for every row, or for the first, second, ... time that labels come (such as prompts, each of
    which may come several times in a row).
    columns: the most beside one another, the rest goes below; 0: chosen. DCOError where the numbers do not fit."""
    if not pictures:
        raise DCOError("There are no pictures for a contact sheet: connect at least one.")
    texts = list(labels) or [str(i + 1) for i in range(len(pictures))]
    if len(texts) != len(pictures):
        raise DCOError(f"{len(pictures)} pictures have {len(texts)} labels: give one label for each picture.")
    cells: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    times: dict[str, int] = {}
    for picture, text in zip(pictures, texts, strict=True):
        series, point = split_label(text)
        times[text] = times.get(text, 0) + 1
        cells.setdefault((series, times[text]), {})[point] = picture
    points = list(dict.fromkeys(point for row in cells.values() for point in row))
    names = _row_labels(list(cells), list(row_names))
    wide = columns if columns > 0 else (len(points) if len(points) <= WIDE + 4 else WIDE)
    blocks = [points[i : i + wide] for i in range(0, len(points), wide)]
    sections = [
        Section(
            [Row([row.get(point) for point in block], name) for name, row in zip(names, cells.values(), strict=True)],
            block,
        )
        for block in blocks
    ]
    return draw_sheet(sections, title).picture


def _row_labels(rows: list[tuple[str, int]], names: list[str]) -> list[str]:
    most = max(time for _, time in rows)
    if names and len(names) != len(rows) and most % len(names):
        raise DCOError(
            f"The contact sheet has {len(rows)} rows, but {len(names)} names for them: give one each."
        )
    if len(names) == len(rows):
        return names
    each = most // len(names) if names else most
    counts = [f"{i + 1}" for i in range(each)] if each > 1 else [""]
    numbered = [", ".join(filter(None, (name, count))) for name in names or [""] for count in counts]
    return [", ".join(filter(None, (series, numbered[time - 1]))) for series, time in rows]
