"""Noticing that steps have become many times slower: memory that spills over to the host makes training crawl
without a word."""

from __future__ import annotations

from collections import deque
from statistics import median

from ..errors import DCOError

FIRST = 10  # steps that say what is usual; the very first are left out
LATEST = 5
SLOWER = 10.0
NOTICEABLE = 2.0  # seconds; below that nobody has to fear


class SpeedWatch:
    """after_step(seconds) raises DCOError once the last 5 steps took 10 times the usual (median against
    median) and more than 2 s each."""

    def __init__(self) -> None:
        self._usual: list[float] = []
        self._latest: deque[float] = deque(maxlen=LATEST)
        self._warm_up = 2

    def after_step(self, seconds: float) -> None:
        if self._warm_up:
            self._warm_up -= 1
        elif len(self._usual) < FIRST:
            self._usual.append(seconds)
        else:
            self._latest.append(seconds)
            usual, now = median(self._usual), median(self._latest)
            if len(self._latest) == LATEST and now > max(SLOWER * usual, NOTICEABLE):
                raise DCOError(
                    f"Steps now take {now:.1f} s, {now / usual:.0f} times as long as at first ({usual:.2f} s): memory "
                    "has probably run out and spills to the main memory. Training stopped here and its work is kept. "
                    "Close other programs, or lower the batch size, resolution or rank, or turn gradient "
                    "checkpointing on."
                )
