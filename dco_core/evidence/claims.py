"""The claims of the paper, each as comparisons in pairs with the sign that it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from . import analysis
from .intervals import FEWEST, Interval, interval
from .study import PLAIN
from .tables import Row

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "not shown here"
FEW = f"fewer than {FEWEST} units"


@dataclass(frozen=True)
class Comparison:
    """What was subtracted from what, and the sign that the claim predicts. 0: no difference, none as large as `margin`.
    left_out: units that could not be compared, as their curves have no likeness in common."""

    text: str
    difference: Interval
    predicted: int
    margin: float = 0.0
    left_out: int = 0

    @property
    def verdict(self) -> str:
        """With fewer than five units nothing is decided. A sign holds if the interval excludes 0 on its side, and does
        not if it does on the other. No difference holds if two one-sided tests at 5 % place it inside the margin, and
        does not if the interval excludes 0 and its mean lies outside."""
        d = self.difference
        if not d.enough:
            return FEW
        if self.predicted:
            return HOLDS if d.sign == self.predicted else FAILS if d.sign == -self.predicted else OPEN
        if d.p_equal(self.margin) <= 0.05:
            return HOLDS
        return FAILS if d.sign and abs(d.mean) > self.margin else OPEN


@dataclass(frozen=True)
class Claim:
    """text: as the paper makes it. source: where. comparisons: what this study says of it."""

    text: str
    source: str
    comparisons: Sequence[Comparison]

    @property
    def verdict(self) -> str:
        """Holds if every comparison does, does not if one does not; otherwise this study does not show it."""
        found = {c.verdict for c in self.comparisons}
        for verdict in (FAILS, FEW, OPEN):
            if verdict in found:
                return verdict
        return HOLDS


@dataclass(frozen=True)
class Evidence:
    """The tables of a study: means of units (analysis.unit_means), noise distances, cosines of merged pairs."""

    means: Sequence[Row]
    distances: Sequence[Row]
    cosines: Sequence[Row]


def claims_of(evidence: Evidence) -> list[Claim]:
    """The claims that the tables can speak of."""
    made = (
        Claim(text, source, [c for c in comparisons(evidence) if c.difference.n])
        for text, source, comparisons in _CLAIMS
    )
    return [claim for claim in made if claim.comparisons]


Values = Mapping[str, Mapping[analysis.Unit, float]]


def _compare(values: Values, what: str, pairs: Sequence[tuple[str, str, int]]) -> Iterator[Comparison]:
    """A comparison for each (a, b, predicted sign of a - b) that both methods have units for."""
    for a, b, predicted in pairs:
        differences = analysis.paired(values.get(a, {}), values.get(b, {}))
        if differences:
            margin = 0.0 if predicted else EQUAL_COSINE
            yield Comparison(f"{what}: {a} - {b}", interval(differences), predicted, margin)


EQUAL_ALIGNMENT, EQUAL_COSINE = 0.03, 0.01  # differences below these are none
BETAS = ("DCO, half beta", "DCO", "DCO, double beta")
_BASELINES = ("DreamBooth", "DreamBooth + prior 0.5", "DreamBooth + prior 1")
Comparisons = Callable[[Evidence], Iterator[Comparison]]


def _higher(
    *pairs: tuple[str, str], predicted: int = 1, of: Callable[[Evidence], list[Row]] | None = None, x: str = "likeness"
) -> Comparisons:
    """Whether the curve of each first method lies above that of the second, on subjects or what `of` chooses;
    predicted 0: on it."""

    def compared(e: Evidence) -> Iterator[Comparison]:
        for a, b in pairs:
            differences, without = analysis.gaps((of or _subjects)(e), a, b, x)
            if differences:
                margin = 0.0 if predicted else EQUAL_ALIGNMENT
                text = f"alignment at equal likeness: {a} - {b}"
                yield Comparison(text, interval(differences), predicted, margin, without)

    return compared


def _subjects(e: Evidence) -> list[Row]:
    return [r for r in e.means if r.get("subject") and not r.get("style")]


def _styles(e: Evidence) -> list[Row]:
    return [r for r in e.means if r.get("style") and not r.get("subject")]


def _plain(e: Evidence, score: str, merged: bool = False) -> Values:
    """The score of every method with plain guidance, on subjects or on merges."""
    rows = [r for r in e.means if r.get("subject") and bool(r.get("style")) == merged]
    methods = dict.fromkeys(r["method"] for r in rows)
    return {method: analysis.score_at(rows, method, PLAIN, score) for method in methods}


def _reach(e: Evidence) -> Iterator[Comparison]:
    areas = analysis.frontier_areas(_subjects(e), "likeness")
    yield from _compare(areas, "area under the frontier", [("DCO", other, 1) for other in _BASELINES])


def _beta(e: Evidence) -> Iterator[Comparison]:
    """The whole curve moves, so scores are means over w_rg."""
    for score, predicted in (("likeness", -1), ("alignment", 1)):
        values = {method: analysis.mean_over_w_rg(_subjects(e), method, score) for method in BETAS}
        pairs = [("DCO, double beta", "DCO, half beta", predicted)]
        yield from _compare(values, f"{score}, mean over w_rg", pairs)


def _noise(e: Evidence) -> Iterator[Comparison]:
    pairs = [("DCO", "DreamBooth", -1), ("DCO", "DCO, half beta", -1), ("DCO, double beta", "DCO", -1)]
    yield from _compare(analysis.mean_distance([r for r in e.distances if r.get("subject")]), "noise distance", pairs)


def _guidance(e: Evidence) -> Iterator[Comparison]:
    rows = _subjects(e)
    scales = analysis.guidances(rows)
    if len(scales) < 2:
        return
    for score, predicted in (("likeness", 1), ("alignment", -1)):
        most, least = (analysis.score_at(rows, "DCO", w, score) for w in (scales[-1], scales[0]))
        if differences := analysis.paired(most, least):
            text = f"{score} of DCO: w_rg {scales[-1]:g} - {scales[0]:g}"
            yield Comparison(text, interval(differences), predicted)


def _merged_against(other: str) -> Comparisons:
    def compared(e: Evidence) -> Iterator[Comparison]:
        for score in ("likeness", "style_likeness", "alignment"):
            merges = _plain(e, score, merged=True)
            yield from _compare(merges, f"{score}, plain guidance", [("DCO merge", other, 1)])

    return compared


def _cosine(e: Evidence) -> Iterator[Comparison]:
    found: dict[str, dict[analysis.Unit, float]] = {}
    for row in e.cosines:
        found.setdefault(row["method"], {})[analysis.unit_of(row)] = abs(row["all"])
    yield from _compare(found, "absolute column cosine", [("DCO merge", "DreamBooth merge", 0)])


def _long_training(e: Evidence) -> Iterator[Comparison]:
    plain, costs = _plain(e, "alignment"), {}
    for method in ("DCO", "DreamBooth"):
        half = plain.get(f"{method}, half the steps", {})
        whole = plain.get(method, {})
        costs[method] = {unit: value - half[unit] for unit, value in whole.items() if unit in half}
    what = "change of alignment by the second half of training"
    yield from _compare(costs, what, [("DCO", "DreamBooth", 1)])


_CLAIMS: tuple[tuple[str, str, Comparisons], ...] = (
    ("DCO with comprehensive captions obeys the prompt better at equal likeness than DreamBooth as published, with "
     "compact ones", "Fig. 1 and 16", _higher(("DCO", "DreamBooth, compact captions"))),
    ("DCO obeys the prompt better than DreamBooth at equal likeness, with and without prior preservation",
     "Fig. 1 and 9", _higher(*(("DCO", other) for other in _BASELINES))),
    ("The same where both have compact captions, which tempt to overfit", "Fig. 8a",
     _higher(("DCO, compact captions", "DreamBooth, compact captions"))),
    ("DCO's frontier reaches at least as far as DreamBooth's", "Fig. 1 and 9", _reach),
    ("DreamBooth that is stopped early lies on DreamBooth's frontier", "App. B.1",
     _higher(("DreamBooth, half the steps", "DreamBooth"), predicted=0)),
    ("Comprehensive captions obey the prompt better than compact ones at equal likeness", "Sec. 5.4, Fig. 8a",
     _higher(*((method, f"{method}, compact captions") for method in ("DreamBooth", "DCO")))),
    ("A larger beta gives up likeness for prompt alignment", "Sec. 5.4, Fig. 8b", _beta),
    ("At every beta DCO's frontier is better than DreamBooth's", "Sec. 5.4, Fig. 8b",
     _higher(*((method, "DreamBooth") for method in BETAS))),
    ("DCO stays closer to the base model than DreamBooth, and the closer the larger beta is",
     "Sec. 5.4, Fig. 8c", _noise),
    ("Reward guidance trades likeness against prompt alignment", "Sec. 4.2, Fig. 13", _guidance),
    ("DCO's frontier is better for styles too", "Sec. 5.2, Fig. 5",
     _higher(("DCO", "DreamBooth"), of=_styles, x="style_likeness")),
    ("Long training harms DCO's prompt alignment less than DreamBooth's", "App. D.3", _long_training),
    ("Merging DCO LoRAs beats merging DreamBooth LoRAs in subject, style and prompt", "Sec. 5.3, Table 1",
     _merged_against("DreamBooth merge")),
    ("Merging DCO LoRAs beats ZipLoRA of DreamBooth LoRAs in subject, style and prompt", "Sec. 5.3, Table 1",
     _merged_against("DreamBooth ZipLoRA")),
    ("Column cosines of DCO and DreamBooth pairs do not differ, although their merges do", "App. B, Fig. 10", _cosine),
    ("MaPO's frontier is better than DCO's (a claim of its own paper)", "arXiv 2406.06424", _higher(("MaPO", "DCO"))),
)  # fmt: skip
