"""Scores of a set of pictures: a label and any number of scores for each, and the curve that they make."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..drawing.pareto_plot import Curve
from ..errors import DCOError
from .tables import Row, markdown

LIKENESS, STYLE_LIKENESS, ALIGNMENT = "likeness", "style_likeness", "alignment"


def split_label(label: str) -> tuple[str, str]:
    """ "w_text 3, w_rg 2" -> ("w_text 3", "w_rg 2"): the series, a curve of its own, and the point on it."""
    series, _, point = label.rpartition(",")
    return series.strip(), point.strip()


@dataclass(frozen=True)
class ScoreTable:
    """labels: of each picture, "point" or "series, point"; pictures of one label are one point. columns: {score: a
    number for each picture}."""

    labels: tuple[str, ...]
    columns: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def with_column(self, name: str, values: Sequence[float]) -> ScoreTable:
        """Another score of the same pictures. DCOError for another number of them, and for a score that is there."""
        if len(values) != len(self.labels):
            raise DCOError(
                f"The table has {len(self.labels)} pictures, the new scores {len(values)}: score the same pictures."
            )
        if name in self.columns:
            raise DCOError(f'The table has "{name}" already: start a new table for other pictures.')
        return ScoreTable(self.labels, {**self.columns, name: tuple(float(v) for v in values)})

    def summary(self) -> list[Row]:
        """A row for each label, in order: how many pictures, and the mean of each score."""
        rows: list[Row] = []
        for label, places in self._groups().items():
            means = {
                name: statistics.fmean(values[i] for i in places) for name, values in self.columns.items()
            }
            rows.append({"label": label, "pictures": len(places), **means})
        return rows

    def text(self) -> str:
        """The summary as a Markdown table."""
        return markdown(self.summary())

    def curves(self, name: str, x: str = ALIGNMENT, y: str = LIKENESS) -> list[Curve]:
        """A curve for each series, called `name` and by the series. Points are means over the pictures of a label,
        error bars the standard errors of these means. DCOError if a score is not there."""
        missing = [column for column in (x, y) if column not in self.columns]
        if missing:
            raise DCOError(
                f'{name} has no "{missing[0]}" (only {", ".join(self.columns) or "nothing"}): connect the score node '
                "that gives it, with this table as its `scores`."
            )
        parts: dict[str, list[tuple[str, list[int]]]] = {}
        for label, places in self._groups().items():
            series, point = split_label(label)
            parts.setdefault(series, []).append((point, places))
        curves = []
        for series, points in parts.items():
            pairs = [[[self.columns[c][i] for i in places] for c in (x, y)] for _, places in points]
            curves.append(
                Curve(
                    ", ".join(filter(None, (name, series))),
                    [(statistics.fmean(a), statistics.fmean(b)) for a, b in pairs],
                    [(_standard_error(a), _standard_error(b)) for a, b in pairs],
                    [point for point, _ in points],
                )
            )
        return curves

    def _groups(self) -> dict[str, list[int]]:
        """{label: places of its pictures}, in order of appearance."""
        groups: dict[str, list[int]] = {}
        for i, label in enumerate(self.labels):
            groups.setdefault(label, []).append(i)
        return groups


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
