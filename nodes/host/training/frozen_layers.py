"""The host's layers for training on top of frozen weights.

Wherever the host stores a weight in another precision than it computes in (manual cast, fp8, quantised), autograd
would keep the cast weight of every layer for the backward pass. Here layers give it back and cast once more.
Quantised layers of the host are no `nn.Linear` and quantise their input too; in training they are `QuantizedLinear`,
which peft can wrap and which computes in full precision on the same quantised weight.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable

import comfy.model_management
import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ....dco_core.network.frozen_layers import frozen_conv2d, frozen_linear
from ....dco_core.network.weight_stream import Fetch


def use_frozen_layers(network: nn.Module) -> nn.Module:
    """Let the linear and 2d convolution layers of `network`, in place, keep no cast weight for the backward pass.
    Hand over the trainer's own copy, before LoRA layers are injected; returns it."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if _is_mixed_precision_linear(child):
                setattr(parent, name, QuantizedLinear(child))
    for module in network.modules():
        if isinstance(module, QuantizedLinear) or not isinstance(module, comfy.ops.CastWeightBiasOp):
            continue
        # the host's forward comes here only if there is something to cast
        if isinstance(module, nn.Linear):
            module.forward_comfy_cast_weights = types.MethodType(_linear, module)
        elif isinstance(module, nn.Conv2d):
            module.forward_comfy_cast_weights = types.MethodType(_conv2d, module)
    return network


class QuantizedLinear(nn.Linear, comfy.ops.CastWeightBiasOp):
    """A mixed precision layer of the host: its very weight and bias, in full-precision arithmetic."""

    def __init__(self, layer: nn.Module):
        nn.Module.__init__(self)  # nn.Linear's would make a weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_function, self.bias_function = layer.weight_function, layer.bias_function
        self.register_parameter("pre_quant_scale", getattr(layer, "pre_quant_scale", None))
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        comfy.ops.run_every_op()
        if self.pre_quant_scale is not None:
            x = x * self.pre_quant_scale.to(x.device, x.dtype)
        return _linear(self, x)

    def _apply(self, fn, recurse: bool = True):
        """nn.Module's own would swap the quantised weight for a copy even where nothing moves."""
        for name, parameter in self._parameters.items():
            moved = None if parameter is None else fn(parameter)
            if moved is not parameter:
                self._parameters[name] = nn.Parameter(moved, requires_grad=False)
        return self


def shared_quantized(tensor: QuantizedTensor, share: Callable[[Tensor], Tensor]) -> QuantizedTensor:
    """A quantised tensor on the memory of `tensor`, which may be an inference tensor: `share` makes a normal tensor
    on the storage of a plain one. A Parameter where `tensor` is one."""
    params = tensor.params
    shared = {
        field.name: share(value)
        for field in dataclasses.fields(params)
        if isinstance(value := getattr(params, field.name), Tensor)
    }
    alias = QuantizedTensor(
        share(tensor._qdata), tensor._layout_cls, dataclasses.replace(params, **shared)
    ).requires_grad_(False)
    if isinstance(tensor, nn.Parameter):
        alias._is_param = True  # as nn.Parameter() marks subclasses; it would also copy the scales
    return alias


def _is_mixed_precision_linear(module: nn.Module) -> bool:
    """comfy.ops.mixed_precision_ops makes a class `Linear` of its own for every checkpoint."""
    return (
        isinstance(module, comfy.ops.CastWeightBiasOp)
        and not isinstance(module, nn.Linear)
        and type(module).__name__ == "Linear"
        and isinstance(module.weight, Tensor)
    )


def take_from(module: nn.Module, fetch: Fetch, fetch_bias: Fetch | None) -> None:
    """Let a layer that `use_frozen_layers` has changed compute with the weight and bias that the two functions return
    on the device: its own may lie in main memory."""
    module.streamed_weight, module.streamed_bias = fetch, fetch_bias
    module.comfy_cast_weights = True


def _stored(module: nn.Module) -> Callable[[torch.dtype, torch.device], Tensor]:
    """The weight as the host casts it, with the patches it applies on the way."""

    def cast(dtype: torch.dtype, device: torch.device) -> Tensor:
        fetch = vars(module).get("streamed_weight")
        layer = module if fetch is None else _Fetched(fetch(), module.weight_function)
        weight, _ = comfy.ops.cast_bias_weight(layer, dtype=dtype, device=device, bias_dtype=dtype)
        # the host dequantises only where the precision changes as well
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

    return cast


class _Fetched:
    """What the host's cast reads of a layer, with another weight."""

    bias, bias_function = None, ()

    def __init__(self, weight: Tensor, weight_function):
        self.weight, self.weight_function = weight, weight_function


def _bias(module: nn.Module, x: Tensor) -> Tensor | None:
    fetch = vars(module).get("streamed_bias")
    bias = module.bias if fetch is None else fetch()
    if bias is not None:
        bias = comfy.model_management.cast_to(bias, x.dtype, x.device)
        for patch in module.bias_function:
            bias = patch(bias)
    return bias


def _linear(module: nn.Module, x: Tensor) -> Tensor:
    return frozen_linear(x, _stored(module), _bias(module, x))


def _conv2d(module: nn.Module, x: Tensor) -> Tensor:
    padding = module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, padding = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode), (0, 0)
    return frozen_conv2d(
        x, _stored(module), _bias(module, x), module.stride, padding, module.dilation, module.groups
    )
