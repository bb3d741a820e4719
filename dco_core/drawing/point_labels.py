"""Where the small texts of a plot go, so that they can be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Point = tuple[float, float]


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: Box) -> float:
        """The area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def place_labels(
    points: Sequence[Point],
    sizes: Sequence[tuple[float, float]],
    symbols: Sequence[Point],
    lines: Sequence[tuple[Point, Point]],
    area: Box,
    radius: float,
) -> list[Box]:
    """A box of each size near its point: on one of sixteen sides at one of six distances, wherever it covers the
    least of other texts, of symbols (squares of `radius`), of lines, and of what lies outside the area."""
    placed: list[Box] = []
    taken = [Box(x - radius, y - radius, x + radius, y + radius) for x, y in symbols]
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        best, best_cost = Box(x, y, x, y), math.inf
        for distance in (1.0, 1.6, 2.4, 3.6, 5.2, 7.0):
            for side in range(16):
                angle = -math.pi / 2 + side * math.pi / 8  # above the point first
                middle_x = x + math.cos(angle) * (radius * distance + width / 2)
                middle_y = y + math.sin(angle) * (radius * distance + height / 2)
                box = Box(
                    middle_x - width / 2, middle_y - height / 2, middle_x + width / 2, middle_y + height / 2
                )
                size = width * height
                covered = [share for share in (box.shared(other) for other in placed) if share > 0]
                cost = 4 * len(covered) + 8 * sum(covered) / size
                cost += 5 * sum(box.shared(other) for other in taken) / size
                cost += 8 * (1 - box.shared(area) / size)
                cost += sum(_crosses(box, line) for line in lines) + 0.3 * (distance - 1)
                if cost < best_cost - 1e-9:
                    best, best_cost = box, cost
        placed.append(best)
    return placed


def _crosses(box: Box, line: tuple[Point, Point]) -> float:
    """The share of the box's width or height that a line crosses, by looking at points of the line."""
    (x0, y0), (x1, y1) = line
    length = math.hypot(x1 - x0, y1 - y0)
    count = max(2, int(length / 4))
    inside = 0
    for i in range(count + 1):
        x, y = x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count
        inside += box.left <= x <= box.right and box.top <= y <= box.bottom
    return min(1.0, inside * 4 / max(box.right - box.left, box.bottom - box.top))
