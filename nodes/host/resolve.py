"""A LORA_MODEL read against a MODEL: what it changes there, or why it does not belong to it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import comfy.lora
import comfy.lora_convert
import comfy.weight_adapter
import torch
from torch import Tensor, nn

from ...dco_core.errors import DCOError
from ...dco_core.lora import BUNDLE
from .adapter_parts import Patch

_TEXT_ENCODERS = ("lora_te", "text_encoder", "te1", "te2", "clip")
_PAIRS = {
    ".lora_up.weight": ".lora_down.weight", ".lora_B.weight": ".lora_A.weight",
    ".lora.up.weight": ".lora.down.weight", "_lora.up.weight": "_lora.down.weight",
    ".lora_linear_layer.up.weight": ".lora_linear_layer.down.weight",
}  # fmt: skip
_REMEDY = "Load the checkpoint that it was trained on."


def _check_pairs(lora: Mapping[str, Tensor]) -> None:
    ends = [*_PAIRS.items(), *((down, up) for up, down in _PAIRS.items())]
    whole = 0
    missing = None
    for key in lora:
        for end, other in ends:
            if key.endswith(end) and not (end == ".lora.up.weight" and "_lora" in key):
                partner = key.removesuffix(end) + other
                whole += partner in lora
                missing = missing or (None if partner in lora else (key, partner))
    if missing:
        raise DCOError(
            f'The LoRA is not whole: it has "{missing[0]}" but not "{missing[1]}"; {whole // 2} of its pairs are '
            "complete. Save or download the file again."
        )


def _check_shape(p: Patch, module: nn.Module, parameter: Tensor, fitting: int, total: int) -> None:
    shape = list(parameter.shape)
    if p.offset is not None:
        shape[p.offset[0]] = p.offset[2]
    adapter, got = p.patch, ""
    if isinstance(adapter, tuple):
        if list(adapter[1][0].shape) != shape:
            got = str(tuple(adapter[1][0].shape))
    elif isinstance(adapter, comfy.weight_adapter.LoRAAdapter):
        up, down, _, mid, _, reshape = adapter.weights
        if reshape is not None:
            raise DCOError(
                f"The LoRA changes the shape of {p.key} to {tuple(reshape)}: reward guidance runs the base model and "
                "the LoRA side by side, so their layers must have one shape. Use a LoRA without reshape_weight."
            )
        inside = down.shape[1:].numel() if mid is None else down.shape[1] * mid.shape[2:].numel()
        if up.shape[0] != shape[0] or inside != torch.Size(shape[1:]).numel():
            got = f"{tuple(up.shape)} x {tuple(down.shape)}"
    else:
        try:
            dummy = torch.zeros(shape)
            with _quiet():
                change = adapter.calculate_weight(dummy, p.key, 1.0, 1.0, None, lambda a: a)
            fits = change is not None and list(change.shape) == shape and _built(adapter, shape)
        except RuntimeError:
            fits = False
        got = "" if fits else " and ".join(str(tuple(t.shape)) for t in p.tensors())
    if got:
        raise DCOError(
            f"The LoRA does not belong to this model: for {p.key} it has {got}, the layer has {tuple(shape)}; "
            f"{fitting} of its {total} layers before that one fit. {_REMEDY}"
        )


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


def resolve(model, lora: Mapping[str, Tensor], strength: float) -> list[Patch]:
    """What the LoRA patches in the MODEL; nothing for learned tokens alone and at strength 0. Raises DCOError when it
    belongs to another model (no key, or another shape, fits) or is not whole."""
    if lora and all(key.startswith(BUNDLE) for key in lora):
        return []
    lora = {k: v for k, v in lora.items() if not k.startswith(BUNDLE)}
    _check_pairs(lora)
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    converted = comfy.lora_convert.convert_lora(dict(lora))
    patches = comfy.lora.load_lora(converted, key_map, log_missing=False)
    if not patches:
        example = next(iter(lora), "nothing")
        raise DCOError(
            f"The LoRA does not belong to this model ({type(model.model).__name__}): 0 of its {len(lora)} keys match; "
            f'none names a layer of it, the first is "{example}". {_REMEDY}'
        )
    used = set().union(*(getattr(p, "loaded_keys", ()) for p in patches.values()))
    left = [k for k in converted if used and k not in used and not k.startswith(_TEXT_ENCODERS)]
    if left:
        logging.warning(
            'DCO: %d of %d LoRA keys fit this model; the others are left out, the first is "%s".',
            len(converted) - len(left), len(converted), left[0],
        )  # fmt: skip
    modules, parameters = dict(model.model.named_modules()), dict(model.model.named_parameters())
    found: list[Patch] = []
    for key, patch in patches.items():
        full, offset = (key, None) if isinstance(key, str) else (key[0], tuple(key[1]))
        module, _, name = full.rpartition(".")
        if full not in parameters:
            raise DCOError(
                f"The LoRA changes {full}, which this model ({type(model.model).__name__}) does not have; "
                f"{len(found)} of its {len(patches)} layers before that one fit. {_REMEDY}"
            )
        entry = Patch(module, name, patch, strength, offset)
        _check_shape(entry, modules[module], parameters[full], len(found), len(patches))
        found.append(entry)
    return found if strength != 0 else []
