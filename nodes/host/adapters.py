"""A LORA_MODEL resolved against a MODEL: per module, what the LoRA adds to its output.

The LoRA is not merged into weights. Each adapted module adds up(down(x)) to its own output, on chosen rows of
the batch only. Forward hooks carry it: unlike replaced `forward` methods they come off in any order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import comfy.lora
import comfy.lora_convert
import comfy.weight_adapter
from torch import Tensor, nn
from torch.nn import functional as F

from ...dco_core.errors import DCOError
from ...dco_core.lora import BUNDLE

_UPS = (".lora_up.weight", ".lora_B.weight", ".lora.up.weight", ".lora_linear_layer.up.weight")
_TEXT_ENCODERS = ("lora_te", "text_encoder", "te1", "te2")


class RowsNotSeparable(Exception):
    """A module saw a batch that is not made of the expected rows, so that the LoRA cannot be told apart there."""


@dataclass(frozen=True)
class LowRank:
    """down [r, in, *k], up [out, r, ...], times scale; `columns` is the slice of the module's output it adds to
    (fused q-k-v layers), or None for all of it."""

    module: str
    down: Tensor
    up: Tensor
    scale: float
    columns: tuple[int, int] | None = None


def resolve(model, lora: Mapping[str, Tensor], strength: float) -> list[LowRank]:
    """Find the module of every LoRA pair; none for learned tokens alone. Raises DCOError when the LoRA belongs to
    another model (no key, or another shape, fits) and for adapter kinds that have no low-rank pair."""
    if lora and all(key.startswith(BUNDLE) for key in lora):
        return []
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(lora)), key_map, log_missing=False)
    if not patches:
        example = next(iter(lora), "nothing")
        raise DCOError(
            f"The LoRA does not belong to this model ({type(model.model).__name__}): none of its {len(lora)} keys "
            f'(such as "{example}") names a layer of it. Load the checkpoint that it was trained on.'
        )
    pairs = sum(key.endswith(_UPS) and not key.startswith(_TEXT_ENCODERS) for key in lora)
    if len(patches) < pairs:
        logging.warning(
            "DCO: %d of %d LoRA layers fit this model; the others are left out.", len(patches), pairs
        )
    modules = dict(model.model.named_modules())
    found = []
    for key, patch in patches.items():
        name, columns = (key, None) if isinstance(key, str) else (key[0], tuple(key[1][1:3]))
        module = name.removesuffix(".weight")
        if not isinstance(patch, comfy.weight_adapter.LoRAAdapter):
            kind = patch[0] if isinstance(patch, tuple) else getattr(patch, "name", type(patch).__name__)
            raise DCOError(
                f'The LoRA file has a "{kind}" part for {module}: reward guidance takes plain LoRA and LoCon pairs. '
                "Convert it to a LoRA first."
            )
        up, down, alpha, mid, dora_scale, reshape = patch.weights
        if mid is not None or dora_scale is not None or reshape is not None:
            raise DCOError(
                f"The LoRA of {module} is a Tucker or DoRA one: reward guidance takes plain LoRA and LoCon pairs."
            )
        if not isinstance(modules.get(module), (nn.Linear, nn.Conv2d)):
            kind = type(modules.get(module)).__name__
            raise DCOError(
                f"The LoRA adapts {module}, a {kind}: reward guidance takes linear and 2-D convolution layers."
            )
        weight = getattr(modules[module], "weight", None)
        out_features = None if weight is None else (columns[1] if columns else weight.shape[0])
        if (
            weight is None
            or up.shape[0] != out_features
            or down.shape[1:].numel() != weight.shape[1:].numel()
        ):
            raise DCOError(
                f"The LoRA does not belong to this model: for {module} it has {tuple(up.shape)} x {tuple(down.shape)}, "
                f"the layer has {None if weight is None else tuple(weight.shape)}. "
                "Load the checkpoint that it was trained on."
            )
        rank = down.shape[0]
        scale = strength * (1.0 if alpha is None else alpha / rank)
        found.append(
            LowRank(module, down.reshape(rank, *weight.shape[1:]), up.reshape(-1, rank), scale, columns)
        )
    return found


@dataclass
class Rows:
    """Which rows of the current batch get the LoRA: `chunks` equal chunks, those in `chosen` are personalised."""

    chunks: int = 1
    chosen: tuple[int, ...] = ()
    moved: dict[tuple, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def indices(self, batch: int) -> list[slice]:
        """Slices of the first dimension that belong to the chosen chunks; RowsNotSeparable if it does not divide."""
        size, rest = divmod(batch, self.chunks)
        if rest:
            raise RowsNotSeparable
        return [slice(i * size, (i + 1) * size) for i in self.chosen]


def _delta(module: nn.Module, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    if isinstance(module, nn.Conv2d):
        h = F.conv2d(x, down, None, module.stride, module.padding, module.dilation)
        return F.conv2d(h, up[:, :, None, None]) * scale
    return F.linear(F.linear(x, down), up) * scale


def _hook(adapters: Sequence[LowRank], rows: Rows):
    def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if not rows.chosen:
            return output
        x = args[0]
        for slot, adapter in enumerate(adapters):
            place = (adapter.module, slot, x.device, x.dtype)
            if place not in rows.moved:
                rows.moved[place] = (adapter.down.to(x.device, x.dtype), adapter.up.to(x.device, x.dtype))
            down, up = rows.moved[place]
            for part in rows.indices(len(x)):
                target = output[part]
                if adapter.columns:
                    target = target.narrow(-1, *adapter.columns)
                target += _delta(
                    module, x[part], down, up, adapter.scale
                )  # the output is fresh: in place is safe
        return output

    return add


@contextmanager
def attached(model, adapters: Sequence[LowRank]) -> Iterator[Rows]:
    """Hook the adapters to the MODEL's modules; yields the Rows that switch them. Everything comes off again on
    exit, whatever happened, and the LoRA's device memory is returned."""
    by_module: dict[str, list[LowRank]] = {}
    for adapter in adapters:
        by_module.setdefault(adapter.module, []).append(adapter)
    rows, handles = Rows(), []
    modules = dict(model.model.named_modules())
    try:
        for name, parts in by_module.items():
            handles.append(modules[name].register_forward_hook(_hook(parts, rows)))
        yield rows
    finally:
        for handle in handles:
            handle.remove()
        rows.moved.clear()
