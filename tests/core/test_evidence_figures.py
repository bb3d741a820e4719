"""Which figures a study gets."""

from __future__ import annotations

from dco_core.evidence.figures import frontiers
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
