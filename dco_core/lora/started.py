"""A LoRA to go on from, onto the modules of a network."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import DCOError
from .keys import UNET
from .tensors import LoraLayer, LoraWeights

WHAT = "The LoRA to start from"


def check_start(start: LoraWeights, tokens_alone: bool) -> None:
    """Raise DCOError for what a run could not go on from without losing a part of it. tokens_alone: no LoRA trains."""
    if start.vectors:
        raise DCOError(
            f"{WHAT} also changes biases or norms ({next(iter(start.vectors))} and {len(start.vectors) - 1} more), "
            "which are not trained here and would be lost: start from a LoRA of weights alone."
        )
    if tokens_alone and start.layers:
        raise DCOError(
            f"{WHAT} has layers, but tokens are to be learned alone: leave it out, or learn tokens with the LoRA."
        )


def started_layers(start: LoraWeights, modules: Mapping[str, str], model: str) -> dict[str, LoraLayer]:
    """Its layers by the dotted names of the network's modules. modules: {key of a layer: name}, for the layers that the
    network has; model: what it is called. DCOError where the LoRA was trained for another model, or changes the text
    encoder too."""
    text = [key for key in start.layers if not key.startswith(UNET)]
    if text:
        raise DCOError(
            f"{WHAT} also changes the text encoder ({text[0]} and {len(text) - 1} more), which is not trained here and "
            "would be lost: start from a LoRA of the diffusion model alone."
        )
    unknown = [key for key in start.layers if key not in modules]
    if unknown:
        raise DCOError(
            f"{WHAT} does not belong to this model ({model}): it has no layer {unknown[0]} ({len(unknown)} of "
            f"{len(start.layers)} are missing). Load the checkpoint it was trained on."
        )
    return {modules[key]: layer for key, layer in start.layers.items()}
