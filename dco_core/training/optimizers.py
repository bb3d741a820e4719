"""Optimizers and learning-rate schedules: torch's own, and two kept-up libraries for those who have them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DCOError

OPTIMIZERS = ("adamw", "adafactor", "adamw-8bit", "prodigy")
LR_SCHEDULERS = ("constant", "linear", "cosine")

_FUSED = ("cuda", "cpu", "xpu", "mps")
_LIBRARIES = {"adamw-8bit": "bitsandbytes", "prodigy": "prodigyopt"}


def make_optimizer(
    name: str, groups: Sequence[tuple[Sequence[torch.nn.Parameter], float]], weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer over (parameters, learning rate) groups; empty groups are left out.

    adamw: torch's, fused (the authors'); adafactor: torch's, states of a row and a column; adamw-8bit:
    bitsandbytes; prodigy: prodigyopt, which finds its own rate, one for all groups (set the learning rates to 1).
    Raises DCOError for a name that is unknown, a library that is missing, and rates that prodigy cannot have.
    """
    filled = [{"params": list(parameters), "lr": rate} for parameters, rate in groups if parameters]
    if name == "adamw":
        devices = {p.device.type for parameters, _ in groups for p in parameters}
        fused = devices <= set(_FUSED)
        return torch.optim.AdamW(filled, eps=1e-8, weight_decay=weight_decay, fused=fused or None)
    if name == "adafactor":
        # eps 1: steps as long as the rate, not as the weights, since half of a LoRA starts at 0
        return torch.optim.Adafactor(filled, eps=(None, 1.0), weight_decay=weight_decay)
    if name == "adamw-8bit":
        return _library(name).optim.AdamW8bit(filled, eps=1e-8, weight_decay=weight_decay)
    if name == "prodigy":
        rates = [group["lr"] for group in filled]
        if len(set(rates)) > 1:
            raise DCOError(
                f"prodigy finds one rate for all, but learning_rate is {rates[0]:g} and token_learning_rate "
                f"{rates[1]:g}: set both to 1, or choose adamw."
            )
        return _library(name).Prodigy(filled, weight_decay=weight_decay, safeguard_warmup=True)
    raise DCOError(f"optimizer {name!r} is unknown: use one of {', '.join(OPTIMIZERS)}.")


def check_optimizer(name: str) -> None:
    """Raise DCOError where the library of an optimizer is missing."""
    if name in _LIBRARIES:
        _library(name)


def _library(name: str) -> Any:
    library = _LIBRARIES[name]
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise DCOError(
            f"The optimizer {name} needs the package {library}, which is not installed: "
            f"run `pip install {library}` with the same Python, or choose adamw."
        ) from error


def rate_factor(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied by in step 0, 1, ...: a linear warmup, then constant, or down to 0 on a
    line or a half cosine at the end of the run."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        if schedule == "linear":
            return max(0.0, 1 - done)
        return max(0.0, (1 + math.cos(math.pi * min(done, 1.0))) / 2) if schedule == "cosine" else 1.0

    return factor


def packed(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> tuple[dict[str, Tensor], Any]:
    """The state of any optimizer: its tensors by name, and the rest as JSON values with the names in their places.
    parameters: by name, all that it has; torch itself tells them apart by their place alone."""
    tensors: dict[str, Tensor] = {}

    def pack(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"items": [[key, pack(item, f"{name}.{key}")] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [pack(item, f"{name}.{i}") for i, item in enumerate(value)]}
        return {"value": value}

    state, names = optimizer.state_dict(), _places(optimizer, parameters)
    named = {names[place]: values for place, values in state["state"].items()}
    groups = [{**g, "params": [names[place] for place in g["params"]]} for g in state["param_groups"]]
    return tensors, pack({**state, "state": named, "param_groups": groups}, "state")


def unpack(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, Tensor],
    rest: Any,
) -> None:
    """Put the state back that `packed` took from an optimizer of the same kind over parameters of the same names, in
    whatever order."""

    def put(value: Mapping[str, Any]) -> Any:
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "items":
            return {key: put(item) for key, item in content}
        if kind in ("list", "tuple"):
            return (tuple if kind == "tuple" else list)(put(item) for item in content)
        return content

    state, names = put(rest), _places(optimizer, parameters)
    by_place = {place: state["state"][name] for place, name in names.items() if name in state["state"]}
    own = optimizer.state_dict()["param_groups"]
    groups = [{**g, "params": mine["params"]} for g, mine in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "state": by_place, "param_groups": groups})


def _places(optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]) -> dict[int, str]:
    """{place in the state_dict: name}. Places count through the groups."""
    names = {id(p): name for name, p in parameters.items()}
    return {i: names[id(p)] for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
