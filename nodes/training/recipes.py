"""The paper's settings by what is taught. The node shows them, and what it shows is what counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ...dco_core.errors import DCOError, shortened
from ...dco_core.training.recipes import CUSTOM, RECIPES, Recipe
from ..options import dynamic

DEFAULT = "subject"
# `web/dco_recipes.js` writes these into the widgets below when a recipe is chosen
_FILLED = ("steps", "rank")


def recipe() -> io.DynamicCombo.Input:
    fills = {
        name: {widget: getattr(values, widget) for widget in _FILLED}
        for name, values in RECIPES.items()
        if name != CUSTOM
    }
    return dynamic(
        "recipe", {name: _own(values) for name, values in RECIPES.items()},
        tooltip="The paper's settings: subject (a few photos of one thing), style, or one image of either. Choosing "
        "one fills in steps, rank, learning rate and offset noise; change them as you like. custom fills in nothing.",
        extra_dict={"dco_fills": fills},
    )  # fmt: skip


def _own(values: Recipe) -> list[Any]:
    return [
        io.Float.Input(
            "learning_rate", default=values.learning_rate, min=1e-7, max=1.0, step=1e-6, round=1e-7,
            optional=True, tooltip="Learning rate of the LoRA; the paper uses 5e-5.",
        ),
        io.Float.Input(
            "offset_noise", default=values.offset_noise, min=0.0, max=1.0, step=0.01, round=0.001,
            optional=True,
            tooltip="Adds a constant per channel to the noise; the authors use 0.1 for styles.",
        ),
    ]  # fmt: skip


def filled(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Learning rate and offset noise: as given, else the recipe's. DCOError for a recipe that is none."""
    if name not in RECIPES:
        raise DCOError(f"recipe {shortened(name)} is unknown: choose one of {', '.join(RECIPES)}.")
    own = {field: getattr(RECIPES[name], field) for field in ("learning_rate", "offset_noise")}
    return own | {field: value for field, value in given.items() if field in own}


def told(name: str, values: Mapping[str, Any]) -> str:
    """What the recipe has set, and where the node says something else. values: those that the run has."""
    names = {"steps": "steps", "rank": "rank", "learning_rate": "learning rate", "offset_noise": "offset noise"}
    own = ", ".join(f"{word} {values[field]:g}" for field, word in names.items())
    if name == CUSTOM:
        return f"Recipe custom: {own}."
    paper = RECIPES[name]
    changed = [
        f"{word} {getattr(paper, field):g}"
        for field, word in names.items()
        if getattr(paper, field) != values[field]
    ]
    return f"Recipe {name}: {own}" + (f" (the paper: {', '.join(changed)})." if changed else ", as in the paper.")
