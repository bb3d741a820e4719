"""The contrasts that a study states beforehand (its field `contrasts`), and what came of them.

A contrast is one claim with one or several tests, all of which it needs (intersection-union: its p is the largest of
theirs). Contrasts of the family "primary" are corrected for being several (Holm).

    {"claim": "...", "family": "primary", "tests": [
      {"kind": "difference", "a": ["epsilon", "DCO", 1000], "b": ["epsilon", "DreamBooth", 1000], "score": "likeness",
       "expect": "above"}]}

kind: "difference": a score of a minus that of b with plain guidance, at a checkpoint each ([base, method, checkpoint]).
"at equal likeness": the score of a minus that of b, each a curve over its checkpoints ([base, method]) that begins at
the base model; the mean over the likenesses from `lowest` on that both reach. "frontier": likewise of curves over
guidance at a checkpoint each. "noise distance": of predictions to the base model's at a checkpoint each, on
"references" or on "prompts" beyond them (`on`).

expect: "above" or "below" 0; "equal": within +-margin, by two one-sided tests; "no worse": above -margin. A margin with
"above" or "below" says from what difference on it would matter: where the tests find it to be less, the claim fails.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DCOError
from .analysis import Unit, curves, gap_at_equal_x, mean_distance, unit_of
from .claims import FAILS, FEW, HOLDS, OPEN, Evidence
from .intervals import Interval, holm, interval
from .study import BASE, PLAIN
from .tables import Row

PRIMARY = "primary"
TYPES = ("difference", "at equal likeness", "frontier", "noise distance")
EXPECTED = ("above", "below", "equal", "no worse")
ALPHA = 0.05
_LOWER_IS_BETTER = ("others_rmse",)


@dataclass(frozen=True)
class Test:
    """See above."""

    kind: str
    a: tuple[Any, ...]
    b: tuple[Any, ...]
    expect: str
    score: str = "alignment"
    margin: float | None = None
    lowest: float = 0.0
    on: str = "references"

    def check(self) -> None:
        for value, known in ((self.kind, TYPES), (self.expect, EXPECTED)):
            if value not in known:
                raise DCOError(f'A contrast of the study has "{value}": use one of {", ".join(known)}.')
        if self.expect in ("equal", "no worse") and not (self.margin and self.margin > 0):
            raise DCOError(f'A contrast that expects "{self.expect}" needs a margin greater than 0.')
        length = 2 if self.kind == "at equal likeness" else 3
        for point in (self.a, self.b):
            if len(point) != length:
                names = ("base", "method", "checkpoint")[:length]
                raise DCOError(f"A contrast of the study has {list(point)}: give [{', '.join(names)}].")

    @property
    def text(self) -> str:
        a, b = (", ".join(str(part) for part in point if part != "") for point in (self.a, self.b))
        what = (
            f"noise distance on {self.on}" if self.kind == "noise distance" else self.score.replace("_", " ")
        )
        where = {"at equal likeness": " at equal likeness", "frontier": " at equal likeness (guidance)"}
        return f"{what}{where.get(self.kind, '')}: ({a}) - ({b})"


@dataclass(frozen=True)
class Contrast:
    claim: str
    tests: tuple[Test, ...]
    family: str = "secondary"


@dataclass(frozen=True)
class Result:
    """What a test found. difference: None where nothing can be compared. left_out: units whose curves have no likeness
    in common."""

    test: Test
    difference: Interval | None
    left_out: int = 0

    @property
    def p(self) -> float:
        """Two-sided for a sign (1 on the wrong side), of two one-sided tests for equality, one-sided for no worse."""
        d, t = self.difference, self.test
        if d is None or not d.enough:
            return 1.0
        if t.expect == "equal":
            return d.p_equal(t.margin or 0.0)
        if t.expect == "no worse":
            return d.p_above(-(t.margin or 0.0))
        return min(1.0, 2 * (d.p_above() if t.expect == "above" else d.p_below()))

    @property
    def refuted(self) -> bool:
        """Whether the opposite was found: the other sign, a difference as large as the margin where none is expected,
        or none as large where one is."""
        d, t = self.difference, self.test
        if d is None or not d.enough:
            return False
        margin = t.margin or 0.0
        if t.expect == "no worse":
            return d.high < -margin
        if t.expect == "equal":
            return d.sign != 0 and abs(d.mean) > margin
        wrong = d.high < 0 if t.expect == "above" else d.low > 0
        return wrong or (margin > 0 and d.p_equal(margin) <= ALPHA)


@dataclass(frozen=True)
class Finding:
    """A contrast with its results. p: the largest of its tests; corrected: by Holm within the primary family, the same
    elsewhere."""

    contrast: Contrast
    results: tuple[Result, ...]
    corrected: float

    @property
    def p(self) -> float:
        return max(r.p for r in self.results)

    @property
    def verdict(self) -> str:
        if any(r.difference is None or not r.difference.enough for r in self.results):
            return FEW
        if self.corrected <= ALPHA:
            return HOLDS
        return FAILS if any(r.refuted for r in self.results) else OPEN


def contrasts_from(values: Sequence[Mapping[str, Any]]) -> list[Contrast]:
    """The contrasts of a study's JSON values. DCOError for what they cannot be."""
    found = []
    for value in values:
        try:
            tests = tuple(Test(**{**t, "a": tuple(t["a"]), "b": tuple(t["b"])}) for t in value["tests"])
            contrast = Contrast(**{**value, "tests": tests})
        except (TypeError, KeyError) as error:
            raise DCOError(f"A contrast of the study is not understood: {error}.") from None
        if not tests:
            raise DCOError(f'The contrast "{contrast.claim}" has no test: give at least one.')
        for test in tests:
            test.check()
        found.append(contrast)
    return found


def findings(contrasts: Sequence[Contrast], evidence: Evidence) -> list[Finding]:
    """What the tables say of each contrast. One that nothing was measured of yet stays in its family, with p = 1."""
    results = [tuple(_result(test, evidence) for test in contrast.tests) for contrast in contrasts]
    p = [max(r.p for r in found) for found in results]
    primary = [i for i, contrast in enumerate(contrasts) if contrast.family == PRIMARY]
    corrected = dict(zip(primary, holm([p[i] for i in primary]), strict=True))
    return [
        Finding(contrast, found, corrected.get(i, p[i]))
        for i, (contrast, found) in enumerate(zip(contrasts, results, strict=True))
    ]


def _result(test: Test, evidence: Evidence) -> Result:
    rows = evidence.means
    if test.kind == "difference":
        return _paired(test, operator.sub, *(_scores(rows, point, test.score) for point in (test.a, test.b)))
    if test.kind == "noise distance":
        found = (_distances(evidence.distances, point, test.on) for point in (test.a, test.b))
        return _paired(test, operator.sub, *found)
    sign = -1.0 if test.score in _LOWER_IS_BETTER else 1.0

    def curve(point: tuple[Any, ...]) -> dict[Unit, list[tuple[float, float]]]:
        found = curves((row for row in rows if _on_curve(row, point)), "likeness", test.score)
        return {unit: [(x, sign * y) for x, y in points] for unit, points in found.items()}

    def gap(a: Any, b: Any) -> float | None:
        found = gap_at_equal_x(a, b, test.lowest)
        return None if found is None else sign * found

    return _paired(test, gap, curve(test.a), curve(test.b))


def _paired(
    test: Test, minus: Callable[[Any, Any], Any], a: Mapping[Unit, Any], b: Mapping[Unit, Any]
) -> Result:
    values = [minus(a[unit], b[unit]) for unit in a if unit in b]
    kept = [v for v in values if v is not None]
    return Result(test, interval(kept) if kept else None, len(values) - len(kept))


def _at(row: Row, point: tuple[Any, ...]) -> bool:
    there = (row.get("base") or "", row["method"]) == tuple(point[:2])
    return there and (len(point) < 3 or str(row.get("checkpoint")) == str(point[2]))


def _scores(rows: Sequence[Row], point: tuple[Any, ...], score: str) -> dict[Unit, float]:
    return {
        unit_of(r): r[score]
        for r in rows
        if _at(r, point) and r["guidance"] == PLAIN and r.get(score) is not None
    }


def _distances(rows: Sequence[Row], point: tuple[Any, ...], on: str) -> dict[Unit, float]:
    chosen = [r for r in rows if _at(r, point) and (r.get("on") or "references") == on]
    return dict(mean_distance(chosen).get(point[1], {}))


def _on_curve(row: Row, point: tuple[Any, ...]) -> bool:
    """Whether a row is of a curve over guidance, at a checkpoint, or over the numbered checkpoints with plain guidance,
    which begins at the base model."""
    if len(point) == 3:
        return _at(row, point)
    if (row.get("base") or "") == point[0] and row["method"] == BASE:
        return True
    return _at(row, point) and row["guidance"] == PLAIN and isinstance(row.get("checkpoint"), int)
