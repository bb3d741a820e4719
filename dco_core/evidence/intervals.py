"""Intervals and tests of paired differences over units: Student's t. (With five units a percentile bootstrap's "95 %"
covers 84 %, simulated; t covers 95 %.)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DCOError

LEVEL = 0.95
FEWEST = 5  # units, below which nothing is decided


@dataclass(frozen=True)
class Interval:
    """The mean of n paired differences, the limits of its 95 % t interval, and its standard error. With one
    difference the limits are infinite."""

    mean: float
    low: float
    high: float
    n: int
    error: float = math.nan

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0, else 0."""
        return (self.low > 0) - (self.high < 0)

    @property
    def enough(self) -> bool:
        return self.n >= FEWEST

    def p_above(self, value: float = 0.0) -> float:
        """One-sided p of the hypothesis that the true mean is `value` or less."""
        if self.n < 2:
            return 1.0
        if not self.error > 0:  # no spread at all
            return 0.0 if self.mean > value else 1.0
        return float(_t().sf((self.mean - value) / self.error, self.n - 1))

    def p_below(self, value: float = 0.0) -> float:
        """One-sided p of the hypothesis that the true mean is `value` or more."""
        return Interval(-self.mean, -self.high, -self.low, self.n, self.error).p_above(-value)

    def p_equal(self, margin: float) -> float:
        """p of two one-sided tests (Schuirmann 1987) of the hypothesis that the true mean is outside +-margin."""
        return max(self.p_above(-margin), self.p_below(margin))

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}], n = {self.n}"


def interval(differences: Sequence[float]) -> Interval:
    """Raises ValueError for no difference."""
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if not n:
        raise ValueError("there are no differences to take the mean of")
    mean = float(values.mean())
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    error = float(values.std(ddof=1) / math.sqrt(n))
    half = float(_t().ppf((1 + LEVEL) / 2, n - 1)) * error
    return Interval(mean, mean - half, mean + half, n, error)


def holm(p: Sequence[float]) -> list[float]:
    """p values as Holm (1979) corrects them for being several: in the order given, never above 1."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = highest
    return corrected


def _t():
    try:
        from scipy.stats import t
    except ImportError as error:
        raise DCOError(
            f"The statistics of a study need the package scipy ({error}): run `pip install scipy`."
        ) from None
    return t
