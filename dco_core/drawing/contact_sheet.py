"""Every sheet of pictures: sections of rows and columns with their labels, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import DCOError
from .text import wrapped

_PAPER, _INK, _SOFT = (250, 250, 248), (34, 34, 40), (104, 104, 114)
_EMPTY, _RULE = (232, 232, 228), (214, 214, 210)
_GAP = 8  # pixels
_HEADING_LINES = 4  # at most, above a column
MAX_SIDE = 8192  # of the sheet; larger pictures are drawn smaller


@dataclass(frozen=True)
class Row:
    """pictures: uint8 [H, W, 3], of any sizes, one a column; None leaves a gap. label: to their left; note: below it,
    smaller; its lines are kept."""

    pictures: Sequence[np.ndarray | None]
    label: str = ""
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Rows under common column headings, which may be empty, and a title."""

    rows: Sequence[Row]
    headings: Sequence[str] = ()
    title: str = ""


class Box(NamedTuple):
    """Where a cell lies on the sheet, in pixels; right and bottom do not belong to it."""

    left: int
    top: int
    right: int
    bottom: int


class Sheet(NamedTuple):
    """picture: uint8 [H, W, 3]. cells: of each section, of each row, of each picture."""

    picture: np.ndarray
    cells: list[list[list[Box]]]


def draw_sheet(
    sections: Sequence[Section], title: str = "", *, cell: int | None = None, title_lines: int = 1
) -> Sheet:
    """All sections below one another, with cells of one size.

    cell: the longer side of a cell in pixels; None: that of the largest picture, or less where the sheet would be
        wider or higher than MAX_SIDE. Pictures fill their cell, proportions kept.
    title_lines: room for the title of each section that has one, whether it needs it or not: the size of a sheet does
        not depend on what its titles say. Dots stand for what does not fit.
    DCOError for no picture, and for headings that are not as many as the pictures of a row."""
    _check(sections)
    return _Layout(sections, title, cell, title_lines).draw()


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str = "",
) -> np.ndarray:
    """The sheet of one section, uint8 [H, W, 3]; see `draw_sheet`. DCOError for rows or columns without a label."""
    if len(rows) != len(row_labels):
        raise DCOError(
            f"The contact sheet has {len(rows)} rows and {len(row_labels)} labels for them: give one each."
        )
    made = [Row(row, label) for row, label in zip(rows, row_labels, strict=True)]
    return draw_sheet([Section(made, column_labels)], title).picture


def _check(sections: Sequence[Section]) -> None:
    if not any(picture is not None for s in sections for row in s.rows for picture in row.pictures):
        raise DCOError("A contact sheet needs at least one picture.")
    for section in sections:
        for row in section.rows:
            if section.headings and len(row.pictures) != len(section.headings):
                raise DCOError(
                    f'The row "{row.label}" of the contact sheet has {len(row.pictures)} pictures under '
                    f"{len(section.headings)} column labels: give a label to each."
                )


class _Layout:
    """Sizes that all sections share, and the drawing of them."""

    def __init__(self, sections: Sequence[Section], title: str, cell: int | None, title_lines: int):
        self._sections, self._title_lines = sections, title_lines
        rows = [row for section in sections for row in section.rows]
        columns = max(len(row.pictures) for row in rows)
        self._height, self._width = _cell_size(rows, columns, cell)

        size = max(13, min(32, self._height // 13))
        self._font, self._small = (ImageFont.load_default(size=round(s * size)) for s in (1, 0.85))
        self._bold, self._large = (ImageFont.load_default(size=round(s * size)) for s in (1.1, 1.4))
        self._line = round(1.3 * size)
        self._labels = [self._label(row) for row in rows]
        widest = max((font.getlength(line) for lines in self._labels for line, font, _ in lines), default=0)
        self._left = _GAP + (round(widest) + 2 * _GAP if widest else 0)
        texts = [heading for section in sections for heading in section.headings]
        longest = max(map(self._font.getlength, texts), default=0)
        self._column = max(self._width, round(min(longest, 8.5 * size))) + _GAP
        self._full = self._left + columns * self._column
        self._full = max(self._full, round(min(self._large.getlength(title) + 2 * _GAP, 24 * size)))
        self._title = self._lines(title, self._large, self._full - 2 * _GAP) if title else []

    def _lines(self, text: str, font, room: float, lines: int | None = None) -> list[str]:
        return wrapped(text, font.getlength, room, lines)

    def _label(self, row: Row) -> list[tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont, tuple]]:
        """(line, font, colour) of a row's label and note, as many as fit beside the cell."""
        room, most = max(1.2 * self._width, 14 * self._line / 1.3), max(1, self._height // self._line)
        note = row.note.splitlines()[: most - 1]
        label = self._lines(row.label, self._font, room, most - len(note)) if row.label else []
        notes = [self._lines(line, self._small, room, 1)[0] for line in note]
        return [(line, self._font, _INK) for line in label] + [(line, self._small, _SOFT) for line in notes]

    def draw(self) -> Sheet:
        headings = [
            [self._lines(h, self._font, self._column - _GAP, _HEADING_LINES) for h in section.headings]
            for section in self._sections
        ]
        heights = [self._section_height(s, h) for s, h in zip(self._sections, headings, strict=True)]
        top = _GAP + round(1.4 * self._line) * len(self._title) if self._title else 0
        image = Image.new("RGB", (self._full, top + sum(heights)), _PAPER)
        pen = ImageDraw.Draw(image)
        for i, line in enumerate(self._title):
            pen.text((_GAP, _GAP + round(1.4 * self._line) * i), line, fill=_INK, font=self._large)
        cells, labels = [], iter(self._labels)
        for section, heading, height in zip(self._sections, headings, heights, strict=True):
            cells.append(self._draw_section(image, pen, top, section, heading, labels))
            top += height
        return Sheet(np.asarray(image), cells)

    def _head(self, section: Section, headings: list[list[str]]) -> tuple[int, int]:
        """Heights of a section's title and of its column headings."""
        title = round(1.15 * self._line) * self._title_lines if section.title else 0
        return title, self._line * max((len(lines) for lines in headings if lines != [""]), default=0)

    def _section_height(self, section: Section, headings: list[list[str]]) -> int:
        return 2 * _GAP + sum(self._head(section, headings)) + len(section.rows) * (self._height + _GAP)

    def _draw_section(
        self, image: Image.Image, pen: ImageDraw.ImageDraw, y: int, section: Section, headings: list[list[str]], labels
    ) -> list[list[Box]]:  # fmt: skip
        title, head = self._head(section, headings)
        if title and self._title:  # sections of one sheet are told apart
            pen.line([(_GAP, y), (self._full - _GAP, y)], fill=_RULE)
        y += _GAP
        if title:
            lines = self._lines(section.title, self._bold, self._full - 2 * _GAP, self._title_lines)
            for i, line in enumerate(lines):
                pen.text((_GAP, y + round(1.15 * self._line) * i), line, fill=_INK, font=self._bold)
        for j, lines in enumerate(headings):
            at = (self._left + j * self._column, y + title + head - self._line * len(lines))
            for i, line in enumerate(lines):
                pen.text((at[0], at[1] + i * self._line), line, fill=_SOFT, font=self._font)
        y += title + head + _GAP
        cells = []
        for row in section.rows:
            cells.append(self._draw_row(image, pen, y, row, next(labels)))
            y += self._height + _GAP
        return cells

    def _draw_row(self, image: Image.Image, pen: ImageDraw.ImageDraw, y: int, row: Row, label) -> list[Box]:
        at = y + (self._height - self._line * len(label)) // 2
        for i, (line, font, colour) in enumerate(label):
            pen.text((_GAP, at + i * self._line), line, fill=colour, font=font)
        boxes = []
        for j, picture in enumerate(row.pictures):
            x = self._left + j * self._column
            boxes.append(Box(x, y, x + self._width, y + self._height))
            if picture is None:
                pen.rectangle([x, y, x + self._width - 1, y + self._height - 1], fill=_EMPTY)
            else:
                image.paste(_resized(picture, self._width, self._height), (x, y))
        return boxes


def _cell_size(rows: Sequence[Row], columns: int, cell: int | None) -> tuple[int, int]:
    """(height, width) in pixels."""
    shapes = [picture.shape for row in rows for picture in row.pictures if picture is not None]
    height, width = (max(shape[i] for shape in shapes) for i in (0, 1))
    if cell is not None:
        scale = cell / max(height, width)
    else:
        scale = min(1.0, MAX_SIDE / (1.3 * width * columns), MAX_SIDE / (1.1 * height * len(rows)))
    return max(16, round(height * scale)), max(16, round(width * scale))


def _resized(picture: np.ndarray, width: int, height: int) -> Image.Image:
    """As large as the cell allows, its proportions kept."""
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("RGB")
    factor = min(width / image.width, height / image.height)
    if factor == 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC)
