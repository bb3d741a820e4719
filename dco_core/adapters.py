"""LoRA layers in a network, through peft: which layers, how they start, switching them off, reading them out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import DCOError
from .lora import LoraLayer

ADAPTER = "dco"

# The layer choices of the trainer: a pattern over the dotted module name.
_ATTENTION = r"(^|\.)(attn\d*|\w+_attn|attention|\w+_attention)(\.\w+){1,2}$"
_FEED_FORWARD = r"(^|\.)(ff|mlp|\w+_mlp|feed_forward)(\.\w+){1,3}$"
LAYERS = {
    "attention": _ATTENTION,
    "attention and feed-forward": f"{_ATTENTION}|{_FEED_FORWARD}",
    "all linear": r"",
    "all linear and convolution": r"",
}


@dataclass(frozen=True)
class AdapterConfig:
    """rank: r of down [r, in] and up [out, r]. alpha: dW = alpha / rank * up @ down; None means alpha = rank, as
    the authors train. layers: a key of LAYERS or a regular expression over dotted module names. seed: of down."""

    rank: int = 32
    alpha: float | None = None
    layers: str = "attention"
    seed: int = 0

    @property
    def effective_alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)


def target_modules(network: nn.Module, layers: str) -> list[str]:
    """Names of the linear (and, if asked for, convolution) modules that `layers` chooses, sorted."""
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,)
    if layers == "all linear and convolution" or layers not in LAYERS:
        kinds = (nn.Linear, nn.Conv2d)
    try:
        pattern = re.compile(LAYERS.get(layers, layers))
    except re.error as error:
        raise DCOError(
            f"layers {layers!r} is neither one of {', '.join(LAYERS)} nor a valid regular expression ({error})."
        ) from None
    names = sorted(n for n, m in network.named_modules() if isinstance(m, kinds) and pattern.search(n))
    if not names:
        linear = sum(isinstance(m, nn.Linear) for m in network.modules())
        why = (
            f"none of its {linear} linear layers has such a name: choose another set of layers"
            if linear
            else "it has no ordinary linear layers (quantised weights?): load an unquantised checkpoint"
        )
        raise DCOError(f"Cannot put a LoRA on {layers!r} of {type(network).__name__}: {why}.")
    return names


def add_adapter(network: nn.Module, config: AdapterConfig) -> dict[str, nn.Parameter]:
    """Inject LoRA layers into `network` in place, freeze everything else, and return the trainable parameters by
    name. down ~ N(0, (1/rank)^2) drawn from the seed in name order, up = 0 (the authors' code), both in fp32
    whatever the network's precision. Raises DCOError for a rank below 1 and for a choice without layers."""
    if config.rank < 1:
        raise DCOError(
            f"rank is {config.rank}: it must be at least 1 (the paper uses 32 for a subject, 64 for a style)."
        )
    if config.effective_alpha == 0:
        raise DCOError("alpha is 0: the LoRA would have no effect. Use alpha = rank.")
    names = target_modules(network, config.layers)
    from peft import LoraConfig, inject_adapter_in_model  # 0.8 s to import: only when training starts

    lora_config = LoraConfig(
        r=config.rank, lora_alpha=config.effective_alpha, lora_dropout=0.0, target_modules=names, bias="none"
    )
    network.requires_grad_(False)
    inject_adapter_in_model(lora_config, network, adapter_name=ADAPTER)
    generator = torch.Generator().manual_seed(config.seed)
    trainable = {}
    for name, layer in lora_layers(network):
        down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        start = torch.randn(down.weight.shape, generator=generator) / config.rank
        down.weight.data = start.to(down.weight.device)
        up.weight.data = torch.zeros_like(up.weight.data, dtype=torch.float32)
        trainable[f"{name}.down"], trainable[f"{name}.up"] = down.weight, up.weight
    for parameter in trainable.values():
        parameter.requires_grad_(True)
    return trainable


def lora_layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The injected peft layers as (dotted name of the wrapped module, layer), sorted by name."""
    found = [(n, m) for n, m in network.named_modules() if ADAPTER in getattr(m, "lora_A", {})]
    return sorted(found, key=lambda item: item[0])


@contextmanager
def adapter_off(network: nn.Module) -> Iterator[None]:
    """The pretrained network phi: inside, no adapter product is computed. (peft's own switch also flips
    requires_grad, which would freeze the LoRA.)"""
    layers = [layer for _, layer in lora_layers(network)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def read_adapter(network: nn.Module, config: AdapterConfig) -> dict[str, LoraLayer]:
    """Copies of the LoRA as {dotted module name: LoraLayer} on the CPU in fp32."""

    def copy(weight: Tensor) -> Tensor:
        return weight.detach().float().cpu().clone()

    return {
        name: LoraLayer(
            copy(m.lora_A[ADAPTER].weight), copy(m.lora_B[ADAPTER].weight), config.effective_alpha
        )
        for name, m in lora_layers(network)
    }
