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
from .tables import Row

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
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in _POINT), []).append(row)
    means = []
    for key, group in groups.items():
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
    groups: dict[tuple, list[Row]] = {}
    for row in means:
        key = (row.get("base"), row["method"], row.get("checkpoint"), row["guidance"])
        groups.setdefault(key, []).append(row)
    table = []
    for (base, method, checkpoint, guidance), group in groups.items():
        line: Row = {"base": base, "method": method, "checkpoint": checkpoint, "guidance": guidance}
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
    points: dict[str, dict[Unit, list[tuple[float, float]]]] = {}
    for row in means:
        if row.get(x) is not None:
            points.setdefault(row["method"], {}).setdefault(unit_of(row), []).append((row[x], row["alignment"]))
    return {
        method: {unit: area_under_frontier(found) for unit, found in units.items()}
        for method, units in points.items()
    }


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


def gaps(
    means: Iterable[Row], a: str, b: str, x: str
) -> tuple[list[float], int]:
    """gap_at_equal_x of two methods' curves over guidance, plain guidance among it, for each unit that has both: how
    much more of the prompt a obeys than b at equal likeness; and how many units have no likeness in common."""
    curves: dict[str, dict[Unit, list[tuple[float, float]]]] = {a: {}, b: {}}
    for row in means:
        if row["method"] in curves and row.get(x) is not None:
            curves[row["method"]].setdefault(unit_of(row), []).append((row[x], row["alignment"]))
    found = [gap_at_equal_x(curves[a][unit], curves[b][unit]) for unit in curves[a] if unit in curves[b]]
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
    found: dict[str, dict[Unit, list[float]]] = {}
    for row in rows:
        found.setdefault(row["method"], {}).setdefault(unit_of(row), []).append(row["epsilon"])
    return {
        method: {unit: _mean(values) for unit, values in units.items()} for method, units in found.items()
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


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
