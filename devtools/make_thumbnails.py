"""Cut the templates' thumbnails out of the demo's contact sheet.

    python dev.py demo
    .dev/venv/bin/python -m devtools.make_thumbnails

Also writes docs/contact_sheet.jpg, the picture at the top of the README.
"""

from __future__ import annotations

from PIL import Image

from .contact_sheet import CELL, GAP, HEADER, LABEL, MARGIN, SECTION, TITLES
from .environment import ROOT
from .workflow_layouts import WORKFLOWS

# (section, row, column) of four cells: what each template is about. Sections: references, places, style.
CELLS = (
    ((0, 0, 1), (1, 0, 1), (1, 5, 1), (2, 1, 5)),
    ((0, 0, 0), (0, 0, 1), (1, 2, 1), (1, 2, 0)),
    ((1, 0, 1), (1, 3, 1), (1, 4, 1), (1, 6, 1)),
    ((0, 0, 1), (0, 0, 4), (2, 1, 1), (2, 1, 5)),
)
_ROWS = (1, 8, 3)


def _top(section: int) -> int:
    y = MARGIN + HEADER
    for before in range(section):
        y += SECTION + (TITLES if before else 0) + _ROWS[before] * (CELL + GAP) + 10
    return y + SECTION + (TITLES if section else 0)


def main() -> None:
    sheet = Image.open(ROOT / "demo_output" / "contact_sheet.png").convert("RGB")
    for name, cells in zip(WORKFLOWS, CELLS, strict=True):
        thumbnail = Image.new("RGB", (400, 400), "white")
        for i, (section, row, column) in enumerate(cells):
            x, y = MARGIN + LABEL + column * (CELL + GAP), _top(section) + row * (CELL + GAP)
            cell = sheet.crop((x, y, x + CELL, y + CELL)).resize((198, 198), Image.Resampling.BICUBIC)
            thumbnail.paste(cell, (202 * (i % 2), 202 * (i // 2)))
        thumbnail.save(ROOT / "workflows" / f"{name}.jpg", quality=88)
    sheet.save(ROOT / "docs" / "contact_sheet.jpg", quality=88)


if __name__ == "__main__":
    main()
