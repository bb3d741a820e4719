"""The paper's settings by what is taught (Sec. 5 and the authors' code)."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Recipe:
    """steps: up to which the paper trains. offset_noise: standard deviation of the constant added per channel."""

    steps: int
    rank: int
    learning_rate: float = 5e-5
    offset_noise: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


CUSTOM = "custom"
RECIPES = {
    "subject": Recipe(steps=2000, rank=32),
    "style": Recipe(steps=1000, rank=64, offset_noise=0.1),
    "one image": Recipe(steps=1000, rank=32),
    CUSTOM: Recipe(steps=1000, rank=32),  # where one begins to change things
}
