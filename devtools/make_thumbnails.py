"""Make the templates' thumbnails out of pictures that they really made.

    python dev.py demo
    .dev/venv/bin/python -m devtools.make_thumbnails [NUMBER ...]

Most templates show cells of the demo's contact sheet, which also becomes docs/contact_sheet.jpg; docs/row.png, the
picture at the top of the README, is made of it too. Template 4 is run, which takes some minutes, and shows its plot
above pictures of both methods. Templates 6 and 7 show what the settings of template 6 draw (make_help_pictures). Those
need no demo. NUMBER: the templates to make one for; all of them where none is given. --folder: keeps their LoRAs.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .demo_graph import find
from .environment import ROOT
from .host_server import HostServer
from .layouts import WORKFLOWS
from .make_help_pictures import Maker, reference, two_toys
from .workflow_prompt import to_prompt

SIDE, GUTTER = 400, 4  # pixels
# (section, row, column) of four cells: what each template is about. Sections: references, places, w_rg, style.
CELLS = {
    0: ((0, 0, 1), (2, 0, 0), (2, 0, 3), (1, 2, 1)),
    1: ((0, 0, 0), (0, 0, 1), (1, 2, 1), (1, 2, 0)),
    2: ((2, 0, 0), (2, 0, 1), (2, 0, 3), (2, 0, 5)),
    3: ((0, 0, 1), (0, 0, 4), (3, 0, 1), (3, 0, 5)),
    5: ((0, 0, 2), (0, 0, 3), (1, 2, 2), (1, 2, 3)),
}
COMPARE = 4
TWO_TOYS = (6, 7)
ROW = ((0, 0, 0), (0, 0, 3), *((2, 0, column) for column in range(6)))  # two references, then w_rg from 0 up


def from_sheet(
    sheet: Image.Image,
    boxes: Sequence[Sequence[Sequence[Sequence[int]]]],
    cells: Sequence[tuple[int, int, int]],
) -> Image.Image:
    """Four cells of the demo's contact sheet. boxes: left, top, right and bottom of each section, row and column."""
    thumbnail, side = Image.new("RGB", (SIDE, SIDE), "white"), (SIDE - GUTTER) // 2
    for i, (section, row, column) in enumerate(cells):
        left, top, right, bottom = boxes[section][row][column]
        cell = sheet.crop((left, top, right, bottom)).resize((side, side), Image.Resampling.BICUBIC)
        thumbnail.paste(cell, ((side + GUTTER) * (i % 2), (side + GUTTER) * (i // 2)))
    return thumbnail


def readme_row(sheet: Image.Image, boxes: Sequence[Sequence[Sequence[Sequence[int]]]]) -> Image.Image:
    """The cells of ROW side by side, with a gap after the references."""
    side, gap = 128, 32
    row = Image.new("RGB", (len(ROW) * (side + GUTTER) + gap - GUTTER, side), "white")
    for i, (section, line, column) in enumerate(ROW):
        left, top, right, bottom = boxes[section][line][column]
        cell = sheet.crop((left, top, right, bottom)).resize((side, side), Image.Resampling.BICUBIC)
        row.paste(cell, (i * (side + GUTTER) + (gap if section else 0), 0))
    return row


def from_comparison(name: str) -> Image.Image:
    """A run of the template as it is: its plot, and below it the second row of each method's sheet."""
    prompt = to_prompt(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")))
    sweeps = find(prompt, "DCORewardGuidanceSweep")
    columns = len(prompt[sweeps[0]]["inputs"]["w_rg_values"].split(","))
    (saved,) = find(prompt, "SaveImage")
    for sweep in sweeps:
        prompt[f"of {sweep}"] = {"class_type": "PreviewImage", "inputs": {"images": [sweep, 0]}}
    with tempfile.TemporaryDirectory() as folder, HostServer(folder) as host:
        outputs = host.client.run(prompt, timeout=3600)

        def pictures(node: str) -> list[Image.Image]:
            return [
                Image.open(io.BytesIO(host.client.download(**image))).convert("RGB")
                for image in outputs[node]["images"]
            ]

        (plot,) = pictures(saved)
        rows = [pictures(f"of {sweep}")[columns : 2 * columns] for sweep in sweeps]
    side = (SIDE - GUTTER * (columns - 1)) // columns
    plot.thumbnail((SIDE, SIDE - len(rows) * (side + GUTTER)), Image.Resampling.LANCZOS)
    thumbnail, y = Image.new("RGB", (SIDE, SIDE), "white"), SIDE
    for row in reversed(rows):
        y -= side + GUTTER
        for i, picture in enumerate(row):
            thumbnail.paste(picture.resize((side, side), Image.Resampling.LANCZOS), ((side + GUTTER) * i, y))
    thumbnail.paste(plot, ((SIDE - plot.width) // 2, (y - plot.height) // 2))
    return thumbnail


def from_two_toys(folder: Path, number: int) -> Image.Image:
    """The first: a reference of each, the base model's picture and the guided one. The second: that one alone."""
    maker = Maker(folder)
    _, base, mine = two_toys(maker)
    references = [reference(what) for what in ("toy", "toy-4")]
    if number != TWO_TOYS[0]:
        return Image.fromarray(mine).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    thumbnail, side = Image.new("RGB", (SIDE, SIDE), "white"), (SIDE - GUTTER) // 2
    for i, picture in enumerate((*references, base, mine)):
        cell = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        thumbnail.paste(cell, ((side + GUTTER) * (i % 2), (side + GUTTER) * (i // 2)))
    return thumbnail


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", type=int, choices=range(len(WORKFLOWS)), metavar="NUMBER")
    parser.add_argument("--folder", type=Path, default=ROOT / "demo_output" / "two_toys")
    args = parser.parse_args()
    numbers = args.numbers or range(len(WORKFLOWS))
    for number, name in enumerate(WORKFLOWS):
        if number not in numbers:
            continue
        if number == COMPARE:
            thumbnail = from_comparison(name)
        elif number in TWO_TOYS:
            thumbnail = from_two_toys(args.folder, number)
        else:
            sheet = Image.open(ROOT / "demo_output" / "contact_sheet.png").convert("RGB")
            sheet.save(ROOT / "docs" / "contact_sheet.jpg", quality=88)
            report = json.loads((ROOT / "demo_output" / "report.json").read_text(encoding="utf-8"))
            thumbnail = from_sheet(sheet, report["cells"], CELLS[number])
            readme_row(sheet, report["cells"]).save(ROOT / "docs" / "row.png")
        thumbnail.save(ROOT / "workflows" / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main()
