"""A workflow as nodes of an API prompt, and where they stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Layout:
    """One workflow. places: node id -> (x, y, width, height); heights below the node's own are raised by the
    frontend. groups: (title, x, y, width, height, colour). notes: (x, y, width, height, markdown)."""

    prompt: dict[str, Any] = field(default_factory=dict)
    places: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    groups: list[tuple[str, int, int, int, int, str]] = field(default_factory=list)
    notes: list[tuple[int, int, int, int, str]] = field(default_factory=list)

    def add(
        self, class_type: str, at: tuple[int, int], size: tuple[int, int], title: str = "", /, **inputs: Any
    ) -> str:
        """Add a node and return its id; links are [id, output]."""
        node = str(len(self.prompt) + 1)
        inputs = {name.replace("__", "."): value for name, value in inputs.items()}
        self.prompt[node] = {"class_type": class_type, "inputs": inputs}
        self.places[node] = (*at, *size)
        if title:
            self.titles[node] = title
        return node


def trainer_settings(**changes: Any) -> dict[str, Any]:
    """Inputs of the DCO LoRA Trainer with the paper's values for a subject, where `changes` has no other."""
    values: dict[str, Any] = {
        "steps": 2000, "learning_rate": 5e-5, "rank": 32, "objective": "DCO", "objective__beta": 0.0,
        "objective__reduction": "per-sample", "resolution": 1024, "seed": 0, "filename_prefix": "loras/my_subject",
        "batch_size": 1, "offset_noise": 0.0, "alpha": 0.0, "layers": "attention",
        "learned_tokens": "off",
    }  # fmt: skip
    values |= changes
    if values["objective"] == "DreamBooth":  # has no settings of its own
        values = {name: value for name, value in values.items() if not name.startswith("objective__")}
    return values
