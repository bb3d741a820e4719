"""From the trainer's inputs to the configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...dco_core.errors import DCOError
from ...dco_core.lora import LoraWeights
from ...dco_core.network.lora_layers import AdapterConfig
from ...dco_core.pipeline.examples import SIZES, Preparation
from ...dco_core.pipeline.generation import GenerationConfig
from ...dco_core.pipeline.vocabulary import Vocabulary, kept_vocabulary, learned_vocabulary
from ...dco_core.training.config import TrainingConfig
from ..host.layer_names import started_layers
from ..host.training.image_model import HostImageModel
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
    layers = started_layers(model, start) if start is not None and start.layers else None
    return AdapterConfig(
        values["rank"], values["alpha"] or None, values["layers"], values["seed"], values["layer_filter"],
        values["dropout"], layers,
    )  # fmt: skip


def generation_config(options: Mapping[str, Any]) -> GenerationConfig:
    """What the base model makes for the objective with these options."""
    return GenerationConfig(
        options.get("class_prompt", ""),
        class_images=options.get("generated_images", 50),
        rejected_images=options.get("generated_images", 1),
        generation_steps=options.get("generation_steps", 30),
        generation_w_text=options.get("generation_w_text", 7.5),
    )


def preparation(values: Mapping[str, Any], captions: Sequence[str]) -> Preparation:
    """How the references become examples; previews are of the first caption where none are written."""
    lines = [line.strip() for line in values["preview_prompts"].splitlines() if line.strip()]
    sizes = dict(zip((trainer_inputs.REAL_SIZES, trainer_inputs.FIXED_SIZES), SIZES, strict=True))
    return Preparation(
        values["resolution"], values["crop"] == trainer_inputs.SQUARE, sizes[values["size_conditioning"]],
        (lines or list(captions[:1])) if values["preview_every"] else (),
    )  # fmt: skip


def vocabulary(
    model: HostImageModel, captions: Sequence[str], tokens: Mapping[str, Any], start: LoraWeights | None, seed: int
) -> Vocabulary:
    """The Vocabulary for the `learned_tokens` choice with its options."""
    if tokens["learned_tokens"] == TOKENS_OFF:
        return kept_vocabulary(captions, start)
    return learned_vocabulary(
        model, captions, seed, tokens.get("initializers", ""), tokens.get("vectors", 0), start
    )
