"""LoRAs as dictionaries of tensors: the contents of a file, and what goes through LORA_MODEL sockets."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import DCOError
from .embeddings import BUNDLE, from_bundle
from .keys import canonical_keys, diffusers_names, kohya_names, split_key
from .tensors import LoraLayer, LoraTensors, LoraWeights

# Kinds of adapters that are no plain pair; reading only the pairs of such a file would change its effect
# silently.
_OTHER_KINDS = {
    "LoHa": r"\.hada_[wt]\d.*",
    "LoKr": r"\.lokr_[wt]\d.*",
    "OFT or BOFT": r"\.oft_\w+(\.weight)?",
    "DoRA": r"\.dora_scale|\.lora_magnitude_vector.*",
    "GLoRA": r"\.[ab][12]\.weight",
    "(IA)^3": r"\.on_input",
    "a LoRA with a Tucker core": r"\.lora_mid\.weight",
    "a LoRA on embeddings": r"\.lora_embedding_[AB].*",
    "a LoRA with biases": r"\.(lora_B|lora_up)(\.\w+)?\.bias",
    "a full-weight difference": r"\.(diff|diff_b|set_weight|w_norm|b_norm|reshape_weight)",
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def from_tensors(
    tensors: Mapping[str, Tensor], source: str = "The LoRA", metadata: Mapping[str, str] | None = None
) -> LoraWeights:
    """A LoRA from the tensors of a file, in any of the spellings of keys.py; they keep their dtype. alpha
    comes from the `.alpha` keys alone and is None without one (scale 1), as in the host, so that a LoRA has
    the same strength here and there. `source` begins the error messages: a path, or the name of an input.
    metadata: the header; by default the one that LoraTensors carry. Learned tokens alone are a LoRA without
    layers.

    Raises DCOError for tensors without a LoRA pair or of another kind (LoHa, LoKr, DoRA, ...), and for a pair
    that is incomplete, misshapen, or not finite.
    """
    _refuse_other_kinds(source, tensors)
    if metadata is None:
        metadata = getattr(tensors, "metadata", {})
    modules: dict[str, dict[str, Tensor]] = {}
    other: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        parsed = None if key.startswith(BUNDLE) else split_key(key)
        if parsed is None:
            other[key] = tensor
            continue
        parts = modules.setdefault(parsed[0], {})
        if parsed[1] in parts:
            raise DCOError(
                f"{source} holds two LoRAs for {parsed[0]} ({key} is the second): save them as two files."
            )
        parts[parsed[1]] = tensor
    tokens_alone = not modules and bool(from_bundle(other))
    if not tokens_alone and not any("down" in parts or "up" in parts for parts in modules.values()):
        example = next(iter(tensors), "no tensors at all")
        raise DCOError(
            f"{source} is no LoRA: none of its {len(tensors)} keys is one ({example}, ...): choose a LoRA."
        )
    layers: dict[str, LoraLayer] = {}
    paths: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for name, key in canonical_keys(modules).items():
        if key in layers:
            raise DCOError(
                f"{source} holds two LoRAs for one module, as {spelled[key]} and as {name}: remove one."
            )
        layers[key], spelled[key] = _layer(source, name, modules[name]), name
        if "." in name:
            paths[key] = name
    return LoraWeights(layers, other, dict(metadata or {}), paths)


def _refuse_other_kinds(source: str, tensors: Mapping[str, Tensor]) -> None:
    for kind, pattern in _OTHER_KINDS.items():
        found = next((key for key in tensors if re.search(rf"(?:{pattern})$", key)), None)
        if found is not None:
            raise DCOError(
                f"{source} is {kind} ({found}), which is not supported here: use it with ComfyUI's own LoRA "
                "loader, or extract a plain LoRA from it first."
            )


def _layer(source: str, name: str, parts: Mapping[str, Tensor]) -> LoraLayer:
    missing = [part for part in ("down", "up") if part not in parts]
    if missing:
        raise DCOError(
            f"{source}: {name} has {' and '.join(sorted(parts))} but no {' and no '.join(missing)}: it is "
            "incomplete, download or save it again."
        )
    for part, tensor in parts.items():
        if not tensor.is_floating_point():
            raise DCOError(
                f"{source}: {part} of {name} is {tensor.dtype}, quantised: use a LoRA in fp32, fp16 or bf16."
            )
        if not torch.isfinite(tensor.float()).all():
            raise DCOError(
                f"{source}: {part} of {name} holds NaN or infinity: training diverged, use an earlier save."
            )
    alpha = parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise DCOError(f"{source}: alpha of {name} has shape {list(alpha.shape)}: it must be one number.")
    down, up = parts["down"], parts["up"]
    if up.dim() == 2 < down.dim():  # LyCORIS leaves out the 1x1 of a convolution's up
        up = up.reshape(*up.shape, *(1 for _ in down.shape[2:]))
    try:
        return LoraLayer(down, up, None if alpha is None else alpha.item())
    except DCOError as error:
        raise DCOError(f"{source}: {name}: {error}") from None


def to_tensors(
    weights: LoraWeights, *, keys: str | Mapping[str, str] = "kohya", dtype: torch.dtype | str | None = None
) -> LoraTensors:
    """The tensors of a LoRA file; `other` is among them, the header beside them.

    keys: 'kohya' (`.lora_down.weight`, `.lora_up.weight`, `.alpha`; the most tools read it; diffusers does
        too, but loses alphas that differ between layers, as they do in a sum of LoRAs) or 'diffusers'
        (`unet.down_blocks...lora_A.weight`; for diffusers alone, ComfyUI does not find attention layers under
        these names). There alpha is not read from tensors, and older versions of
        diffusers take one rank of the file as the alpha of all layers. So alpha / rank is folded into lora_B,
        and layers of a smaller rank are padded with zeros to the largest rank of their network: scale 1 for
        every reader.
        Or a table {canonical key: base name} for kohya's form, where the model itself tells the names.
    dtype: of down and up: a torch dtype, 'fp32', 'fp16' or 'bf16'; None keeps theirs. alpha is fp32.

    Raises DCOError for modules that have no name in `keys` and for values beyond the range of `dtype`.
    """
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise DCOError(f"dtype is {dtype!r}: use one of {', '.join(DTYPES)}.")
        dtype = DTYPES[dtype]
    if keys == "kohya":
        keys = kohya_names(weights.layers, weights.paths)
    if isinstance(keys, Mapping):
        return LoraTensors(_kohya_tensors(weights, keys, dtype) | weights.other, weights.metadata)
    if keys == "diffusers":
        return LoraTensors(_diffusers_tensors(weights, dtype) | weights.other, weights.metadata)
    raise DCOError(f"keys is {keys!r}: use kohya or diffusers.")


def _kohya_tensors(
    weights: LoraWeights, names: Mapping[str, str], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    tensors = {}
    for key, layer in weights.layers.items():
        name = names.get(key, key)
        tensors[f"{name}.lora_down.weight"] = _cast(layer.down, dtype, key)
        tensors[f"{name}.lora_up.weight"] = _cast(layer.up, dtype, key)
        tensors[f"{name}.alpha"] = torch.tensor(float(layer.rank if layer.alpha is None else layer.alpha))
    return tensors


def _diffusers_tensors(weights: LoraWeights, dtype: torch.dtype | None) -> dict[str, Tensor]:
    names = diffusers_names(weights.layers, weights.paths)
    ranks: dict[str, int] = {}
    for key, name in names.items():
        component = name.split(".")[0]
        ranks[component] = max(ranks.get(component, 0), weights.layers[key].rank)
    tensors = {}
    for key, name in names.items():
        layer = weights.layers[key]
        padding = ranks[name.split(".")[0]] - layer.rank
        down = torch.cat([layer.down, layer.down.new_zeros(padding, *layer.down.shape[1:])])
        up = layer.up if layer.scale == 1 else (layer.up.float() * layer.scale)
        up = torch.cat([up, up.new_zeros(up.shape[0], padding, *up.shape[2:])], dim=1)
        tensors[f"{name}.lora_A.weight"] = _cast(down, dtype, key)
        tensors[f"{name}.lora_B.weight"] = _cast(up, dtype or layer.up.dtype, key)
    return tensors


def _cast(tensor: Tensor, dtype: torch.dtype | None, key: str) -> Tensor:
    if dtype is None or tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    if not torch.isfinite(cast.float()).all():
        raise DCOError(
            f"{key} reaches {tensor.abs().max().item():g}, beyond the range of {dtype}: use fp32 or bf16."
        )
    return cast
