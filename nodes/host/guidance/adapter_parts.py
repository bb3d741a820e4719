"""What an adapter changes in its module's output, as a function of the rows it is meant for.

A merged adapter changes W to W'; here the rows of the personalised conditioning get F(x, W') while the others keep
F(x, W), so nothing is merged and nothing leaks. Formulas follow the host's `calculate_weight` of each kind
(comfy/weight_adapter), which is what LoRA loaders do; so does the strength, which multiplies W' - W.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.lora
import comfy.ops
import torch
from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter, OFTAdapter
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_CONV = dict(zip(CONVOLUTIONS, (F.conv1d, F.conv2d, F.conv3d), strict=True))

# gives a tensor of a part at the device and dtype of the rows at hand, kept for the run
Place = Callable[[Tensor], Tensor]
# (module, x, y, strength, place): adds to the rows y of the module's output what the rows x are due
Part = Callable[[nn.Module, Tensor, Tensor, float, Place], None]


def is_linear(module: nn.Module) -> bool:
    """nn.Linear, and the host's layers of quantised checkpoints, which are none."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, comfy.ops.CastWeightBiasOp) and hasattr(module, "in_features")
    )


def is_layer(module: nn.Module) -> bool:
    """Whether its output can be told apart by rows."""
    return isinstance(module, (*CONVOLUTIONS, *NORMS)) or is_linear(module)


@dataclass(frozen=True)
class Patch:
    """One entry of a LoRA: `patch` is the host's adapter or ("diff" | "set", (tensor,)); it acts on the parameter
    `module`.`name`, or on the slice (dim, start, length) of it (fused q-k-v layers). function: what the host applies to
    the change, where a file has the rows of a layer in another order than the model."""

    module: str
    name: str
    patch: Any
    strength: float
    offset: tuple[int, int, int] | None = None
    function: Callable[[Tensor], Tensor] | None = None

    @property
    def key(self) -> str:
        return f"{self.module}.{self.name}"

    def tensors(self) -> list[Tensor]:
        held = self.patch[1] if isinstance(self.patch, tuple) else self.patch.weights
        return [t for t in held if isinstance(t, Tensor)]


def convolve(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """The module's linear map with another weight, without a bias. x [B, ..., in] or [B, in, ...]."""
    for kind, function in _CONV.items():
        if isinstance(module, kind):
            return function(
                x, weight, None, module.stride, module.padding, module.dilation, module.groups
            )  # padding_mode other than zeros does not occur in the host's networks
    return F.linear(x, weight)


def channels(module: nn.Module, values: Tensor) -> Tensor:
    """[out] so that it multiplies the module's output by channel."""
    trailing = next((n for n, kind in enumerate(CONVOLUTIONS, 1) if isinstance(module, kind)), 0)
    return values.reshape(-1, *[1] * trailing)


def _channel_dim(module: nn.Module) -> int:
    return next((-1 - n for n, kind in enumerate(CONVOLUTIONS, 1) if isinstance(module, kind)), -1)


class LowRank:
    """y += strength * up(down(x)): LoRA and LoCon; Tucker's middle kernel goes into `down`."""

    def __init__(self, adapter: LoRAAdapter, strength: float, weight_shape: Sequence[int]):
        up, down, alpha, mid, *_ = adapter.weights
        self.scale = strength * (1.0 if alpha is None else alpha / down.shape[0])
        if mid is not None:
            down = torch.einsum("mn..., nj -> mj...", mid.float(), down.flatten(1).float()).to(mid.dtype)
        self.down = (
            down.reshape(down.shape[0], -1, *weight_shape[2:]) if len(weight_shape) > 2 else down.flatten(1)
        )
        self.up = up.flatten(1)

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, strength: float, place: Place) -> None:
        h, up, scale = convolve(module, x, place(self.down)), place(self.up), self.scale * strength
        if is_linear(module):
            if y.is_contiguous() and y.dtype == h.dtype:  # no product of its own to keep
                y.view(-1, y.shape[-1]).addmm_(h.reshape(-1, h.shape[-1]), up.t(), alpha=scale)
            else:
                y.add_(F.linear(h, up), alpha=scale)
        else:
            ones = [1] * (h.dim() - 2)
            y.add_(_CONV[_conv_kind(module)](h, up.reshape(*up.shape, *ones)), alpha=scale)


def _conv_kind(module: nn.Module) -> type:
    return next(kind for kind in CONVOLUTIONS if isinstance(module, kind))


class Kronecker:
    """y += strength * (w1 kron w2) x by its two factors: LoKr on a linear layer."""

    def __init__(self, adapter: LoKrAdapter, strength: float):
        w1, w2, alpha, w1_a, w1_b, w2_a, w2_b, *_ = adapter.weights
        rank = None
        if w1 is None:
            w1, rank = w1_a.float() @ w1_b.float(), w1_b.shape[0]
        if w2 is None:
            w2, rank = w2_a.float() @ w2_b.float(), w2_b.shape[0]
        self.w1, self.w2 = w1, w2
        self.scale = strength * (alpha / rank if alpha is not None and rank is not None else 1.0)

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, strength: float, place: Place) -> None:
        w1, w2 = place(self.w1), place(self.w2)
        blocks = F.linear(x.reshape(*x.shape[:-1], w1.shape[1], w2.shape[1]), w2)  # [..., in1, out2]
        delta = torch.einsum("...io, ji -> ...jo", blocks, w1).reshape(y.shape)
        y.add_(delta, alpha=self.scale * strength)


class Rotation:
    """y -= strength * (y - R y) by blocks of the output channels, bias left out: OFT. The host's merge multiplies by
    the strength twice."""

    def __init__(self, adapter: OFTAdapter, strength: float):
        self.adapter, self.strength = adapter, strength
        self.turn: Tensor | None = None

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, strength: float, place: Place) -> None:
        if self.turn is None:
            r, _, size = self.adapter._get_orthogonal_matrix("cpu", torch.float32)
            self.turn = r - torch.eye(size)
        turn, dim = place(self.turn), _channel_dim(module)
        bias = getattr(module, "bias", None)
        own = y if bias is None else y - channels(module, bias.to(y))
        own = own.movedim(dim, -1)
        blocks = own.reshape(*own.shape[:-1], turn.shape[0], turn.shape[1])
        delta = torch.einsum("...kn, knm -> ...km", blocks, turn).reshape(own.shape)
        y.add_(delta.movedim(-1, dim), alpha=(self.strength * strength) ** 2)


class Magnitude:
    """DoRA on the output axis: W' = (m / |W|) (W + dW), of which y holds W x already."""

    def __init__(self, inner: Part, dora_scale: Tensor, strength: float):
        self.inner, self.dora_scale, self.strength = inner, dora_scale, strength
        self.norms: dict[int, Tensor] = {}

    def reset(self) -> None:
        self.norms.clear()

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, strength: float, place: Place) -> None:
        if id(module) not in self.norms:  # of the weight as it is loaded, other patches included
            weight = current_weight(module, x).float()
            norm = weight.flatten(1).norm(dim=1) + torch.finfo(torch.float32).eps
            self.norms[id(module)] = (self.dora_scale.to(norm).flatten() / norm).to(x.dtype)
        gain = channels(module, self.norms[id(module)])
        bias = getattr(module, "bias", None)
        own = y.clone() if bias is None else y - channels(module, bias.to(y))
        turned = own.clone()
        self.inner(module, x, turned, 1.0, place)
        y.add_(turned.mul_(gain).sub_(own), alpha=self.strength * strength)


class Difference:
    """y += F(x, W' - W) for every kind the host can merge: W' is made for each call and not kept. For LoHa, weight
    differences, and what needs W itself (DoRA on the input axis, GLoRA, BOFT, stacks with DoRA)."""

    def __init__(self, patches: Sequence[Patch], needs_weight: bool):
        self.patches, self.needs_weight = patches, needs_weight

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, strength: float, place: Place) -> None:
        if self.needs_weight:
            weight = current_weight(module, x).float()
            change = patched(self.patches, weight.clone(), strength).sub_(weight)
        else:
            zeros = torch.zeros(module.weight.shape, dtype=torch.float32, device=x.device)
            change = patched(self.patches, zeros, strength)
        y.add_(convolve(module, x, change.to(x.dtype)))


class Bias:
    """y += strength * b."""

    def __init__(self, bias: Tensor, strength: float):
        self.bias, self.strength = bias, strength

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, strength: float, place: Place) -> None:
        y.add_(channels(module, place(self.bias)), alpha=self.strength * strength)


class Norm:
    """y += norm(x) * dw + db for layer, group and RMS norms."""

    def __init__(self, dw: Tensor | None, db: Tensor | None, strength: float):
        self.dw, self.db, self.strength = dw, db, strength

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, strength: float, place: Place) -> None:
        dw = torch.zeros_like(module.weight, dtype=x.dtype) if self.dw is None else place(self.dw)
        db = None if self.db is None else place(self.db)
        if isinstance(module, nn.GroupNorm):
            delta = F.group_norm(x, module.num_groups, dw, db, module.eps)
        elif isinstance(module, nn.LayerNorm):
            delta = F.layer_norm(x, module.normalized_shape, dw, db, module.eps)
        else:
            delta = F.rms_norm(x, module.normalized_shape, dw, module.eps)
        y.add_(delta, alpha=self.strength * strength)


def patched(patches: Sequence[Patch], weight: Tensor, strength: float = 1.0) -> Tensor:
    """The weight (a copy that may be written) with the patches merged, by the host."""
    entries = [(p.strength * strength, p.patch, 1.0, p.offset, p.function) for p in patches]
    return comfy.lora.calculate_weight(entries, weight, patches[0].key)


def current_weight(module: nn.Module, x: Tensor) -> Tensor:
    """The module's weight as its forward would use it: loaded, with the MODEL's patches."""
    if hasattr(module, "comfy_cast_weights"):
        weight, _ = comfy.ops.cast_bias_weight(module, x)
        return weight
    return module.weight.to(x)


def _additive(p: Patch, module: nn.Module) -> Part | None:
    """The part by its factors, without DoRA; None where there is no such form."""
    adapter = p.patch
    if p.function is not None:
        return None
    if isinstance(adapter, LoRAAdapter):
        return LowRank(adapter, p.strength, module.weight.shape)
    if isinstance(adapter, LoKrAdapter) and is_linear(module):
        return Kronecker(adapter, p.strength)
    return None


def dora_scale(adapter: Any) -> Tensor | None:
    """DoRA's magnitudes in one of the host's adapters."""
    place = {LoRAAdapter: 4, LoHaAdapter: 7, LoKrAdapter: 8, OFTAdapter: 3}.get(type(adapter))
    return None if place is None else adapter.weights[place]


class Slice:
    """A part on a slice of the layer's outputs (dim 0 of the weight) or of its inputs (dim 1)."""

    def __init__(self, inner: Part, offset: tuple[int, int, int]):
        self.inner, self.offset = inner, offset

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, strength: float, place: Place) -> None:
        dim, start, length = self.offset
        if dim == 0:
            y = y.narrow(_channel_dim(module), start, length)
        else:
            x = x.narrow(_channel_dim(module), start, length)
        self.inner(module, x, y, strength, place)


def _fast(p: Patch, module: nn.Module, alone: bool) -> Part | None:
    """The part that does without the layer's own weight; None where W' depends on it in a way that has no such form.
    alone: nothing else acts on the weight."""
    adapter, scale = p.patch, dora_scale(p.patch)
    alone = alone and p.offset is None and p.function is None
    if isinstance(adapter, OFTAdapter):
        return Rotation(adapter, p.strength) if alone and scale is None else None
    if scale is not None:
        inner = _additive(replace(p, strength=1.0), module)
        on_outputs = scale.shape[0] == module.weight.shape[0]
        return Magnitude(inner, scale, p.strength) if inner is not None and on_outputs and alone else None
    if (
        isinstance(adapter, LoRAAdapter | LoHaAdapter | LoKrAdapter)
        or isinstance(adapter, tuple)
        and adapter[0] == "diff"
    ):
        part = _additive(p, module)
        if part is None:
            return Difference([p], needs_weight=False)
        return part if p.offset is None else Slice(part, p.offset)
    return None


def _norm(p: Patch) -> Norm:
    (change,) = p.patch[1]
    return Norm(change, None, p.strength) if p.name == "weight" else Norm(None, change, p.strength)


def parts_of(patches: Sequence[Patch], module: nn.Module) -> tuple[list[Part], bool]:
    """The parts that do what merging `patches` into the module would do, in that order; and whether they are the
    slower way (a weight made for each call). Every patch acts on the weight or bias of a layer (is_layer)."""
    if isinstance(module, NORMS):
        return [_norm(p) for p in patches], False
    biases: list[Part] = [Bias(p.patch[1][0], p.strength) for p in patches if p.name == "bias"]
    on_weight = [p for p in patches if p.name == "weight"]
    fast = [part for p in on_weight if (part := _fast(p, module, len(on_weight) == 1)) is not None]
    if len(fast) == len(on_weight):
        return [*fast, *biases], False
    return [Difference(on_weight, needs_weight=True), *biases], True
