"""How far a smaller or approximate LoRA is from what it stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..lora import BUNDLE, LoraWeights
from .blocks import block_of, block_order
from .low_rank import SAMPLED


@dataclass
class ErrorReport:
    """|error| / |dW| of layers that were made smaller, by layer; layers note themselves when they are made."""

    layers: dict[str, tuple[float, float, int, int]] = field(default_factory=dict)
    estimated: bool = False  # whether some error is an estimate

    def note(
        self, key: str, error: float, norm: float, before: int, after: int, estimated: bool = False
    ) -> None:
        """error, norm: Frobenius norms of the error and of dW; before, after: ranks."""
        self.layers[key] = (error, norm, before, after)
        self.estimated |= estimated

    @property
    def total(self) -> float:
        """|error| / |dW| over all layers."""
        return _ratio(list(self.layers.values()))

    def blocks(self) -> dict[str, float]:
        """|error| / |dW| by block."""
        found: dict[str, list] = {}
        for key, layer in self.layers.items():
            found.setdefault(block_of(key), []).append(layer)
        return {block: _ratio(found[block]) for block in sorted(found, key=block_order)}

    def ranks(self) -> list[int]:
        """Ranks that were written."""
        return sorted(after for *_, after in self.layers.values())

    def text(self) -> str:
        """A line for the total and one for each block."""
        if not self.layers:
            return "No layers."
        before = max(b for *_, b, _ in self.layers.values())
        ranks = self.ranks()
        if not any(error for error, *_ in self.layers.values()):
            return (
                f"Exact; rank {ranks[0]} to {ranks[-1]}."
                if ranks[0] < ranks[-1]
                else f"Exact; rank {ranks[0]}."
            )
        lines = [
            f"|error| / |dW| {_shown(self.total)} in total; ranks {ranks[0]} to {ranks[-1]}, before up to {before}."
        ]
        if self.estimated:
            lines.append(f"Of large layers it is estimated, from one in {SAMPLED} of their rows and columns.")
        width = max(map(len, self.blocks()))
        lines += [f"  {block:{width}}  {_shown(error)}" for block, error in self.blocks().items()]
        return "\n".join(lines)

    def header(self) -> dict[str, str]:
        return {"dco.error": f"{self.total:.3g}"}


def _ratio(layers: list[tuple[float, float, int, int]]) -> float:
    norm = math.sqrt(sum(norm**2 for _, norm, *_ in layers))
    error = math.sqrt(sum(error**2 for error, *_ in layers))
    return error / norm if norm else 0.0


def _shown(error: float) -> str:
    if error < 1e-6:
        return "below 1e-6"  # the rounding of fp32, which is not counted
    return f"{error:.2e}" if error < 1e-3 else f"{error:.4f}"


def carried(lora: LoraWeights) -> list[str]:
    """A line on tensors that are no part of an adapter, if there are any: a sum keeps them and weighs nothing."""
    names = [name for name in lora.other if not name.startswith(BUNDLE)]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"No part of a LoRA, kept as they are: {names[0]}{more}."] if names else []


def as_table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """{row: {column: text}} as aligned lines."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    first = max((len(name) for name in rows), default=0)
    widths = {c: max(len(c), *(len(row.get(c, "")) for row in rows.values())) for c in columns}
    lines = [" " * first + "".join(f"  {c:>{widths[c]}}" for c in columns)]
    lines += [
        f"{name:{first}}" + "".join(f"  {row.get(c, ''):>{widths[c]}}" for c in columns)
        for name, row in rows.items()
    ]
    return "\n".join(lines)
