"""A LORA_MODEL read against a MODEL: what it changes there, or why it does not belong to it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import comfy.lora
import comfy.lora_convert
import comfy.weight_adapter
import torch
from torch import Tensor

from ....dco_core.errors import DCOError, printable
from ....dco_core.lora import BUNDLE
from ..layer_names import check_block_names
from .adapter_parts import Patch
from .notices import say_once

_TEXT_ENCODERS = ("lora_te", "text_encoder", "te1", "te2", "clip")
_NO_KEY = "().bias"  # what the host makes of a bias difference on a slice
_REMEDY = "Load the checkpoint that it was trained on."


def _partners() -> dict[str, tuple[tuple[str, ...], ...]]:
    """{end of a key: what its layer must have too, each as alternatives}."""
    pairs = [
        (".lora_up.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_A.weight"), (".lora_B", ".lora_A"),
        (".lora.up.weight", ".lora.down.weight"), ("_lora.up.weight", "_lora.down.weight"),
        (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"), (".hada_t1", ".hada_t2"),
        (".lokr_w1_a", ".lokr_w1_b"), (".lokr_w2_a", ".lokr_w2_b"), (".a1.weight", ".a2.weight"),
        (".b1.weight", ".b2.weight"),
    ]  # fmt: skip
    found: dict[str, tuple[tuple[str, ...], ...]] = {
        end: ((other,),) for one, two in pairs for end, other in ((one, two), (two, one))
    }
    hada = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
    found |= {end: tuple((other,) for other in hada if other != end) for end in hada}
    first, second = (".lokr_w1", ".lokr_w1_a"), (".lokr_w2", ".lokr_w2_a")
    for ends, others in ((first, second), (second, first)):
        found |= {end: (*found.get(end, ()), others) for end in ends}
    return found


_PARTNERS = _partners()


def _check_whole(lora: Mapping[str, Tensor]) -> None:
    missing, whole = None, 0
    for key in lora:
        end = next((end for end in _PARTNERS if key.endswith(end)), None)
        if end is not None:
            stem = key.removesuffix(end)
            lacking = [
                any_of[0] for any_of in _PARTNERS[end] if not any(stem + other in lora for other in any_of)
            ]
            whole += not lacking
            missing = missing or (lacking and (key, stem + lacking[0]))
    if missing:
        raise DCOError(
            f'The LoRA is not whole: it has "{missing[0]}" but not "{missing[1]}"; {whole} of its keys have what '
            "belongs to them. Save or download the file again."
        )


def _misfit(p: Patch, parameter: Tensor) -> str:
    """What does not fit the parameter; "" where all does."""
    shape = list(parameter.shape)
    if p.offset is not None:
        shape[p.offset[0]] = p.offset[2]
    adapter, fits = p.patch, True
    if isinstance(adapter, tuple):
        fits = list(adapter[1][0].shape) == shape
    elif isinstance(adapter, comfy.weight_adapter.LoRAAdapter):
        up, down, _, mid, _, reshape = adapter.weights
        if reshape is not None:
            raise DCOError(
                f"The LoRA changes the shape of {p.key} to {tuple(reshape)}: reward guidance runs the base model and "
                "the LoRA side by side, so their layers must have one shape. Use a LoRA without reshape_weight."
            )
        inside = down.shape[1:].numel() if mid is None else down.shape[1] * mid.shape[2:].numel()
        ranks = up.shape[1] == down.shape[0] if mid is None else True
        fits = up.shape[0] == shape[0] and inside == torch.Size(shape[1:]).numel() and ranks
    else:
        try:
            with _quiet():
                change = adapter.calculate_weight(torch.zeros(shape), p.key, 1.0, 1.0, None, lambda a: a)
            fits = change is not None and list(change.shape) == shape and _built(adapter, shape)
        except (RuntimeError, AttributeError, TypeError, IndexError):  # factors that do not go together
            fits = False
    if fits:
        return ""
    return f"it has {' and '.join(str(tuple(t.shape)) for t in p.tensors())}, and {p.key} is {tuple(shape)}"


def _built(adapter, shape: Sequence[int]) -> bool:
    """Whether the sizes of LoHa, LoKr and OFT factors multiply to the layer's."""
    size, v = torch.Size(shape), adapter.weights
    if isinstance(adapter, comfy.weight_adapter.LoHaAdapter) and v[5] is None:
        return v[0].shape[0] == shape[0] and v[1].shape[1] == size[1:].numel()
    if isinstance(adapter, comfy.weight_adapter.LoKrAdapter) and v[7] is None:
        first = v[0].numel() if v[0] is not None else v[3].shape[0] * v[4].shape[1]
        second = v[1].numel() if v[1] is not None else v[5].shape[0] * v[6].shape[1:].numel()
        return first * second == size.numel()
    if isinstance(adapter, comfy.weight_adapter.OFTAdapter):
        return v[0].shape[0] * v[0].shape[1] == shape[0]
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """The host logs a failed merge as an error; here it is a question."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _layer_of(key: str, key_map: Mapping[str, object]) -> str | None:
    """The name under which the host knows the layer that a LoRA key is about; None for a layer of another model."""
    parts = key.split(".")
    for n in range(len(parts), 0, -1):
        stem = ".".join(parts[:n])
        for name in (stem, stem.removesuffix("_lora")):
            if name in key_map:
                return name
    return None


def resolve(model, lora: Mapping[str, Tensor], strength: float) -> list[Patch]:
    """What the LoRA patches in the MODEL; nothing for an empty one, learned tokens alone and strength 0. Raises
    DCOError when it belongs to another model (less than half of its keys, or a shape, fits) or is not whole."""
    if all(key.startswith(BUNDLE) for key in lora):
        return []
    lora = {k: v for k, v in lora.items() if not k.startswith(BUNDLE)}
    _check_whole(lora)
    check_block_names(model, lora, "The LoRA")
    name = type(model.model).__name__
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    converted = comfy.lora_convert.convert_lora(dict(lora))
    layers = {k: _layer_of(k, key_map) for k in converted if not k.startswith(_TEXT_ENCODERS)}
    strangers = [k for k, layer in layers.items() if layer is None]
    patches = comfy.lora.load_lora(converted, key_map, log_missing=False)
    if not patches or 2 * len(strangers) > len(layers):
        first = next(iter(strangers or layers or lora), "nothing")
        raise DCOError(
            f"The LoRA does not belong to this model ({name}): {len(layers) - len(strangers)} of its "
            f'{len(layers)} keys match, the first that names no layer of it is "{first}". {_REMEDY}'
        )
    if strangers:
        logging.warning(
            'DCO: %d of %d LoRA keys fit this model (%s); the others are left out, the first is "%s".',
            len(layers) - len(strangers), len(layers), name, printable(strangers[0]),
        )  # fmt: skip
    parameters = dict(model.model.named_parameters())
    found: list[Patch] = []
    misfits: list[tuple[object, str]] = []
    for key, patch in patches.items():
        if key == _NO_KEY:
            say_once("bias differences on a part of a fused layer are left out, as ComfyUI's own loaders do.")
            continue
        full, offset, function = (key, None, None) if isinstance(key, str) else (*key, None)[:3]
        module, _, parameter = full.rpartition(".")
        found.append(Patch(module, parameter, patch, strength, offset and tuple(offset), function))
        why = _misfit(found[-1], parameters[full]) if full in parameters else f"{full} is not in this model"
        if why:
            misfits.append((key, why))
    if misfits:
        key, why = misfits[0]
        named = [k for k, layer in layers.items() if layer is not None and _leads(key_map[layer], key)]
        raise DCOError(
            f"The LoRA does not belong to this model ({name}): {len(found) - len(misfits)} of its {len(found)} layers "
            f'match, the first that does not is "{(named or [key])[0]}": {why}. {_REMEDY}'
        )
    return found if strength != 0 else []


def _leads(mapped: object, key: object) -> bool:
    """Whether a name of the host's key map leads to the parameter (or slice) `key`; a bias belongs to its weight."""
    return mapped == key or (
        isinstance(mapped, str)
        and isinstance(key, str)
        and mapped.removesuffix("weight") == key.removesuffix("bias")
    )
