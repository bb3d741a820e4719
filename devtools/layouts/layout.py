"""A workflow as nodes of an API prompt, and where they stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dco_core.training.recipes import RECIPES


@dataclass
class Layout:
    """One workflow. places: node id -> (x, y, width, height), with room for what a node reports when it has run; the
    frontend's own least height counts where it is larger. groups: (title, x, y, width, height, colour). notes: (x, y,
    width, height, markdown). models: node id -> the files that its widgets name, for the frontend's list of what is
    missing. app_inputs, app_outputs: what app mode shows, widgets as (node id, widget name)."""

    prompt: dict[str, Any] = field(default_factory=dict)
    places: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    groups: list[tuple[str, int, int, int, int, str]] = field(default_factory=list)
    notes: list[tuple[int, int, int, int, str]] = field(default_factory=list)
    models: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    collapsed: set[str] = field(default_factory=set)
    app_inputs: list[tuple[str, str]] = field(default_factory=list)
    app_outputs: list[str] = field(default_factory=list)

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


def trainer_settings(recipe: str, name: str, **changes: Any) -> dict[str, Any]:
    """Inputs of the DCO LoRA Trainer with the values of a recipe, where `changes` has no other."""
    values = RECIPES[recipe].as_dict() | changes
    own = {f"recipe__{field}": values.pop(field) for field in ("learning_rate", "offset_noise")}
    values = {"recipe": recipe, "objective": "DCO", "resolution": 0, "name": name} | own | values
    if "DCO" in str(values["objective"]):
        values["objective__beta"] = "auto"
    return values
