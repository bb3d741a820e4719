"""From the trainer's inputs to the configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...dco_core.errors import DCOError
from ...dco_core.lora import LoraWeights
from ...dco_core.lora.started import check_start
from ...dco_core.network.lora_layers import AdapterConfig
from ...dco_core.pipeline.examples import SIZES, Preparation
from ...dco_core.pipeline.generation import GenerationConfig
from ...dco_core.pipeline.vocabulary import Vocabulary, kept_vocabulary, learned_vocabulary
from ...dco_core.training.config import TrainingConfig
from ..host.training.image_model import HostImageModel
from . import choices, option_groups, recipes
from . import inputs as trainer_inputs


def settled(own: Mapping[str, Any], options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Every value of a run by name: the trainer's own inputs, the options nodes', the defaults of what is left out.
    own: as is_input_list wraps them, each in a list."""
    values = {"start_from": None, "masks": None, "class_images": None, "learned_tokens": None, "previews": None}
    values["preservation"] = None
    values |= trainer_inputs.defaults() | dict(options or {})
    values |= {name: _unwrapped(value) for name, value in own.items() if value}
    recipe, given = chosen(values["recipe"], "recipe", recipes.DEFAULT)
    return values | recipes.filled(recipe, given) | {"recipe": recipe}


def _unwrapped(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unwrapped(inner) for name, inner in value.items() if inner}  # without what was left out
    return value[0]


def chosen(dynamic: Mapping[str, Any] | None, name: str, default: str | None = None) -> tuple[Any, dict[str, Any]]:
    """The choice of a DynamicCombo, and what belongs to it; the default where a prompt has none."""
    given = dict(dynamic or {})
    return given.pop(name, None) or default, given


def training_config(values: Mapping[str, Any]) -> tuple[TrainingConfig, dict[str, Any]]:
    """The TrainingConfig, and the values of the chosen objective. DCOError for choices that are none."""
    objective, options = chosen(values["objective"], "objective")
    if objective is None:
        raise DCOError(f"There is no objective: choose one of {', '.join(choices.OBJECTIVES)}.")
    choice, token_options = chosen(values["learned_tokens"], "learned_tokens", choices.TOKENS_OFF)
    if choice not in (offered := (choices.TOKENS_OFF, choices.TOKENS_WITH_LORA, choices.TOKENS_ALONE)):
        raise DCOError(f"learned_tokens {choice!r} is unknown: choose {' or '.join(offered).replace(' or ', ', ', 1)}.")
    fields = TrainingConfig.__dataclass_fields__
    taken = {name: value for name, value in options.items() if name in fields} | _beta(options.pop("beta", None))
    taken |= {name: values[name] for name in fields if name in values and name not in ("objective", "beta")}
    _, preserved = chosen(values["preservation"], "preservation", choices.PRESERVE_NONE)
    taken |= {name: value for name, value in preserved.items() if name in fields}
    if "token_learning_rate" in token_options:
        taken["token_learning_rate"] = token_options["token_learning_rate"]
    config = TrainingConfig(objective=choices.OBJECTIVES[objective], **taken)
    config.check()
    return config, options


def _beta(dynamic: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of TrainingConfig for the choice of beta."""
    choice, given = chosen(dynamic, "beta", choices.BETA_AUTO)
    if choice == choices.BETA_OWN:
        return {"beta": given["value"]}
    if choice == choices.BETA_FOUND:
        return {"beta": None, "automatic_beta": "images", "target_gate": given["target_gate"]}
    return {"beta": None}


def steps_between_previews(values: Mapping[str, Any]) -> int:
    """0 for a run without previews. auto: about four in a run, and never so many that they cost more than training."""
    choice, given = chosen(values["previews"], "previews", choices.PREVIEWS_AUTO)
    if choice == choices.PREVIEWS_OFF:
        return 0
    return given["preview_every"] if choice == choices.PREVIEWS_EVERY else max(100, -(-values["steps"] // 4))


def token_choice(values: Mapping[str, Any]) -> str:
    return chosen(values["learned_tokens"], "learned_tokens", choices.TOKENS_OFF)[0]


def adapter_config(
    values: Mapping[str, Any], model: HostImageModel, start: LoraWeights | None
) -> AdapterConfig | None:
    """The AdapterConfig; None where tokens are learned alone. DCOError for a LoRA to start from that does not fit."""
    alone = token_choice(values) == choices.TOKENS_ALONE
    if start is not None:
        check_start(start, alone)
    if alone:
        return None
    layers = model.started_layers(start) if start is not None and start.layers else None
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
    sizes = dict(zip((option_groups.REAL_SIZES, option_groups.FIXED_SIZES), SIZES, strict=True))
    return Preparation(
        values["resolution"], values["crop"] == option_groups.SQUARE, sizes[values["size_conditioning"]],
        (lines or list(captions[:1])) if steps_between_previews(values) else (),
    )  # fmt: skip


def vocabulary(
    model: HostImageModel, captions: Sequence[str], values: Mapping[str, Any], start: LoraWeights | None, seed: int
) -> Vocabulary:
    """The Vocabulary for the `learned_tokens` choice with its options."""
    choice, options = chosen(values["learned_tokens"], "learned_tokens", choices.TOKENS_OFF)
    if choice == choices.TOKENS_OFF:
        return kept_vocabulary(captions, start)
    return learned_vocabulary(
        model, captions, seed, options.get("initializers", ""), options.get("vectors", 0), start
    )
