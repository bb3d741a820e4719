"""Which weights of a host MODEL are streamed in training: those that the host left in main memory, or that were moved
there."""

from __future__ import annotations

import comfy.model_management
import torch
from torch import nn

from ....dco_core.network.gradient_checkpointing import blocks
from ....dco_core.network.weight_stream import (
    Copies,
    WeightStream,
    check_streaming,
    copies_to,
    stream_units,
    streamable,
)
from .frozen_layers import take_from

# Of the host's own estimate for sampling the same rows: what a step with checkpointed blocks takes, roughly.
_OF_SAMPLING = 3.0
_EVERYTHING = 1e32  # bytes, as the host writes it


def streams(model, choice: str, step_shape: list[int], stand_in: bool = False) -> bool:
    """Whether MODEL's weights are to be streamed: as chosen, or where they and a step on latents [B, C, ...] (empty:
    not known) do not fit into its device together. stand_in: copies on the CPU stand in for those to a device. Call it
    when every other model has left the device. DCOError for an unknown choice."""
    check_streaming(choice)
    device = model.load_device
    if choice != "auto":
        return choice == "on" and (device.type != "cpu" or stand_in)
    if device.type == "cpu" or not step_shape:
        return False
    free = comfy.model_management.get_free_memory(device) + model.loaded_size()
    return model.model_size() + step_bytes(model, step_shape) > free


def move_to_main_memory(model) -> None:
    """Take the weights of all MODEL's layers that the host can compute with from main memory off its device, as the
    host itself does when it needs the room: its accounts stay right, and it brings them back when it next loads MODEL.
    MODEL is to be loaded."""
    model.partially_unload(model.offload_device, _EVERYTHING)


def step_bytes(model, step_shape: list[int]) -> int:
    """What a training step takes beside the weights, estimated before there is anything to measure."""
    return int(_OF_SAMPLING * model.model.memory_required(step_shape)) if step_shape else 0


def stream_offloaded(
    network: nn.Module, device: torch.device, copies: Copies | None = None
) -> WeightStream | None:
    """Stream the layers of the network's blocks whose weights are not on the device, and move whatever else is not
    there to it. Hand over the trainer's own copy, with its LoRA. copies: other ones than of the device, and then of
    every block."""
    units = [
        [layer for layer in streamable(block) if copies is not None or layer.weight.device != device]
        for block in blocks(network)
    ]
    return stream_units(network, units, copies or copies_to(device), device, take_from)
