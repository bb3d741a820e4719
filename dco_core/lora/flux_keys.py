"""Flux LoRAs with diffusers names under kohya's, which are those of the original network.

diffusers has a layer each for q, k and v (and, in single blocks, for the MLP) where the network has one. Their rows
stand under each other in it, so the joined pair is exact: down = [down_q; down_k; ...], and up is block-diagonal.
Names and sizes: flux_to_diffusers of the host (comfy/utils.py), which reads both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from ..errors import DCOError
from .tensors import LazyLayers, LoraLayer, LoraWeights

_PREFIXES = re.compile(
    r"^(?:lora_transformer_|lycoris_|transformer_(?=single_|transformer_)|base_model_model_)"
)
_BLOCK = re.compile(r"(single_)?transformer_blocks_(\d+)_(.+)")
_DOUBLE, _SINGLE = 19, 38  # blocks of Flux 1; other networks share its names in diffusers and have more
_PLAIN = {
    "attn_to_out_0": "img_attn_proj", "attn_to_add_out": "txt_attn_proj", "norm1_linear": "img_mod_lin",
    "norm1_context_linear": "txt_mod_lin", "ff_net_0_proj": "img_mlp_0", "ff_net_2": "img_mlp_2",
    "ff_context_net_0_proj": "txt_mlp_0", "ff_context_net_2": "txt_mlp_2",
}  # fmt: skip
_PLAIN_SINGLE = {"norm_linear": "modulation_lin", "proj_out": "linear2"}
_PARTS = {  # diffusers: joined layer, place in it
    "attn_to_q": ("img_attn_qkv", 0), "attn_to_k": ("img_attn_qkv", 1), "attn_to_v": ("img_attn_qkv", 2),
    "attn_add_q_proj": ("txt_attn_qkv", 0), "attn_add_k_proj": ("txt_attn_qkv", 1),
    "attn_add_v_proj": ("txt_attn_qkv", 2),
}  # fmt: skip
_PARTS_SINGLE = {"attn_to_q": ("linear1", 0), "attn_to_k": ("linear1", 1), "attn_to_v": ("linear1", 2),
                 "proj_mlp": ("linear1", 3)}  # fmt: skip


def _block(key: str) -> re.Match[str] | None:
    return _BLOCK.fullmatch(_PREFIXES.sub("", key.replace(".", "_")))


def is_diffusers_flux(keys: Iterable[str]) -> bool:
    """Whether layers are named as diffusers names those of Flux: no other network with kohya files has single blocks
    of these names."""
    return any(match and match[1] for match in map(_block, keys))


def to_original_names(lora: LoraWeights) -> LoraWeights:
    """The same dW with kohya's names. Layers stay lazy.

    Raises DCOError for layers whose place in the network is not known, and for biases and norms."""
    if lora.vectors:
        raise DCOError(
            f"Cannot name {next(iter(lora.vectors))} as kohya does: it has no names for biases and norms."
        )
    whole: dict[str, dict[int, str]] = {}  # {kohya's name: {place: own key}}; -1: all of it
    for key in lora.layers:
        name, place = _target(key)
        parts = whole.setdefault(name, {})
        if place in parts or (parts and -1 in (place, *parts)):
            raise DCOError(
                f"Cannot name {key} as kohya does: {name} is there already. Save them as two files."
            )
        parts[place] = key

    def make(name: str) -> LoraLayer:
        parts = whole[name]
        if -1 in parts:
            return lora.layers[parts[-1]]
        return _joined(name, {place: lora.layers[key] for place, key in parts.items()})

    return LoraWeights(LazyLayers(whole, make), lora.other, lora.metadata)


def _target(key: str) -> tuple[str, int]:
    match = _block(key)
    if match is None:
        if key.startswith(("lora_unet_", "lora_te")):
            return key, -1
        raise DCOError(f"Cannot name {key} as kohya does: it is in no block of Flux. Keep the file as it is.")
    number, inner = int(match[2]), match[3]
    side, most = ("single", _SINGLE) if match[1] else ("double", _DOUBLE)
    plain, parts = (_PLAIN_SINGLE, _PARTS_SINGLE) if match[1] else (_PLAIN, _PARTS)
    name, place = (plain[inner], -1) if inner in plain else parts.get(inner, ("", 0))
    if not name or number >= most:
        raise DCOError(f"Cannot name {key} as kohya does: Flux has no such layer. Keep the file as it is.")
    return f"lora_unet_{side}_blocks_{number}_{name}", place


def _joined(name: str, parts: dict[int, LoraLayer]) -> LoraLayer:
    """Layers of one input under each other; rows of those that are not there are 0."""
    hidden = {layer.up.shape[0] if place < 3 else layer.up.shape[0] / 4 for place, layer in parts.items()}
    inputs = {tuple(layer.down.shape[1:]) for layer in parts.values()}
    if len(hidden) > 1 or len(inputs) > 1 or not float(next(iter(hidden))).is_integer():
        shapes = " and ".join(str(list(layer.shape)) for layer in parts.values())
        raise DCOError(f"Cannot join {shapes} to {name}: they are no layers of Flux. Keep the file as it is.")
    size = int(next(iter(hidden)))
    rank = sum(layer.rank for layer in parts.values())
    up = torch.zeros(size * (7 if name.endswith("linear1") else 3), rank)
    downs, start = [], 0
    for place, layer in sorted(parts.items()):
        rows = slice(place * size, place * size + layer.up.shape[0])
        up[rows, start : start + layer.rank] = layer.scale * layer.up.float()
        downs.append(layer.down.float())
        start += layer.rank
    return LoraLayer(torch.cat(downs), up, float(rank))
