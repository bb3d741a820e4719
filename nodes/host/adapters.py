"""LoRAs resolved against a MODEL, and hooked to its modules for the rows that are meant to have them.

Forward hooks carry the parts (adapter_parts.py): unlike replaced `forward` methods they come off in any order. No
weight is written. What sits on a parameter that is no layer's (position tables, modulations) cannot be told apart by
rows: then the LoRA's rows run in a call of their own, with that parameter exchanged for its duration.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import comfy.lora
import comfy.lora_convert
import comfy.weight_adapter
import torch
from torch import Tensor, nn

from ...dco_core.errors import DCOError
from ...dco_core.lora import BUNDLE
from .adapter_parts import LAYERS, NORMS, Magnitude, Part, Patch, parts_of, patched

_TEXT_ENCODERS = ("lora_te", "text_encoder", "te1", "te2", "clip")
_PAIRS = {
    ".lora_up.weight": ".lora_down.weight", ".lora_B.weight": ".lora_A.weight",
    ".lora.up.weight": ".lora.down.weight", "_lora.up.weight": "_lora.down.weight",
    ".lora_linear_layer.up.weight": ".lora_linear_layer.down.weight",
}  # fmt: skip
_REMEDY = "Load the checkpoint that it was trained on."


class RowsNotSeparable(Exception):
    """A module saw a batch that is not made of the expected rows, so that the LoRA cannot be told apart there."""


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


def separable(p: Patch, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a hook on the module can give it to chosen rows only."""
    module = modules[p.module]
    if not isinstance(module, LAYERS) or p.name not in ("weight", "bias"):
        return False
    plain = isinstance(p.patch, tuple) and p.patch[0] == "diff"
    return plain if p.name == "bias" or isinstance(module, NORMS) else True


class Reserve:
    """Takes a ControlNet's place where the host asks how much memory a run needs besides the network."""

    def __init__(self, patches: Sequence[Patch], dtype: torch.dtype | None):
        size = (dtype or torch.float32).itemsize
        self.nbytes = sum(t.numel() * size for t in {id(t): t for p in patches for t in p.tensors()}.values())

    def get_models(self) -> list:
        return []

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        return self.nbytes

    def cleanup(self) -> None:
        pass


@dataclass
class Rows:
    """Which rows of the current batch get the LoRA: of `chunks` equal chunks, those in `chosen` are personalised,
    each with a strength of its own."""

    chunks: int = 1
    chosen: tuple[int, ...] = ()
    strengths: tuple[float, ...] = ()  # one for each of chosen; 1 where there are none
    trace: list[tuple[str, Tensor]] | None = None  # what base rows saw, module by module
    moved: dict[tuple, Tensor] = field(default_factory=dict)
    whole: bool = True  # every patch can be told apart by rows
    dtype: torch.dtype = torch.float32  # what the network computes in

    def indices(self, batch: int) -> list[slice]:
        """Slices of the first dimension that belong to the chosen chunks; RowsNotSeparable if it does not divide."""
        size, rest = divmod(batch, self.chunks)
        if rest:
            raise RowsNotSeparable
        return [slice(i * size, (i + 1) * size) for i in self.chosen]

    def base(self, batch: int, lora_chunks: Sequence[int]) -> list[slice]:
        size = batch // self.chunks
        return [slice(i * size, (i + 1) * size) for i in range(self.chunks) if i not in lora_chunks]

    def clear(self) -> None:
        self.chosen, self.strengths = (), ()


def _hook(name: str, parts: Sequence[Part], rows: Rows):
    def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        if not rows.chosen:
            return None
        x = args[0]

        def place(tensor: Tensor) -> Tensor:
            where = (id(tensor), x.device, x.dtype)
            if where not in rows.moved:
                rows.moved[where] = tensor.to(x.device, x.dtype)
            return rows.moved[where]

        strengths = rows.strengths or (1.0,) * len(rows.chosen)
        slices = rows.indices(len(x))
        if len(output) != len(x):
            raise RowsNotSeparable
        for part_of_batch, strength in zip(slices, strengths, strict=True):
            if strength != 0:
                for part in parts:  # the output is fresh: in place is safe
                    part(module, x[part_of_batch], output[part_of_batch], strength, place)
        if rows.trace is not None:
            for base in rows.base(len(x), rows.chosen):
                rows.trace.append(
                    (name, torch.stack([x[base].double().norm(), output[base].double().norm()]))
                )
        return output

    return add


@contextmanager
def attached(model, patches: Sequence[Patch]) -> Iterator[Rows]:
    """Hook the patches to the MODEL's modules; yields the Rows that switch them. Everything comes off again in
    reverse order, whatever happened, and the copies made for the run are returned."""
    modules = dict(model.model.named_modules())
    by_module: dict[str, list[Patch]] = {}
    rows, handles, slow = Rows(dtype=model.model.get_dtype_inference()), [], []
    for p in patches:
        if separable(p, modules):
            by_module.setdefault(p.module, []).append(p)
        else:
            rows.whole = False
    magnitudes: list[Magnitude] = []
    try:
        for name, group in by_module.items():
            parts, slower = parts_of(group, modules[name])
            slow += [name] * slower
            magnitudes += [part for part in parts if isinstance(part, Magnitude)]
            handles.append(modules[name].register_forward_hook(_hook(name, parts, rows)))
        if slow:
            logging.warning(
                "DCO: %d LoRA layers, such as %s, need their weight made anew in every step, which is slower.",
                len(slow), slow[0],
            )  # fmt: skip
        yield rows
    finally:
        for handle in reversed(handles):
            handle.remove()
        for part in magnitudes:
            part.reset()
        rows.moved.clear()


@contextmanager
def exchanged(model, patches: Sequence[Patch], strength: float) -> Iterator[None]:
    """While this lasts, parameters that rows cannot tell apart are replaced by patched copies. The originals are not
    written: the same objects come back."""
    modules = dict(model.model.named_modules())
    groups: dict[tuple[str, str], list[Patch]] = {}
    for p in patches:
        if not separable(p, modules):
            groups.setdefault((p.module, p.name), []).append(p)
    originals: list[tuple[nn.Module, str, Tensor]] = []
    try:
        for (name, parameter), group in groups.items():
            module = modules[name]
            own = module._parameters[parameter]
            copy = patched(group, own.detach().float().clone(), strength).to(own.dtype)
            originals.append((module, parameter, own))
            module._parameters[parameter] = nn.Parameter(copy, requires_grad=False)
        yield
    finally:
        for module, parameter, own in reversed(originals):
            module._parameters[parameter] = own
