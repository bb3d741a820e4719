"""Frozen weights that stay in main memory and are copied to the device just ahead of their use.

A frozen weight never has to come back, so a pass over the network only reads: theta's forward, its blocks computed
again in the backward pass, the gradients of their inputs, and phi's pass. The unit of a copy is a block. While one
block computes, the next are on their way, on a stream of their own from pinned memory; at most `ahead` + 1 blocks lie
on the device. Which block is next is learned from the passes before: the block that last followed the same two.
What is computed is bit for bit what resident weights give (`frozen_layers.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import DCOError
from .frozen_layers import frozen_conv2d, frozen_linear
from .gradient_checkpointing import blocks

AHEAD = 2  # blocks on their way while one computes
STREAMING = ("auto", "on", "off")  # where not all fits; every block; nothing
Fetch = Callable[[], Tensor]


class Copies(Protocol):
    """How weights get to a device."""

    def begin(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """Start to copy; the copies are not to be read before `wait`."""

    def wait(self, copies: Sequence[Tensor]) -> None:
        """Let what is computed from now on read the copies."""


class ImmediateCopies:
    """Copies that are done when `begin` returns: for devices without streams."""

    def __init__(self, device: torch.device):
        self._device = device

    def begin(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        return [weight.detach().to(self._device, copy=True) for weight in weights]

    def wait(self, copies: Sequence[Tensor]) -> None:
        pass


class CudaCopies:
    """Copies on a CUDA stream of their own."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._done: dict[int, torch.cuda.Event] = {}

    def begin(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        # Memory that a block has left is used again by this stream alone: after all that was computed with it.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copies = [weight.detach().to(self._device, non_blocking=True) for weight in weights]
            done = torch.cuda.Event()
            done.record(self._stream)
        self._done[id(copies)] = done
        return copies

    def wait(self, copies: Sequence[Tensor]) -> None:
        done = self._done.pop(id(copies), None)
        if done is not None:
            torch.cuda.current_stream(self._device).wait_event(done)


def copies_to(device: torch.device) -> Copies:
    """The fastest way to a device."""
    return CudaCopies(device) if device.type == "cuda" else ImmediateCopies(device)


class WeightStream:
    """units: the weights of each block, in main memory (pinned, for a copy that overlaps). One pass at a time."""

    def __init__(self, units: Sequence[Sequence[Tensor]], copies: Copies, ahead: int = AHEAD):
        self._units, self._copies, self._ahead = units, copies, ahead
        self._here: dict[int, Sequence[Tensor]] = {}
        self._last, self._current = -1, -1
        self._followed: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._units)

    @property
    def nbytes(self) -> int:
        """Of all units: what the device need not hold."""
        return sum(_nbytes(unit) for unit in self._units)

    @property
    def resident_bytes(self) -> int:
        """At most so much of it is on the device at once."""
        largest = sorted((_nbytes(unit) for unit in self._units), reverse=True)
        return sum(largest[: self._ahead + 1])

    def weight(self, unit: int, place: int) -> Tensor:
        """One weight of a unit, on the device. Keep it for one operation only: the next unit may take its memory."""
        if unit != self._current:
            self._move_to(unit)
        return self._here[unit][place]

    def clear(self) -> None:
        """Give the device's memory back."""
        self._here.clear()
        self._last, self._current = -1, -1

    def _move_to(self, unit: int) -> None:
        self._followed[self._last, self._current] = unit
        self._last, self._current = self._current, unit
        expected = self._expected()
        for other in self._here.keys() - {unit, *expected}:
            del self._here[other]
        for wanted in (unit, *expected):
            if wanted not in self._here:
                self._here[wanted] = self._copies.begin(self._units[wanted])
        self._copies.wait(self._here[unit])

    def _expected(self) -> list[int]:
        """The units that followed here the last time, the next first."""
        found: list[int] = []
        last, current = self._last, self._current
        while len(found) < self._ahead and (following := self._followed.get((last, current))) is not None:
            found.append(following)
            last, current = current, following
        return found


def check_streaming(choice: str) -> None:
    """Raise DCOError for a choice that is none of STREAMING."""
    if choice not in STREAMING:
        raise DCOError(f"stream_weights is {choice!r}: use {', '.join(STREAMING)}.")


def streamable(block: nn.Module) -> list[nn.Module]:
    """The layers of a block whose weights can be streamed: all that are frozen, so none of its LoRA's."""
    return [m for m in block.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and _is_frozen(m)]


def stream_blocks(
    network: nn.Module,
    device: torch.device,
    resident: int = 0,
    ahead: int = AHEAD,
    copies: Copies | None = None,
) -> WeightStream | None:
    """Move `network`, which lies in main memory, to the device but for the weights of its blocks' frozen linear and
    convolution layers: these are streamed. In place; hand over a copy of your own, before or after LoRA layers were
    injected. resident: how many blocks are kept on the device, spread evenly over the network, so that a copy has the
    time of a block more. None where there is nothing to stream.
    """
    found = [layers for block in blocks(network) if (layers := streamable(block))]
    resident = min(resident, len(found))
    kept = {i * len(found) // resident for i in range(resident)}
    units = [layers for i, layers in enumerate(found) if i not in kept]
    if device.type == "cuda":
        for layer in (layer for layers in units for layer in layers):
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.pin_memory()
    return stream_units(network, units, copies or copies_to(device), device, _take_from, ahead)


def stream_units(
    network: nn.Module,
    units: Sequence[Sequence[nn.Module]],
    copies: Copies,
    device: torch.device,
    take_from: Callable[[nn.Module, Fetch, Fetch | None], None],
    ahead: int = AHEAD,
) -> WeightStream | None:
    """Stream the layers of `units` and move the rest of `network` to the device. take_from(layer, weight, bias): lets
    a layer compute with what the two functions return at the time, bias None where it has none."""
    units = [unit for unit in units if unit]
    streamed = {id(layer) for unit in units for layer in unit}
    for module in network.modules():
        if id(module) not in streamed:
            _move_own(module, device)
    if not units:
        return None
    stream = WeightStream([_tensors_of(unit) for unit in units], copies, ahead)
    for number, unit in enumerate(units):
        place = 0
        for layer in unit:
            weight = partial(stream.weight, number, place)
            bias = None if layer.bias is None else partial(stream.weight, number, place + 1)
            take_from(layer, weight, bias)
            place += 1 if bias is None else 2
    return stream


def move_to(network: nn.Module, device: torch.device) -> None:
    """Move all of a network, in place; hand over a copy of your own."""
    for module in network.modules():
        _move_own(module, device)


def resident_blocks(network: nn.Module, free_bytes: int, ahead: int = AHEAD) -> int:
    """How many blocks fit into `free_bytes` beside the ring and all that is never streamed."""
    found = [block for block in blocks(network) if streamable(block)]
    sizes = [_nbytes(_tensors_of(streamable(block))) for block in found]
    always = _nbytes([*network.parameters(), *network.buffers()]) - sum(sizes)
    ring = sum(sorted(sizes, reverse=True)[: ahead + 1])
    left, largest = free_bytes - always - ring, max(sizes, default=0)
    return len(found) if left + ring >= sum(sizes) else max(0, left // largest if largest else 0)


def _take_from(layer: nn.Module, fetch: Fetch, fetch_bias: Fetch | None) -> None:
    def weight(dtype: torch.dtype, device: torch.device) -> Tensor:
        return fetch().to(device, dtype)

    def bias() -> Tensor | None:
        return None if fetch_bias is None else fetch_bias()

    def linear(x: Tensor) -> Tensor:
        return frozen_linear(x, weight, bias())

    def conv2d(x: Tensor) -> Tensor:
        padding = layer.padding
        if layer.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x, padding = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode), (0, 0)
        return frozen_conv2d(x, weight, bias(), layer.stride, padding, layer.dilation, layer.groups)

    layer.forward = linear if isinstance(layer, nn.Linear) else conv2d


def _tensors_of(layers: Sequence[nn.Module]) -> list[Tensor]:
    """The weight and, where there is one, the bias of each layer, in this order."""
    return [tensor for layer in layers for tensor in (layer.weight, layer.bias) if tensor is not None]


def _is_frozen(layer: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in layer.parameters(recurse=False))


def _move_own(module: nn.Module, device: torch.device) -> None:
    """Move what a module holds itself, without its children."""
    for name, parameter in module._parameters.items():
        if parameter is None or parameter.device == device:
            continue
        if type(parameter.data) is Tensor:
            parameter.data = parameter.data.to(device)  # what trains stays the same object
        else:  # quantised
            module._parameters[name] = nn.Parameter(parameter.to(device), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = buffer.to(device)


def _nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
