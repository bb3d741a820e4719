"""Pictures in rows and columns with their labels, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import DCOError
from .text import wrapped

_PAPER, _INK, _EMPTY = (250, 250, 248), (34, 34, 40), (232, 232, 228)
_GAP = 6  # pixels
MAX_SIDE = 8192  # of the sheet; larger pictures are drawn smaller


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str = "",
) -> np.ndarray:
    """Pictures (uint8 [H, W, 3], of any sizes; None leaves a gap) -> the sheet, uint8 [H, W, 3]. Cells have the size
    of the largest picture, or less where the sheet would be wider or higher than MAX_SIDE. DCOError for no picture, and
    for rows that do not have as many as there are labels. Long row labels are set in lines."""
    shapes = [picture.shape for row in rows for picture in row if picture is not None]
    if not shapes:
        raise DCOError("A contact sheet needs at least one picture.")
    wrong = [len(row) for row in rows if len(row) != len(column_labels)]
    if wrong or len(rows) != len(row_labels):
        raise DCOError(
            f"The contact sheet has {len(row_labels)} x {len(column_labels)} labels, but {len(rows)} rows of "
            f"{', '.join(str(n) for n in sorted({len(row) for row in rows}))} pictures: give a label to each."
        )
    cell_height, cell_width = (max(shape[i] for shape in shapes) for i in (0, 1))
    scale = min(
        1.0, MAX_SIDE / (1.3 * cell_width * len(column_labels)), MAX_SIDE / (1.1 * cell_height * len(rows))
    )
    cell_height, cell_width = (max(16, round(side * scale)) for side in (cell_height, cell_width))

    size = max(12, min(36, cell_height // 12))
    font, heading = ImageFont.load_default(size=size), ImageFont.load_default(size=round(1.25 * size))
    names = [wrapped(label, font, max(1.2 * cell_width, 8 * size)) for label in row_labels]
    left = 2 * _GAP + round(max((font.getlength(line) for lines in names for line in lines), default=0))
    column = _GAP + max(cell_width, *(round(font.getlength(label)) + _GAP for label in column_labels))
    top = (2 * size + _GAP if title else 0) + 2 * size
    width = max(left + column * len(column_labels) + _GAP, round(heading.getlength(title)) + 2 * _GAP)
    sheet = Image.new("RGB", (width, top + (cell_height + _GAP) * len(rows)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), title, fill=_INK, font=heading)
    for j, label in enumerate(column_labels):
        pen.text((left + j * column, top - round(1.5 * size)), label, fill=_INK, font=font)
    for i, (lines, row) in enumerate(zip(names, rows, strict=True)):
        y = top + i * (cell_height + _GAP)
        middle = (_GAP, y + cell_height // 2)
        pen.multiline_text(middle, "\n".join(lines), fill=_INK, font=font, anchor="lm")
        for j, picture in enumerate(row):
            box = (left + j * column, y)
            if picture is None:
                pen.rectangle([*box, box[0] + cell_width - 1, box[1] + cell_height - 1], fill=_EMPTY)
            else:
                sheet.paste(_fitted(picture, cell_width, cell_height), box)
    return np.asarray(sheet)


def _fitted(picture: np.ndarray, width: int, height: int) -> Image.Image:
    """As large as the cell allows, its proportions kept."""
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("RGB")
    factor = min(width / image.width, height / image.height)
    if factor == 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC)
