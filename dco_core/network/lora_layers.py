"""LoRA layers in a network, through peft: which layers, how they start, switching them off, reading them out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import DCOError
from ..lora import LoraLayer
from .library_import import import_peft

ADAPTER = "dco"

# The layer choices of the trainer: a pattern over the dotted module name.
_ATTENTION = r"(^|\.)(attn\d*|\w+_attn|attention|\w+_attention)(\.\w+){1,2}$"
_KEYS_VALUES = r"(^|\.)attn2\.to_[kv]$"
_FEED_FORWARD = r"(^|\.)(ff|mlp|\w+_mlp|feed_forward)(\.\w+){1,3}$"
LAYERS = {
    "attention": _ATTENTION,
    "cross-attention keys and values": _KEYS_VALUES,  # Custom Diffusion (Kumari et al. 2023)
    "attention and feed-forward": f"{_ATTENTION}|{_FEED_FORWARD}",
    "all linear": r"",
    "all linear and convolution": r"",
}


@dataclass(frozen=True)
class AdapterConfig:
    """rank: r of down [r, in] and up [out, r]. alpha: dW = alpha / rank * up @ down; None means alpha = rank, as
    the authors train. layers: a key of LAYERS or a regular expression over dotted module names. name_filter: a
    regular expression that the names must match too ("" is all of them). dropout: of the LoRA's input. seed: of
    down. start: {dotted module name: LoraLayer} to go on from; its modules, ranks and alphas take the place of the
    choices here."""

    rank: int = 32
    alpha: float | None = None
    layers: str = "attention"
    seed: int = 0
    name_filter: str = ""
    dropout: float = 0.0
    start: Mapping[str, LoraLayer] | None = None

    @property
    def effective_alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)

    @property
    def size(self) -> tuple[int, float]:
        """(rank, alpha), where it goes on from a LoRA those of its first layer."""
        first = next(iter(self.start.values()), None) if self.start else None
        return (first.rank, first.rank * first.scale) if first else (self.rank, self.effective_alpha)

    def check(self) -> None:
        """Raise DCOError for what no network could take."""
        if self.rank < 1:
            raise DCOError(
                f"rank is {self.rank}: it must be at least 1 (the paper uses 32 for a subject, 64 for a style)."
            )
        if self.effective_alpha == 0:
            raise DCOError("alpha is 0: the LoRA would have no effect. Use alpha = rank.")
        if not 0 <= self.dropout < 1:
            raise DCOError(f"dropout is {self.dropout:g}: it must be from 0 to below 1.")
        _compiled("layers", LAYERS.get(self.layers, self.layers))
        _compiled("name_filter", self.name_filter)


def target_modules(network: nn.Module, layers: str, name_filter: str = "") -> list[str]:
    """Names of the linear (and, if asked for, convolution) modules that `layers` and `name_filter` choose,
    sorted."""
    layer_types: tuple[type[nn.Module], ...] = (nn.Linear,)
    if layers == "all linear and convolution" or layers not in LAYERS:
        layer_types = (nn.Linear, nn.Conv2d)
    pattern = _compiled("layers", LAYERS.get(layers, layers))
    wanted = _compiled("name_filter", name_filter)
    names = sorted(
        n
        for n, m in network.named_modules()
        if isinstance(m, layer_types) and pattern.search(n) and wanted.search(n)
    )
    if not names:
        linear = sum(isinstance(m, nn.Linear) for m in network.modules())
        why = (
            f"none of its {linear} linear layers has such a name: choose another set of layers"
            if linear
            else "it has no linear layers of a known kind (GGUF?): load another form of the checkpoint"
        )
        chosen = f"{layers!r}" + (f" with names like {name_filter!r}" if name_filter else "")
        raise DCOError(f"Cannot put a LoRA on {chosen} of {type(network).__name__}: {why}.")
    return names


def _compiled(option: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        known = f" neither one of {', '.join(LAYERS)} nor" if option == "layers" else " not"
        raise DCOError(f"{option} {pattern!r} is{known} a valid regular expression ({error}).") from None


def _started_modules(network: nn.Module, start: Mapping[str, LoraLayer]) -> list[str]:
    """The modules of a LoRA to go on from, sorted; DCOError if one is not there or has another shape."""
    modules = dict(network.named_modules())
    for name, layer in start.items():
        module = modules.get(name)
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            raise DCOError(
                f"The LoRA to start from adapts {name}, which is no linear or convolution layer of "
                f"{type(network).__name__}: it was trained for another model."
            )
        if tuple(module.weight.shape) != layer.shape:
            raise DCOError(
                f"The LoRA to start from has shape {layer.shape} for {name}, the layer {tuple(module.weight.shape)}: "
                "it was trained for another model."
            )
    return sorted(start)


def add_adapter(network: nn.Module, config: AdapterConfig) -> dict[str, nn.Parameter]:
    """Inject LoRA layers into `network` in place, freeze everything else, and return the trainable parameters by
    name. down ~ N(0, (1/rank)^2) drawn from the seed in name order, up = 0 (the authors' code), both in fp32
    whatever the network's precision. Raises DCOError for what AdapterConfig.check
    refuses and for a choice without layers."""
    config.check()
    start = config.start or {}
    if config.start is not None:
        names = _started_modules(network, start)
    else:
        names = target_modules(network, config.layers, config.name_filter)
    peft = import_peft()
    lora_config = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.effective_alpha,
        lora_dropout=config.dropout,
        target_modules=names,
        bias="none",
        init_lora_weights=False,  # they are set below
        rank_pattern={f"^{re.escape(name)}": layer.rank for name, layer in start.items()},
        alpha_pattern={f"^{re.escape(name)}": layer.rank * layer.scale for name, layer in start.items()},
    )
    network.requires_grad_(False)
    peft.inject_adapter_in_model(lora_config, network, adapter_name=ADAPTER)
    generator = torch.Generator().manual_seed(config.seed)
    trainable = {}
    for name, layer in lora_layers(network):
        layer.lora_dropout.eval()
        down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        device = down.weight.device
        if name in start:
            down.weight.data = start[name].down.to(device, torch.float32, copy=True)
            up.weight.data = start[name].up.to(device, torch.float32, copy=True)
        else:
            down.weight.data = (torch.randn(down.weight.shape, generator=generator) / config.rank).to(device)
            up.weight.data = torch.zeros_like(up.weight.data, dtype=torch.float32)
        trainable[f"{name}.down"], trainable[f"{name}.up"] = down.weight, up.weight
    for parameter in trainable.values():
        parameter.requires_grad_(True)
    return trainable


def lora_layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The injected peft layers as (dotted name of the wrapped module, layer), sorted by name."""
    # _modules: a module that has no lora_A is slow to say so, and there are many
    found = [(n, m) for n, m in network.named_modules() if ADAPTER in (m._modules.get("lora_A") or ())]
    return sorted(found, key=lambda item: item[0])


@contextmanager
def dropout_on(network: nn.Module) -> Iterator[None]:
    """Inside, the LoRA's dropout drops; outside it does not, like all other dropout of the frozen network."""
    dropouts = [layer.lora_dropout for _, layer in lora_layers(network)]
    for dropout in dropouts:
        dropout.train()
    try:
        yield
    finally:
        for dropout in dropouts:
            dropout.eval()


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


def read_adapter(network: nn.Module) -> dict[str, LoraLayer]:
    """Copies of the LoRA as {dotted module name: LoraLayer} on the CPU in fp32."""

    def copy(weight: Tensor) -> Tensor:
        return weight.detach().float().cpu().clone()

    return {
        name: LoraLayer(
            copy(m.lora_A[ADAPTER].weight), copy(m.lora_B[ADAPTER].weight), float(m.lora_alpha[ADAPTER])
        )
        for name, m in lora_layers(network)
    }
