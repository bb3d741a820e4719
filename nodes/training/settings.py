"""From the trainer's inputs to the configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...dco_core.errors import DCOError
from ...dco_core.lora import LoraWeights
from ...dco_core.network.lora_layers import AdapterConfig
from ...dco_core.training.config import TrainingConfig
from ..host.training import network
from . import inputs as trainer_inputs
from .choices import OBJECTIVES, TOKENS_ALONE, TOKENS_OFF, TOKENS_WITH_LORA


def unwrapped(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """One value an input: is_input_list wraps each in a list. What a prompt leaves out has its default."""
    values = {"start_from": None, "learned_tokens": {"learned_tokens": [TOKENS_OFF]}, "objective": None}
    values |= trainer_inputs.defaults()
    for name, value in inputs.items():
        if isinstance(value, dict):
            if value.get(name):
                values[name] = value
        elif value:
            values[name] = value[0]
    return values


def chosen(dynamic: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """The choice of a DynamicCombo and its options, unwrapped."""
    given = {key: value[0] for key, value in (dynamic or {}).items() if value}
    return {name: None} | given


def training_config(values: Mapping[str, Any]) -> tuple[TrainingConfig, dict[str, Any]]:
    """The TrainingConfig, and the values of the chosen objective. DCOError for choices that are none."""
    options = chosen(values["objective"], "objective")
    objective = options.pop("objective")
    if objective is None:
        raise DCOError(f"There is no objective: choose one of {', '.join(OBJECTIVES)}.")
    tokens = chosen(values["learned_tokens"], "learned_tokens")
    if tokens["learned_tokens"] not in (TOKENS_OFF, TOKENS_WITH_LORA, TOKENS_ALONE):
        raise DCOError(
            f"learned_tokens {tokens['learned_tokens']!r} is unknown: choose {TOKENS_OFF}, {TOKENS_WITH_LORA} or "
            f"{TOKENS_ALONE}."
        )
    fields = TrainingConfig.__dataclass_fields__
    taken = {name: value for name, value in options.items() if name in fields}
    if "beta" in taken:
        taken["beta"] = taken["beta"] or None  # 0 is automatic
    taken |= {name: values[name] for name in fields if name in values and name != "objective"}
    if "token_learning_rate" in tokens:
        taken["token_learning_rate"] = tokens["token_learning_rate"]
    config = TrainingConfig(objective=OBJECTIVES[objective], **taken)
    config.check()
    return config, options


def adapter_config(
    values: Mapping[str, Any], model, start: LoraWeights | None, tokens: str
) -> AdapterConfig | None:
    """The AdapterConfig; None where tokens are learned alone. DCOError for a LoRA to start from that does not fit."""
    if start is not None and start.vectors:
        raise DCOError(
            f"start_from also changes biases or norms ({next(iter(start.vectors))} and {len(start.vectors) - 1} more), "
            "which are not trained here and would be lost: start from a LoRA of weights alone."
        )
    if tokens == TOKENS_ALONE:
        if start is not None and start.layers:
            raise DCOError(
                "start_from has LoRA layers, but tokens are to be learned alone: disconnect it, or learn tokens "
                "with the LoRA."
            )
        return None
    layers = network.started_layers(model, start) if start is not None and start.layers else None
    return AdapterConfig(
        values["rank"], values["alpha"] or None, values["layers"], values["seed"], values["layer_filter"],
        values["dropout"], layers,
    )  # fmt: skip
