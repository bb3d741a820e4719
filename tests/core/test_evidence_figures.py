"""Which figures a study gets."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dco_core.evidence.figures import frontiers, save
from dco_core.evidence.study import BASE


def mean(method, guidance, likeness, alignment):
    return {"method": method, "subject": "toy", "style": None, "seed": 0, "guidance": guidance,
            "likeness": likeness, "alignment": alignment}  # fmt: skip


def study_of(*methods):
    trained = [mean(m, g, likeness, 1.0) for m in methods for g, likeness in ((0.6, 0.3), (1.4, 0.6))]
    return [mean(BASE, 0.0, 0.0, 1.0), *trained]


def test_the_same_curves_are_drawn_once():
    assert list(frontiers(study_of("DreamBooth", "DCO"))) == ["frontier"]


def test_a_figure_that_shows_more_is_drawn_too():
    assert list(frontiers(study_of("DreamBooth", "DCO", "DCO, double beta"))) == ["frontier", "beta"]
    assert list(frontiers(study_of("DreamBooth", "DCO", "mine"))) == ["frontier", "own_methods"]


def test_a_chart_is_written_as_png_and_svg_a_sheet_as_it_is(tmp_path):
    ((name, figure),) = frontiers(study_of("DreamBooth", "DCO")).items()
    save(tmp_path / "figures" / f"{name}.png", figure)
    save(tmp_path / "figures" / "sheet.jpg", np.zeros((20, 30, 3), np.uint8))
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["frontier.png", "frontier.svg", "sheet.jpg"]
    with Image.open(tmp_path / "figures" / "frontier.png") as image:
        assert image.width == 1050
    assert "<svg" in (tmp_path / "figures" / "frontier.svg").read_text(encoding="utf-8")
