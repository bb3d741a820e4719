"""The sheet of a training's previews."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..training.previews import Preview
from .contact_sheet import Row, Section, draw_sheet

_CELL, _TITLE_LINES = 256, 2


def preview_sheet(previews: Sequence[Preview], images: Sequence[np.ndarray], heading: str) -> np.ndarray:
    """The pictures of `Previews.take` as images, a row a prompt -> uint8 [H, W, 3], of the same size whatever the
    heading. images: uint8 [H, W, 3], one a preview. heading: before every prompt, such as "step 100"."""
    rows: list[tuple[str, list[str], list[np.ndarray]]] = []
    for (prompt, label, _), image in zip(previews, images, strict=True):
        if not rows or rows[-1][0] != prompt or label in rows[-1][1]:
            rows.append((prompt, [], []))
        rows[-1][1].append(label)
        rows[-1][2].append(image)
    sections = [Section([Row(row)], labels, f"{heading}: {prompt}") for prompt, labels, row in rows]
    return draw_sheet(sections, cell=_CELL, title_lines=_TITLE_LINES).picture
