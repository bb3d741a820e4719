"""Axes with round numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high` with a tick at every multiple of `step` inside."""

    low: float
    high: float
    step: float

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high end."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """(value, text) of each tick, all with as many decimals as the step has."""
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))
        if round(self.step, decimals) != self.step:
            decimals += 1  # 0.25 needs one more than 0.2
        return [(i * self.step, f"{i * self.step + 0.0:.{decimals}f}") for i in range(first, last + 1)]


def nice_axis(lowest: float, highest: float, ticks: int = 6) -> Axis:
    """An axis for values from lowest to highest with a margin of 7 % and about that many ticks; values that are all
    the same lie in its middle."""
    span = highest - lowest
    # values of one size differ by rounding only: an axis of their last digits would look like a result
    if span <= 1e-6 * max(abs(lowest), abs(highest), 1e-3):
        span = max(0.1 * abs(lowest), 0.02)
        middle = (lowest + highest) / 2
        lowest, highest = middle - span, middle + span
    low, high = lowest - 0.07 * (highest - lowest), highest + 0.07 * (highest - lowest)
    rough = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((s * power for s in _STEPS), key=lambda s: abs(math.log(s / rough)))
    return Axis(low, high, step)
