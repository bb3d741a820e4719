"""Sums of LoRAs without loss."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DCOError
from .embeddings import token_header
from .keys import canonical_keys
from .tensors import LoraLayer, LoraWeights, fingerprint

# Header entries that a sum keeps where all inputs agree.
_SHARED = (
    "ss_base_model_version",
    "modelspec.architecture",
    "modelspec.prediction_type",
    "dco.w_text",
    "dco.w_rg",
)
_TRIGGER = "modelspec.trigger_phrase"


def merge(loras: Sequence[LoraWeights], weights: Sequence[float]) -> LoraWeights:
    """dW = lambda_1 dW_1 + lambda_2 dW_2 + ..., Sec. 5.3, exact for any ranks, alphas, dtypes and signs.

    Per module the pairs are concatenated along the rank: down = [g_1 down_1; g_2 down_2; ...] and
    up = [s_1 g_1 up_1, s_2 g_2 up_2, ...] with g_i = sqrt(|lambda_i alpha_i / rank_i|), s_i its sign, so both
    factors keep the same magnitude. Adding the downs and the ups one by one instead would add cross terms
    up_1 down_2. The new rank is the sum of the ranks and the new alpha equals it (scale 1); everything is
    fp32 on the CPU.

    A weight of 0 leaves its LoRA out entirely. Modules and other tensors that only some LoRAs have are
    carried over; embeddings are not scaled. metadata: `dco.merge`, a JSON list of {sha256, weight, title}, and
    the learned tokens, trigger words and (where all agree) guidance scales of the inputs.

    Raises DCOError if a module has different shapes, or another tensor different contents, in two LoRAs.
    """
    if not loras or len(loras) != len(weights):
        raise DCOError(f"merge got {len(loras)} LoRAs and {len(weights)} weights: give one weight per LoRA.")
    if not all(math.isfinite(weight) for weight in weights):
        raise DCOError(f"The merge weights are {list(weights)}: they must be finite numbers.")
    used = [(lora, weight) for lora, weight in zip(loras, weights, strict=True) if weight != 0]
    # two files may each leave a name open that together they settle
    names = canonical_keys(key for lora, _ in used for key in lora.layers)
    parts: dict[str, list[tuple[float, LoraLayer]]] = {}
    paths: dict[str, str] = {}
    other: dict[str, Tensor] = {}
    for lora, weight in used:
        for key, layer in lora.layers.items():
            parts.setdefault(names[key], []).append((weight * layer.scale, layer))
        for key, path in lora.paths.items():
            paths.setdefault(names.get(key, key), path)
        for key, tensor in lora.other.items():
            if key in other and not torch.equal(other[key], tensor):
                raise DCOError(
                    f"Two of the LoRAs hold different tensors {key}: rename or remove one of them."
                )
            other[key] = tensor
    layers = {key: _sum(key, terms) for key, terms in parts.items()}
    return LoraWeights(layers, other, _metadata(loras, weights, layers), paths)


def _sum(key: str, terms: list[tuple[float, LoraLayer]]) -> LoraLayer:
    """sum_i c_i up_i @ down_i as one layer of scale 1."""
    shapes = list(dict.fromkeys(layer.shape for _, layer in terms))
    if len(shapes) > 1:
        raise DCOError(
            f"{key} has shape {' in one LoRA and shape '.join(str(list(s)) for s in shapes)} in another: "
            "they were trained for different models, or on different kinds of layers."
        )
    down = torch.cat([math.sqrt(abs(c)) * _fp32(layer.down) for c, layer in terms])
    up = torch.cat([math.copysign(math.sqrt(abs(c)), c) * _fp32(layer.up) for c, layer in terms], dim=1)
    return LoraLayer(down, up, float(down.shape[0]))


def _fp32(factor: Tensor) -> Tensor:
    return factor.detach().to("cpu", torch.float32)


def _metadata(
    loras: Sequence[LoraWeights], weights: Sequence[float], layers: dict[str, LoraLayer]
) -> dict[str, str]:
    inputs = [
        {
            "sha256": fingerprint(lora),
            "weight": weight,
            "title": lora.metadata.get("modelspec.title") or lora.metadata.get("ss_output_name", ""),
        }
        for lora, weight in zip(loras, weights, strict=True)
    ]
    ranks = {layer.rank for layer in layers.values()}
    rank = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"  # kohya's word for ranks that differ
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "modelspec.sai_model_spec": "1.0.0",
        "dco.merge": json.dumps(inputs),
    }
    tokens: dict[str, str] = {}
    for lora in loras:
        tokens |= token_header(lora.metadata)
    triggers = list(dict.fromkeys(t for t in (lora.metadata.get(_TRIGGER, "") for lora in loras) if t))
    metadata |= {"dco.tokens": json.dumps(tokens)} if tokens else {}
    metadata |= {_TRIGGER: ", ".join(triggers)} if triggers else {}
    for key in _SHARED:
        values = {lora.metadata.get(key) for lora in loras}
        if len(values) == 1 and None not in values:
            metadata[key] = values.pop() or ""
    return metadata
