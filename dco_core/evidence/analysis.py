"""What the scores of a study say: means with their spread, frontiers, and differences in pairs.

A unit is one subject (or style, or both) with one seed: the same references, the same noise in training and in the
pictures. Methods are compared unit by unit, and intervals are over units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .prompts import FAR, OTHERS
from .study import BASE, CEILING, PLAIN
from .tables import Row, grouped

Unit = tuple[Any, Any, Any]  # subject, style, seed
SCORE_NAMES = (
    "likeness", "style_likeness", "style_form", "alignment", "factors", "judged_subject", "judged_style",
    "judged_alignment",
)  # fmt: skip
# of the prompts that change everything, and of those without what was learned (collateral damage)
FAR_NAMES = ("far_likeness", "far_alignment")
OTHERS_NAMES = ("others_alignment", "others_rmse")


def unit_means(rows: Iterable[Row]) -> list[Row]:
    """The mean scores of each method, unit, checkpoint and guidance: a row each, with the number of pictures.
    FAR_NAMES are of the prompts that change everything, OTHERS_NAMES of those without what was learned; all other
    scores are of every prompt that has it."""
    means = []
    for key, group in grouped(rows, lambda row: tuple(row.get(name) for name in _POINT)).items():
        own = [r for r in group if r.get("prompts") != OTHERS]
        far = [r for r in own if r.get("prompts") == FAR]
        others = [r for r in group if r.get("prompts") == OTHERS]
        mean: Row = dict(zip(_POINT, key, strict=True))
        mean |= _scores(own, {name: name for name in SCORE_NAMES})
        mean |= _scores(far, {name.removeprefix("far_"): name for name in FAR_NAMES})
        mean |= _scores(others, {name.removeprefix("others_"): name for name in OTHERS_NAMES})
        means.append({**mean, "pictures": len(group)})
    return means


_POINT = ("base", "method", "subject", "style", "seed", "checkpoint", "guidance")


def _scores(rows: Sequence[Row], names: Mapping[str, str]) -> Row:
    return {
        name: _mean(r[score] for r in rows)
        for score, name in names.items()
        if rows and rows[0].get(score) is not None
    }


def averages(means: Iterable[Row]) -> list[Row]:
    """unit_means over units: for each method, checkpoint and guidance the mean of each score and its standard
    deviation over units."""
    names = ("base", "method", "checkpoint", "guidance")
    table = []
    for key, group in grouped(means, lambda row: tuple(row.get(name) for name in names)).items():
        line: Row = dict(zip(names, key, strict=True))
        for score in (*SCORE_NAMES, *FAR_NAMES, *OTHERS_NAMES):
            if group[0].get(score) is not None:
                values = [r[score] for r in group]
                line[score] = _mean(values)
                line[f"{score} sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        table.append({**line, "n": len(group)})
    return table


def unit_of(row: Mapping[str, Any]) -> Unit:
    return row.get("subject"), row.get("style"), row["seed"]


def frontier(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other dominates, from left to right."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points, reverse=True):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept[::-1]


def area_under_frontier(points: Iterable[tuple[float, float]]) -> float:
    """The part of the unit square that a set of points dominates: the area of all (x, y) with x <= p_x and y <= p_y
    for some point p (the hypervolume of Zitzler and Thiele 1998 with reference point 0, 0)."""
    area, height = 0.0, 0.0
    for x, y in reversed(frontier(points)):
        area += (max(y, 0.0) - height) * max(0.0, x)
        height = max(y, 0.0)
    return area


def frontier_areas(means: Iterable[Row], x: str) -> dict[str, dict[Unit, float]]:
    """{method: {unit: area under the frontier}} over all guidances of a method. The base model's is a point."""
    return {
        method: {unit: area_under_frontier(points) for unit, points in curves(rows, x).items()}
        for method, rows in grouped((row for row in means if row.get(x) is not None), _method).items()
    }


def curves(rows: Iterable[Row], x: str, y: str = "alignment") -> dict[Unit, list[tuple[float, float]]]:
    """{unit: its points (x, y)} of the rows that have both scores."""
    both = (row for row in rows if row.get(x) is not None and row.get(y) is not None)
    return {unit: [(row[x], row[y]) for row in found] for unit, found in grouped(both, unit_of).items()}


def gap_at_equal_x(
    a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]], lowest: float = -np.inf
) -> float | None:
    """How much higher the frontier of the points a lies than that of b: the mean of y_a(x) - y_b(x) over the x that
    both curves reach, from `lowest` on, linear between frontier points and level left of the first. None where the
    curves reach no x in common, or have fewer than two points."""
    if len(a) < 2 or len(b) < 2:
        return None
    low = max(lowest, *(min(x for x, _ in points) for points in (a, b)))
    high = min(max(x for x, _ in points) for points in (a, b))
    if not low < high:
        return None
    grid = np.linspace(low, high, 101)
    heights = [np.interp(grid, *np.array(frontier(points)).T) for points in (a, b)]
    return float((heights[0] - heights[1]).mean())


def gaps(means: Sequence[Row], a: str, b: str, x: str) -> tuple[list[float], int]:
    """gap_at_equal_x of two methods' curves over guidance, plain guidance among it, for each unit that has both: how
    much more of the prompt a obeys than b at equal likeness; and how many units have no likeness in common."""
    of_a, of_b = (curves((row for row in means if row["method"] == method), x) for method in (a, b))
    found = [gap_at_equal_x(of_a[unit], of_b[unit]) for unit in of_a if unit in of_b]
    return [gap for gap in found if gap is not None], found.count(None)


def paired(a: Mapping[Unit, float], b: Mapping[Unit, float]) -> list[float]:
    """a - b on the units that both have."""
    return [a[unit] - b[unit] for unit in a if unit in b]


def score_at(means: Iterable[Row], method: str, guidance: Any, score: str) -> dict[Unit, float]:
    """{unit: score} of a method at one guidance."""
    return {
        unit_of(row): row[score]
        for row in means
        if row["method"] == method and row["guidance"] == guidance and row.get(score) is not None
    }


def mean_distance(rows: Iterable[Row]) -> dict[str, dict[Unit, float]]:
    """{method: {unit: noise distance, the mean over timesteps}} from the rows of distances.csv."""
    return {
        method: {unit: _mean(r["epsilon"] for r in found) for unit, found in grouped(own, unit_of).items()}
        for method, own in grouped(rows, _method).items()
    }


def guidances(means: Iterable[Row]) -> list[float]:
    """The w_rg of a study, in order."""
    no_method, no_scale = (BASE, CEILING), (PLAIN, CEILING)
    return sorted(
        {r["guidance"] for r in means if r["method"] not in no_method and r["guidance"] not in no_scale}
    )


def mean_over_w_rg(rows: Sequence[Row], method: str, score: str) -> dict[Unit, float]:
    """{unit: mean score over all w_rg} of a method, for the units that have every w_rg."""
    by_scale = [score_at(rows, method, w, score) for w in guidances(rows)]
    shared = set.intersection(*(set(units) for units in by_scale)) if by_scale else set()
    return {unit: _mean(units[unit] for units in by_scale) for unit in sorted(shared, key=str)}


def _method(row: Row) -> str:
    return row["method"]


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
