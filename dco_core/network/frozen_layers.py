"""Linear and convolution layers whose weight never trains and is stored in another precision than it computes in.

Autograd keeps for its backward pass every weight that was cast for the forward pass: for a network stored in half
precision or fp8 and computed in fp32 that is a second copy of the whole network. Here nothing is kept but the
stored weight itself. It is cast (or dequantised) once more in the backward pass, and only the gradient of the input
is computed. Forward results are bit for bit those of `F.linear(x, weight.to(x.dtype), bias.to(x.dtype))`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

# The stored weight, or what gives it in the precision and on the device it is needed (a dequantisation).
Weight = Tensor | Callable[[torch.dtype, torch.device], Tensor]


def frozen_linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x [..., in], weight [out, in], bias [out] -> [..., out], with a gradient for x alone.

    Computed and returned in the autocast precision, or x's own where autocast is off."""
    return _Linear.apply(x.to(_compute_dtype(x)), weight, bias)


def frozen_conv2d(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """x [B, in, H, W] or [in, H, W], weight [out, in / groups, h, w], bias [out] -> [B, out, H', W'], with a
    gradient for x alone; precision as for `frozen_linear`."""
    if x.dim() == 3:
        return frozen_conv2d(x[None], weight, bias, stride, padding, dilation, groups)[0]
    return _Conv2d.apply(x.to(_compute_dtype(x)), weight, bias, (stride, padding, dilation, groups))


def _compute_dtype(x: Tensor) -> torch.dtype:
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):  # autocast leaves fp64 alone
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _weight_for(weight: Weight, like: Tensor) -> Tensor:
    if isinstance(weight, Tensor):
        return weight.to(like.device, like.dtype)
    return weight(like.dtype, like.device)


def _bias_for(bias: Tensor | None, like: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(like.device, like.dtype)


def _as_given(x: Tensor) -> AbstractContextManager[object]:
    """Inside, autocast casts nothing: the precision was chosen in the forward pass."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


# Weights are attributes of ctx on purpose. What is saved with save_for_backward passes through the saved-tensor hooks
# of whoever trains, which may copy it (activations offloaded to the CPU), and may not be an inference tensor.


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.folded = weight, _folds(x)
        with _as_given(x):
            return F.linear(x, _weight_for(weight, x), _bias_for(bias, x))

    @staticmethod
    def backward(ctx, grad: Tensor):
        weight = _weight_for(ctx.weight, grad)
        with _as_given(grad):
            if ctx.folded:
                found = grad.reshape(-1, grad.shape[-1]) @ weight
            else:
                batches = grad.reshape(-1, *grad.shape[-2:])
                found = batches.bmm(weight.expand(len(batches), *weight.shape))
        return found.reshape(*grad.shape[:-1], weight.shape[1]), None, None


def _folds(x: Tensor) -> bool:
    """Whether torch's linear layer multiplies all rows of x at once, or batch by batch: sums round otherwise."""
    leading = range(x.dim() - 2)
    return all(x.stride(i) == x.stride(i + 1) * x.shape[i + 1] for i in leading) or x.numel() == 0


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Weight, bias: Tensor | None, geometry: tuple) -> Tensor:
        ctx.weight, ctx.geometry, ctx.shape = weight, geometry, x.shape
        with _as_given(x):
            return F.conv2d(x, _weight_for(weight, x), _bias_for(bias, x), *geometry)

    @staticmethod
    def backward(ctx, grad: Tensor):
        with _as_given(grad):
            return (
                conv2d_input(ctx.shape, _weight_for(ctx.weight, grad), grad, *ctx.geometry),
                None,
                None,
                None,
            )
