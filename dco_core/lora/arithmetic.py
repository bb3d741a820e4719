"""Sums of LoRAs without loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import DCOError
from .embeddings import BUNDLE, from_bundle, token_header
from .keys import canonical_keys, has_unusual_blocks, spells_diffusers
from .metadata import one_or_dynamic
from .tensors import LazyLayers, LoraLayer, LoraWeights, in_range, module_of, tensors_sha256

# Header entries that a sum keeps where all inputs agree.
_SHARED = (
    "ss_base_model_version",
    "modelspec.architecture",
    "modelspec.prediction_type",
    "dco.prediction",
    "dco.w_text",
    "dco.w_rg",
)
_TRIGGER = "modelspec.trigger_phrase"


Term = tuple[float, LoraLayer]  # (c, layer) stands for c * up @ down: c is weight * factor * alpha / rank
Factor = Callable[[int, str], float]  # (number of the LoRA from 0, canonical key): further weight of a layer


def merge(
    loras: Sequence[LoraWeights],
    weights: Sequence[float],
    factor: Factor | None = None,
    combine: Callable[[str, Sequence[tuple[int, float, LoraLayer]]], LoraLayer] | None = None,
    method: str = "exact",
) -> LoraWeights:
    """dW = lambda_1 dW_1 + lambda_2 dW_2 + ..., Sec. 5.3, exact for any ranks, alphas, dtypes and signs.

    Per module the pairs are concatenated along the rank (see concatenated). The new rank is the sum of the ranks and
    the new alpha equals it (scale 1); everything is fp32 on the CPU. factor: a weight for each LoRA and layer beside
    lambda (merging/blocks.py). If any of the inputs is made of LazyLayers the sum is too: nothing is computed before
    its layers are asked for.

    combine: another way than the sum to make a layer of (number of the LoRA, weight, layer) of those that have it
    (dco_core/merging); method is its name in the header.

    A weight of 0 leaves its LoRA out entirely. Modules and other tensors that only some LoRAs have are
    carried over; embeddings are not scaled. metadata: `dco.merge`, a JSON list of {sha256, weight, title}, the method,
    and the learned tokens, trigger words and (where all agree) guidance scales of the inputs.

    Raises DCOError if a module has different shapes, or another tensor different contents, in two LoRAs.
    """
    if not loras or len(loras) != len(weights):
        raise DCOError(f"merge got {len(loras)} LoRAs and {len(weights)} weights: give one weight per LoRA.")
    if not all(math.isfinite(weight) for weight in weights):
        raise DCOError(f"The merge weights are {list(weights)}: they must be finite numbers.")
    used = [(i, lora, weight) for i, (lora, weight) in enumerate(zip(loras, weights, strict=True)) if weight]
    if spells_diffusers({k: p for _, lora, _ in used for k, p in lora.paths.items()}):
        for i, lora, _ in used:
            if has_unusual_blocks(lora.layers, lora.paths):
                raise DCOError(
                    f"LoRA {i + 1} is of a UNet without two blocks per level, and another names its blocks as "
                    "diffusers does, whose numbers cannot be matched: use files that name them alike."
                )
    # two files may each leave a name open that together they settle
    names = canonical_keys(key for _, lora, _ in used for key in [*lora.layers, *map(module_of, lora.vectors)])
    terms: dict[str, list[tuple[int, float, str]]] = {}  # canonical key: LoRA, weight, its own key
    paths: dict[str, str] = {}
    other: dict[str, Tensor] = {}
    vectors: dict[str, Tensor] = {}
    for i, lora, weight in used:
        for key in lora.layers:
            scaled = weight * (factor(i, names[key]) if factor else 1.0)
            if scaled:
                terms.setdefault(names[key], []).append((i, scaled, key))
        for key, path in lora.paths.items():
            paths.setdefault(names.get(key, key), path)
        _add_others(other, lora.other)
        for key, vector in lora.vectors.items():
            module, _, suffix = key.rpartition(".")
            scaled = weight * (factor(i, names[module]) if factor else 1.0)
            _add_vector(vectors, f"{names[module]}.{suffix}", scaled * _fp32(vector))

    for key in vectors:
        if key.endswith(".diff") and module_of(key) in terms:
            raise DCOError(
                f"{module_of(key)} has one dimension in one LoRA and more in another: they were trained for different "
                "models."
            )

    def make(key: str) -> LoraLayer:
        layers = [(i, weight, loras[i].layers[own]) for i, weight, own in terms[key]]
        same_shape(key, [layer for *_, layer in layers])
        if combine:
            made = combine(key, layers)
        else:
            made = concatenated([(weight * layer.scale, layer) for _, weight, layer in layers])
        if not in_range(made):
            raise DCOError(f"The sum of {key} reaches beyond 1e14, as no LoRA does: use smaller weights.")
        return made

    lazy = LazyLayers(terms, make)
    metadata = _metadata(loras, weights, [lora for _, lora, _ in used], method)
    if any(isinstance(lora.layers, LazyLayers) for lora in loras):
        return LoraWeights(lazy, other, metadata, paths, vectors)
    layers = dict(lazy)
    header = metadata | rank_header(layer.rank for layer in layers.values())
    return LoraWeights(layers, other, header, paths, vectors)


def concatenated(terms: Sequence[Term]) -> LoraLayer:
    """sum_i c_i up_i @ down_i as one layer of scale 1: down = [g_1 down_1; g_2 down_2; ...] and
    up = [s_1 g_1 up_1, s_2 g_2 up_2, ...] with g_i = sqrt(|c_i|), s_i its sign, so both factors keep the same
    magnitude. Adding the downs and the ups one by one instead would add cross terms up_1 down_2. Layers of one module
    may differ in how their file flattened the kernel."""
    shape = max((layer.down.shape[1:] for _, layer in terms), key=len)
    ones = [1 for _ in shape[1:]]
    rank = sum(layer.rank for _, layer in terms)
    # written in place: the pieces never exist beside the whole
    down = torch.empty(rank, *shape)
    up = torch.empty(terms[0][1].up.shape[0], rank, *ones)
    start = 0
    for c, layer in terms:
        rows = slice(start, start := start + layer.rank)
        root = math.sqrt(abs(c))
        down[rows] = layer.down.detach().reshape(-1, *shape)
        up[:, rows] = layer.up.detach().reshape(*layer.up.shape[:2], *ones)
        down[rows] *= root
        up[:, rows] *= math.copysign(root, c)
    return LoraLayer(down, up, float(rank))


def same_shape(key: str, layers: Sequence[LoraLayer]) -> None:
    """DCOError unless the dW of all layers have one shape, but for a flattened kernel."""
    shapes = list(dict.fromkeys(layer.shape for layer in layers))
    flat = {(shape[0], math.prod(shape[1:])) for shape in shapes}
    if len(flat) > 1 or len({shape for shape in shapes if len(shape) > 2}) > 1:
        raise DCOError(
            f"{key} has shape {' in one LoRA and shape '.join(str(list(s)) for s in shapes)} in another: "
            "they were trained for different models, or on different layer types."
        )


def rank_header(ranks: Iterable[int]) -> dict[str, str]:
    """kohya's header entries of the rank, which is the alpha too."""
    rank = str(one_or_dynamic(set(ranks)))
    return {"ss_network_dim": rank, "ss_network_alpha": rank}


def _add_others(other: dict[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Carry embeddings over. DCOError for two different tensors of one key, or two different tokens of one name."""
    mine, theirs = from_bundle(other), from_bundle(new)
    for name in mine:
        if name in theirs and set(mine[name]) != set(theirs[name]):
            raise DCOError(
                f"Two of the LoRAs hold different learned tokens {name} ({BUNDLE}{name}): rename or remove one of them."
            )
    for key, tensor in new.items():
        if key in other and not torch.equal(other[key], tensor):
            raise DCOError(f"Two of the LoRAs hold different tensors {key}: rename or remove one of them.")
        other[key] = tensor


def _add_vector(vectors: dict[str, Tensor], key: str, vector: Tensor) -> None:
    there = vectors.get(key)
    if there is not None and there.shape != vector.shape:
        raise DCOError(
            f"{key} has {len(there)} numbers in one LoRA and {len(vector)} in another: they were trained for different "
            "models."
        )
    vectors[key] = vector if there is None else there + vector


def _fp32(factor: Tensor) -> Tensor:
    return factor.detach().to("cpu", torch.float32)


def _metadata(
    loras: Sequence[LoraWeights], weights: Sequence[float], used: Sequence[LoraWeights], method: str
) -> dict[str, str]:
    """The header of a sum. used: those of a weight other than 0, whose words and tokens it has."""
    inputs = [
        {
            "sha256": tensors_sha256(lora),
            "weight": weight,
            "title": lora.metadata.get("modelspec.title") or lora.metadata.get("ss_output_name", ""),
        }
        for lora, weight in zip(loras, weights, strict=True)
    ]
    metadata = {
        "ss_network_module": "networks.lora",
        "modelspec.sai_model_spec": "1.0.0",
        "dco.method": method,
        "dco.merge": json.dumps(inputs),
    }
    tokens: dict[str, str] = {}
    for lora in used:
        tokens |= token_header(lora.metadata)
    triggers = list(dict.fromkeys(t for t in (lora.metadata.get(_TRIGGER, "") for lora in used) if t))
    metadata |= {"dco.tokens": json.dumps(tokens)} if tokens else {}
    metadata |= {_TRIGGER: ", ".join(triggers)} if triggers else {}
    for key in _SHARED:
        values = {lora.metadata.get(key) for lora in used}
        if len(values) == 1 and None not in values:
            metadata[key] = values.pop() or ""
    return metadata
