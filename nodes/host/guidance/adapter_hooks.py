"""A LoRA's patches (resolve.py) hooked to the MODEL's modules for the rows that are meant to have them.

Forward hooks carry the parts (adapter_parts.py): unlike replaced `forward` methods they come off in any order. No
weight is written. What sits on a parameter that is no layer's (position tables, modulations) cannot be told apart by
rows: then the LoRA's rows run in a call of their own, with that parameter swapped for its duration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .adapter_parts import NORMS, Magnitude, Part, Patch, is_layer, parts_of, patched
from .notices import say_once


class RowsNotSeparable(Exception):
    """A module saw a batch that is not made of the expected rows, so that the LoRA cannot be told apart there."""


class Dose(NamedTuple):
    """What a row gets of the LoRAs: how strongly, and which of those that the run has (0: the node's own)."""

    strength: float
    lora: int = 0


def separable(p: Patch, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a hook on the module can give it to chosen rows only."""
    module = modules[p.module]
    if not is_layer(module) or p.name not in ("weight", "bias"):
        return False
    plain = isinstance(p.patch, tuple) and p.patch[0] == "diff"
    return plain if p.name == "bias" or isinstance(module, NORMS) else True


class Reserve:
    """Takes a ControlNet's place where the host asks how much memory a run needs besides the network, on each of its
    devices."""

    previous_controlnet = None

    def __init__(self, patches: Sequence[Patch], dtype: torch.dtype | None):
        size = (dtype or torch.float32).itemsize
        self.nbytes = sum(t.numel() * size for t in {id(t): t for p in patches for t in p.tensors()}.values())
        self.multigpu_clones: dict[torch.device, Reserve] = {}

    def get_models(self) -> list:
        return []

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        return self.nbytes

    def deepclone_multigpu(self, device: torch.device, autoregister: bool = False) -> Reserve:
        self.multigpu_clones[device] = self
        return self

    def get_instance_for_device(self, device: torch.device) -> Reserve:
        return self

    def set_previous_controlnet(self, control: None) -> None:
        pass

    def cleanup(self) -> None:
        pass


@dataclass
class BatchRows:
    """Which rows of the current batch get the LoRA: of `chunks` equal chunks, those in `chosen` are personalised,
    each with a dose of its own."""

    chunks: int = 1
    chosen: tuple[int, ...] = ()
    doses: tuple[Dose, ...] = ()  # one for each of chosen
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
        self.chosen, self.doses = (), ()


def _hook(name: str, parts: Mapping[int, Sequence[Part]], rows: BatchRows):
    """parts: by LoRA."""

    def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        if not rows.chosen:
            return None
        x = args[0]

        def place(tensor: Tensor) -> Tensor:
            where = (id(tensor), x.device, x.dtype)
            if where not in rows.moved:
                rows.moved[where] = tensor.to(x.device, x.dtype)
            return rows.moved[where]

        slices = rows.indices(len(x))
        if len(output) != len(x):
            raise RowsNotSeparable
        for part_of_batch, (strength, lora) in zip(slices, rows.doses, strict=True):
            if strength != 0:
                for part in parts.get(lora, ()):  # the output is fresh: in place is safe
                    part(module, x[part_of_batch], output[part_of_batch], strength, place)
        if rows.trace is not None:
            for base in rows.base(len(x), rows.chosen):
                rows.trace.append(
                    (name, torch.stack([x[base].double().norm(), output[base].double().norm()]))
                )
        return output

    return add


@contextmanager
def attached(model, loras: Sequence[Sequence[Patch]]) -> Iterator[BatchRows]:
    """Hook the patches of each LoRA to the MODEL's modules; yields the BatchRows that switch them. Everything comes off
    again in reverse order, whatever happened, and the copies made for the run are returned."""
    modules = dict(model.model.named_modules())
    by_module: dict[str, dict[int, list[Patch]]] = {}
    rows, handles, slow = BatchRows(dtype=model.model.get_dtype_inference()), [], []
    for lora, patches in enumerate(loras):
        for p in patches:
            if separable(p, modules):
                by_module.setdefault(p.module, {}).setdefault(lora, []).append(p)
            else:
                rows.whole = False
    magnitudes: list[Magnitude] = []
    try:
        for name, groups in by_module.items():
            parts: dict[int, list[Part]] = {}
            for lora, group in groups.items():
                parts[lora], slower = parts_of(group, modules[name])
                slow += [name] * slower
                magnitudes += [part for part in parts[lora] if isinstance(part, Magnitude)]
            handles.append(modules[name].register_forward_hook(_hook(name, parts, rows)))
        if slow:
            say_once(
                f"{len(slow)} LoRA layers, such as {slow[0]}, need their weight made anew in every step, which is "
                "slower."
            )
        yield rows
    finally:
        for handle in reversed(handles):
            handle.remove()
        for part in magnitudes:
            part.reset()
        rows.moved.clear()


@contextmanager
def swapped(model, patches: Sequence[Patch], strength: float) -> Iterator[None]:
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
