"""What a checkpoint of a run is found by, as far as the host's MODEL, CLIP and VAE go: their weights and all that the
user's nodes hung on them.

Nodes hang whatever they like on a model: LoRAs, a sampling object, options, wrapped functions. Where the host has
loaded a model, patches are in its weights; where not, they wait. So the weights are taken as they were before, and
beside them the patches and other objects by what they hold. What cannot be read (a lock, a window to a C library)
counts by its class alone; an object that changes while it works only makes a run start anew.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AnySet
from typing import Any

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ....dco_core.files.content_key import content_key
from ....dco_core.files.fingerprints import network_fingerprint

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_HUNG = (  # on a ModelPatcher, beside weights and their patches
    "object_patches", "model_options", "weight_wrapper_patches", "wrappers", "callbacks", "injections", "hook_patches",
    "forced_hooks", "additional_models",
)  # fmt: skip
_ON_CLIP = ("layer_idx", "tokenizer_options", "use_clip_schedule", "apply_hooks_to_conds")
# CLIP-L's projection of the pooled text: files lack it, and the host then leaves the memory as it finds it. No family
# reads the result: SD1.5's network takes no pooled text, SDXL takes that of CLIP-G, SD3 and Flux take it unprojected.
_UNREAD = ("clip_l.transformer.text_projection.weight",)
_DEEPEST = 40


def model_fingerprint(model, clip, vae) -> str:
    """Tells MODEL, CLIP and VAE, with everything the user changed about them, from all others: weights, LoRAs on any of
    the three, sampling object, attention patches and other options, CLIP's layer. The same whether the host has
    loaded them or not."""
    return content_key(_Contents().of([model, clip, vae]))


def prompt_tokens(clip, texts: Sequence[str]) -> list[str]:
    """What CLIP's tokenizer makes of prompts, the vectors of embedding files among it."""
    contents = _Contents()
    return [contents.of(clip.tokenize(text, disable_weights=True)) for text in dict.fromkeys(texts)]


class _Contents:
    """Objects as what content_key takes. An object that is met again counts as the first time."""

    def __init__(self):
        self._known: dict[int, Any] = {}
        self._kept: list[Any] = []  # what is known stays alive, so that no other object gets its id
        self._open: list[int] = []  # those that hold the object at hand

    def of(self, value: Any) -> Any:
        """A plain value or a tensor as it is, of anything else a text."""
        if isinstance(value, (*_PLAIN, Tensor)):
            return value
        if id(value) in self._known:
            return self._known[id(value)]
        if id(value) in self._open or len(self._open) == _DEEPEST:
            return _name(value)
        self._open.append(id(value))
        try:
            found = content_key(_name(value), self._parts(value))
        finally:
            self._open.pop()
        self._known[id(value)] = found
        self._kept.append(value)
        return found

    def _parts(self, value: Any) -> Any:
        match value:
            case torch.dtype() | torch.device() | enum.Enum():
                return str(value)
            case ModelPatcher():
                return self._patcher(value)
            case comfy.sd.CLIP() | comfy.sd.VAE():
                return self._encoder(value)
            case nn.Module():
                plain = {k: v for k, v in vars(value).items() if isinstance(v, _PLAIN) and k[0] != "_"}
                return network_fingerprint(_tensors(value)), plain
            case Mapping():
                return [(self.of(k), self.of(v)) for k, v in value.items()]
            case list() | tuple():
                return [self.of(v) for v in value]
            case AnySet():
                return sorted(content_key(self.of(v)) for v in value)
            case functools.partial():
                return [self.of(v) for v in (value.func, value.args, value.keywords)]
            case types.MethodType():
                return [self.of(value.__func__), self.of(value.__self__)]
            case types.FunctionType():
                return self._function(value)
            case types.CodeType():
                return value.co_code, value.co_names, [self.of(v) for v in value.co_consts]
            case types.CellType():
                return _cell(self, value)
            case type() | types.ModuleType() | types.BuiltinFunctionType():
                return None
        held = {k: self.of(v) for k, v in getattr(value, "__dict__", {}).items() if not self._comes_and_goes(v)}
        slots = [name for c in type(value).__mro__ for name in _slots(c) if hasattr(value, name)]
        return held, {name: self.of(getattr(value, name)) for name in slots}

    def _comes_and_goes(self, value: Any) -> bool:
        """None, and methods of the networks: what is hooked into a network keeps these while it is loaded."""
        return value is None or (isinstance(value, types.MethodType) and id(value.__self__) in self._known)

    def _function(self, value: types.FunctionType) -> Any:
        return [self.of(v) for v in (value.__code__, value.__defaults__, value.__kwdefaults__, value.__closure__)]

    def _patcher(self, patcher: ModelPatcher) -> Any:
        base = patcher.model
        for name, module in base.named_modules():  # what hangs on it may lead back to it
            self._known.setdefault(id(module), f"module {name}")
            self._kept.append(module)
        for replacement in patcher.object_patches.values():
            self._known.pop(id(replacement), None)
        objects = {name: _object(patcher, name) for name in ("model_sampling", "latent_format", "manual_cast_dtype")}
        self._known.pop(id(objects["model_sampling"]), None)
        weights = _unpatched(patcher, ("model_sampling", *patcher.object_patches))
        about = {
            "class": type(base).__qualname__,
            "weights": network_fingerprint(weights),
            "patches": self.of(patcher.patches),
            "objects": self.of(objects),
        }
        return about | {name: self.of(getattr(patcher, name, None)) for name in _HUNG}

    def _encoder(self, encoder: Any) -> Any:
        """CLIP or VAE; where it is without a patcher, its network."""
        networks = ("patcher", "cond_stage_model", "first_stage_model")
        inner = next((getattr(encoder, n) for n in networks if getattr(encoder, n, None) is not None), None)
        return self.of(inner), {name: self.of(getattr(encoder, name, None)) for name in _ON_CLIP}


def _object(patcher: ModelPatcher, name: str) -> Any:
    """An attribute of the model, as the patcher replaces it."""
    try:
        return patcher.get_model_object(name)
    except AttributeError:
        return None


def _cell(contents: _Contents, cell: types.CellType) -> Any:
    try:
        return contents.of(cell.cell_contents)
    except ValueError:  # empty
        return None


def _name(value: Any) -> str:
    """Of the class, or of a class or function itself."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{type(value).__name__} {getattr(named, '__module__', None)}.{named.__qualname__}"


def _slots(kind: type) -> Sequence[str]:
    slots = vars(kind).get("__slots__", ())
    return [slots] if isinstance(slots, str) else [name for name in slots if name not in ("__dict__", "__weakref__")]


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers; without those buffers that a network makes for itself."""
    yield from network.named_parameters()
    for prefix, module in network.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}", buffer


def _unpatched(patcher: ModelPatcher, replaced: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model as they were before its patches, without those of the objects named in `replaced`."""
    inside = tuple(f"{name}." for name in replaced)
    for name, tensor in _tensors(patcher.model):
        if name in replaced or name in _UNREAD or name.startswith(inside):
            continue
        if name in patcher.hook_backup:
            tensor = patcher.hook_backup[name][0]
        elif name in patcher.backup:
            tensor = patcher.backup[name].weight
        yield name, patcher.backup_buffers.get(name, tensor)
