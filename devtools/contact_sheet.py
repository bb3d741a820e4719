"""The labelled contact sheet: a row a method, a column a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL, GAP, LABEL, MARGIN = 128, 6, 250, 18  # pixels
HEADER, SECTION, TITLES = 40, 34, 56  # heights of the sheet's title, a section's title, its column headings
_INK, _SOFT, _PAPER = (34, 34, 40), (110, 110, 120), (250, 250, 248)


@dataclass
class Row:
    """A title, a line of scores, and one picture a column."""

    title: str
    note: str
    pictures: Sequence[Image.Image]


@dataclass
class Section:
    """Rows under common column headings; headings may be empty (references)."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Row]


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def draw(sections: Sequence[Section], title: str) -> Image.Image:
    """All sections below one another."""
    big, normal, small = (ImageFont.load_default(size=s) for s in (22, 15, 12))
    columns = max(len(row.pictures) for section in sections for row in section.rows)
    width = 2 * MARGIN + LABEL + columns * (CELL + GAP)
    heights = [
        SECTION + (TITLES if any(section.headings) else 0) + len(section.rows) * (CELL + GAP)
        for section in sections
    ]
    sheet = Image.new("RGB", (width, 2 * MARGIN + HEADER + sum(heights) + 10 * len(sections)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), title, fill=_INK, font=big)
    y = MARGIN + HEADER
    for section in sections:
        pen.line([(MARGIN, y), (width - MARGIN, y)], fill=(214, 214, 210))
        pen.text((MARGIN, y + 8), section.title, fill=_INK, font=normal)
        y += SECTION
        if any(section.headings):
            for column, heading in enumerate(section.headings):
                x = MARGIN + LABEL + column * (CELL + GAP)
                pen.multiline_text((x, y), _wrapped(heading, small, CELL), fill=_SOFT, font=small, spacing=2)
            y += TITLES
        for row in section.rows:
            pen.multiline_text(
                (MARGIN, y + 30), _wrapped(row.title, normal, LABEL - 16), fill=_INK, font=normal
            )
            pen.multiline_text((MARGIN, y + 76), row.note, fill=_SOFT, font=small, spacing=3)
            for column, picture in enumerate(row.pictures):
                x = MARGIN + LABEL + column * (CELL + GAP)
                sheet.paste(picture.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS), (x, y))
            y += CELL + GAP
        y += 10
    return sheet
