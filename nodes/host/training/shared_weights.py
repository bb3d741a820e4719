"""A host network for autograd, without a second copy of its weights.

The host runs nodes under torch.inference_mode, so its weights cannot take part in autograd. Training works on a
copy of the network's modules whose parameters are normal tensors on the same storage: nothing is duplicated, and
the user's MODEL and CLIP stay bit-identical because only what is injected is ever written.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ....dco_core.errors import DCOError
from .frozen_layers import shared_quantized


def _on_same_storage(tensor: Tensor) -> Tensor:
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def network_on_same_storage(network: nn.Module) -> nn.Module:
    """A deep copy of the modules of `network` whose parameters and buffers share its memory. Call it outside
    inference mode. Raises DCOError for weights that are neither plain tensors nor the host's own quantised
    ones (GGUF)."""
    memo: dict[int, Any] = {}
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if isinstance(tensor, QuantizedTensor):
            memo[id(tensor)] = shared_quantized(tensor, _on_same_storage)
            continue
        if type(tensor) not in (Tensor, nn.Parameter):
            raise DCOError(
                f"The weight {name} is a {type(tensor).__name__}, which cannot be trained: load the model in fp32, "
                "fp16, bf16, fp8 or one of the host's own quantised formats."
            )
        alias = _on_same_storage(tensor)
        memo[id(tensor)] = (
            nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias
        )
    return copy.deepcopy(network, memo)
