"""What the trainer needs from a network. The Toy World, a diffusers UNet and a host model all fit this seam."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

from ..errors import DCOError
from ..lora import LoraLayer
from ..schedules import Schedule
from .gradient_checkpointing import checkpoint_blocks
from .lora_layers import AdapterConfig, adapter_off, add_adapter, dropout_on, read_adapter
from .weight_stream import WeightStream


class Denoiser(ABC):
    """theta and phi in one: a frozen pretrained network phi with an adapter that can be switched off.

    family: the base's name in a LoRA's header, "" where it is not known.
    checkpointed: whether theta's blocks are computed again in the backward pass, and so keep little. What a subclass
    knows of its memory it says by `rows_at_once` and `network_tensors`; nothing needs to be known."""

    schedule: Schedule
    family: str = ""
    checkpointed: bool = False

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, conditioning: Sequence[Any], *, adapter: bool) -> Tensor:
        """The network's native prediction [B, ...] for x_t [B, ...] at timestep indices t int64 [B], on one
        conditioning a sample; theta with `adapter`, phi without."""

    @abstractmethod
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name, always in the same order."""

    @abstractmethod
    def lora(self) -> dict[str, LoraLayer]:
        """The adapter as it is now, {dotted module name: LoraLayer}, copied."""

    def rows_at_once(self, latent_shape: Sequence[int]) -> int | None:
        """How many samples of a latent [C, H, W] fit into one call without gradient; None where that is not known."""
        return None

    def conditioning_content(self, conditioning: Any) -> Any:
        """What a conditioning says, as tensors, numbers and texts in mappings and sequences (files/content_key.py)."""
        return conditioning

    def network_tensors(self) -> Sequence[Tensor]:
        """What the network holds whether it trains or not: no part of a step's memory."""
        return ()

    def phi_on(self, device: torch.device) -> Denoiser | None:
        """phi as a network of its own on a device, without an adapter: it takes x_t there and conditionings from
        anywhere, and may be asked by another thread. Its weights may be shared where the device is the same. None where
        a network does not know how."""
        return None


class NetworkDenoiser(Denoiser):
    """A Denoiser over any torch network: injects a LoRA into `network` (in place: hand over a copy of your own);
    with config None it stays as it is, for learned tokens alone.

    Subclasses define how the network is called: `forward(x_t, t, conditioning)`.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, config: AdapterConfig | None):
        self.network, self.schedule = network, schedule
        self._dropout = config is not None and config.dropout > 0
        self._offloaded = False
        self.weight_stream: WeightStream | None = None
        self._trainable = {} if config is None else add_adapter(network, config)

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, conditioning: Sequence[Any]) -> Tensor:
        """The network's native prediction [B, ...], with whatever adapter is switched on."""

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Sequence[Any], *, adapter: bool) -> Tensor:
        if adapter and torch.is_grad_enabled():
            dropout = dropout_on(self.network) if self._dropout else nullcontext()
            offloading = save_on_cpu(pin_memory=x_t.is_cuda) if self._offloaded else nullcontext()
            with dropout, offloading:
                return self.forward(x_t, t, conditioning)
        if adapter:
            return self.forward(x_t, t, conditioning)
        with adapter_off(self.network):
            return self.forward(x_t, t, conditioning)

    def checkpoint_blocks(self, offload: bool = False) -> int:
        """Switch gradient checkpointing on, for the network's blocks; how many there are. offload: what is kept of each
        for the backward pass, its inputs, waits in main memory. (Without checkpointing weights would travel too.)"""
        found = checkpoint_blocks(self.network)
        self.checkpointed = self.checkpointed or found > 0
        self._offloaded = offload and self.checkpointed
        return found

    def compile_blocks(self) -> int:
        """torch.compile the network's blocks, before they are checkpointed; how many there are. DCOError where their
        weights are streamed."""
        if self.weight_stream is not None:
            raise DCOError("compile and streamed weights do not go together: switch one of them off.")
        from .compiling import compile_blocks

        return compile_blocks(self.network)

    def network_tensors(self) -> Sequence[Tensor]:
        return [*self.network.parameters(), *self.network.buffers()]

    def trainable(self) -> dict[str, nn.Parameter]:
        return self._trainable

    def lora(self) -> dict[str, LoraLayer]:
        return read_adapter(self.network)
