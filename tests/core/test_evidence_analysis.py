"""Means, frontiers, intervals and verdicts of a study, against answers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dco_core.evidence.analysis import (
    area_under_frontier,
    averages,
    frontier_areas,
    gap_at_equal_x,
    gaps,
    paired,
    unit_means,
)
from dco_core.evidence.claims import FAILS, FEW, HOLDS, OPEN, Claim, Comparison, Evidence, claims_of
from dco_core.evidence.intervals import Interval, holm, interval
from dco_core.evidence.tables import markdown, read_table, write_table


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0.0),
        ([(0.5, 0.5)], 0.25),
        ([(0.5, 0.5), (0.4, 0.4)], 0.25),  # the second is dominated
        ([(0.2, 0.9), (0.6, 0.5)], 0.2 * 0.4 + 0.6 * 0.5),
        ([(0.6, 0.5), (0.2, 0.9), (0.4, 0.7)], 0.6 * 0.5 + 0.4 * 0.2 + 0.2 * 0.2),
        ([(-0.3, 0.9), (0.5, 0.5)], 0.25),  # a cosine below 0 dominates nothing
    ],
)
def test_the_area_under_a_frontier(points, area):
    assert area_under_frontier(points) == pytest.approx(area)


def test_an_interval_covers_the_mean_and_narrows_with_the_spread():
    wide, narrow = interval([0.0, 0.2, 0.4, 0.1, 0.3]), interval([0.19, 0.2, 0.21, 0.2, 0.2])
    assert wide.mean == pytest.approx(0.2) and wide.low < 0.2 < wide.high
    assert narrow.high - narrow.low < (wide.high - wide.low) / 10
    assert (
        narrow.sign == 1 and interval([-0.2, -0.3, -0.25]).sign == -1 and interval([-1.0, 1.0, 0.1]).sign == 0
    )


def test_the_interval_is_students():
    """Worked out with the table of t: 0.975 of 4 degrees of freedom is 2.776."""
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert (found.low, found.high) == (pytest.approx(3 - half, abs=1e-5), pytest.approx(3 + half, abs=1e-5))
    assert found.p_above(3 - half) == pytest.approx(0.025, abs=1e-6)
    assert found.p_below(3 + half) == pytest.approx(0.025, abs=1e-6)
    assert found.p_equal(10) < 0.01 and found.p_equal(1) > 0.9


def test_intervals_of_five_units_cover_what_they_say():
    random = np.random.default_rng(1)
    found = [interval(random.normal(0.3, 1.0, 5)) for _ in range(2000)]
    assert np.mean([i.low < 0.3 < i.high for i in found]) == pytest.approx(0.95, abs=0.015)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_few_units_decide_nothing():
    assert math.isinf(interval([0.5]).low)
    four, five = interval([0.5, 0.51, 0.49, 0.5]), interval([0.5, 0.51, 0.49, 0.5, 0.5])
    assert Claim("", "", [Comparison("", four, 1)]).verdict == FEW
    assert Claim("", "", [Comparison("", five, 1)]).verdict == HOLDS


def row(method, seed, guidance, likeness, alignment, subject="toy", style=None):
    return {
        "method": method, "subject": subject, "style": style, "seed": seed, "guidance": guidance,
        "likeness": likeness, "alignment": alignment,
    }  # fmt: skip


def test_means_of_units_and_their_spread():
    rows = [row("DCO", 0, 1.0, 0.2, 1.0), row("DCO", 0, 1.0, 0.4, 0.8), row("DCO", 1, 1.0, 0.5, 1.0)]
    means = unit_means(rows)
    assert [(m["likeness"], m["alignment"], m["pictures"]) for m in means] == [
        (pytest.approx(0.3), pytest.approx(0.9), 2), (0.5, 1.0, 1),
    ]  # fmt: skip
    (average,) = averages(means)
    assert average["likeness"] == pytest.approx(0.4) and average["likeness sd"] == pytest.approx(
        math.sqrt(0.02)
    )
    assert average["n"] == 2


def test_frontiers_are_of_a_unit_and_compared_in_pairs():
    means = unit_means(
        [
            row("A", 0, 1.0, 0.5, 0.5),
            row("A", 1, 1.0, 0.2, 0.5),
            row("B", 1, 1.0, 0.5, 1.0),
            row("B", 0, 2.0, 0.1, 1.0),
        ]
    )
    areas = frontier_areas(means, "likeness")
    assert areas["A"] == {("toy", None, 0): 0.25, ("toy", None, 1): 0.1}
    assert paired(areas["B"], areas["A"]) == pytest.approx([0.4, -0.15])


@pytest.mark.parametrize(
    ("a", "b", "gap"),
    [
        ([(0, 1), (1, 1)], [(0, 0.5), (1, 0.5)], 0.5),
        ([(0, 1), (1, 0)], [(0, 0.5), (1, 0.5)], 0.0),
        ([(0, 1), (1, 0)], [(0.5, 0.5), (2, 0.5)], -0.25),  # from 0.5 to 1: 0.25 on average against 0.5
        ([(1, 0), (0, 1)], [(2, 0.5), (0.5, 0.5)], -0.25),  # in any order
        ([(0, 1), (1, 0.8), (0.5, 0.2)], [(0, 0.5), (1, 0.5)], 0.4),  # a point that bends back is dominated
        ([(0, 1), (0.2, 1)], [(0.3, 1), (0.5, 1)], None),
        ([(0.4, 1)], [(0.3, 1), (0.5, 1)], None),
    ],
)
def test_the_gap_between_two_curves_at_equal_likeness(a, b, gap):
    found = gap_at_equal_x(a, b)
    assert found is None if gap is None else found == pytest.approx(gap, abs=1e-9)


def test_gaps_are_of_reward_guidance_in_each_unit():
    rows = [row("A", seed, w, w, 0.8) for seed in (0, 1) for w in (0.2, 0.6)]
    rows += [row("B", seed, w, w, 0.5 + 0.1 * seed) for seed in (0, 1, 2) for w in (0.2, 0.6)]
    rows += [row("C", 0, w, 0.6 + w, 0.9) for w in (0.2, 0.6)] + [row("C", 1, w, w, 0.9) for w in (0.2, 0.6)]
    found, without = gaps(unit_means(rows), "A", "B", "likeness")
    assert found == pytest.approx([0.3, 0.2]) and without == 0
    assert gaps(unit_means(rows), "A", "C", "likeness")[1] == 1  # counted, not dropped in silence


def test_plain_guidance_belongs_to_the_frontier():
    rows = [row("A", 0, g, x, y) for g, x, y in ((0.6, 0.2, 1.0), (1.4, 0.6, 0.5), ("plain", 0.6, 1.0))]
    rows += [row("B", 0, w, w, 0.9) for w in (0.2, 0.6)]
    assert gaps(unit_means(rows), "A", "B", "likeness")[0] == pytest.approx([0.1])


def comparison(low, high, predicted):
    error = (high - low) / 2 / 2.7764
    return Comparison("", Interval((low + high) / 2, low, high, 5, error), predicted, margin=0.03)


@pytest.mark.parametrize(
    ("comparisons", "verdict"),
    [
        ([comparison(0.1, 0.2, 1)], HOLDS),
        ([comparison(-0.2, -0.1, -1), comparison(0.1, 0.2, 1)], HOLDS),
        ([comparison(-0.1, 0.2, 1), comparison(0.1, 0.2, 1)], OPEN),
        ([comparison(-0.2, -0.1, 1), comparison(0.1, 0.2, 1)], FAILS),
        ([comparison(-0.01, 0.02, 0)], HOLDS),
        ([comparison(-0.1, 0.2, 0)], OPEN),  # includes 0, and differences that are too large
        ([comparison(0.1, 0.2, 0)], FAILS),
        ([comparison(0.001, 0.02, 0)], HOLDS),  # a difference, which does not matter
    ],
)
def test_verdicts_follow_from_the_intervals(comparisons, verdict):
    assert Claim("", "", comparisons).verdict == verdict


def test_claims_read_the_scores_of_their_methods():
    """DCO better in every unit, beta as the paper says, noise distance the wrong way round."""
    rows, distances = [], []
    for seed in range(5):
        noise = 0.001 * seed
        for method, likeness, alignment in (
            ("DreamBooth", 0.5, 0.7), ("DCO", 0.5, 0.9), ("DCO, half beta", 0.6, 0.8), ("DCO, double beta", 0.4, 0.95),
        ):  # fmt: skip
            rows += [row(method, seed, g, likeness + noise, alignment) for g in ("plain", 1.0)]
            rows.append(row(method, seed, 2.0, 0.8 + noise, alignment))
        for method, distance in (("DreamBooth", 0.1), ("DCO", 0.2)):
            distances.append(
                {"method": method, "subject": "toy", "style": None, "seed": seed, "epsilon": distance + noise}
            )
    verdicts = {claim.source: claim.verdict for claim in claims_of(Evidence(unit_means(rows), distances, []))}
    assert verdicts["Fig. 1 and 9"] == HOLDS
    assert verdicts["Sec. 5.4, Fig. 8c"] == FAILS
    betas = [c for c in claims_of(Evidence(unit_means(rows), [], [])) if "larger beta" in c.text]
    assert [c.verdict for c in betas] == [HOLDS]


def test_tables_come_back_as_they_were_written(tmp_path):
    rows = [{"a": 1, "b": 0.25, "c": "plain"}, {"a": -2, "b": None, "d": "a, b"}]
    write_table(tmp_path / "new" / "table.csv", rows)
    assert read_table(tmp_path / "new" / "table.csv") == [
        {"a": 1, "b": 0.25, "c": "plain", "d": None}, {"a": -2, "b": None, "c": None, "d": "a, b"},
    ]  # fmt: skip
    assert markdown(rows).splitlines()[2] == "| 1 | 0.250 | plain |  |"
