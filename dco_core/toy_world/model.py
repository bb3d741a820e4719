"""The Toy World's base model outside any host: weights, text encoding, a Denoiser for training, sampling."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..guidance import reward_guidance
from ..network.denoiser import NetworkDenoiser
from ..network.lora_layers import AdapterConfig, adapter_off
from ..schedules import Schedule
from ..suggested_scales import TOY_WORLD
from .text_encoder import TextEncoder
from .tokenizer import tokenize
from .unet import UNet

WEIGHTS = Path(__file__).with_name("weights.safetensors")


@functools.cache
def _shipped_weights() -> dict[str, Tensor]:
    return load_file(WEIGHTS)


def _load(module: torch.nn.Module, prefix: str) -> torch.nn.Module:
    weights = {k[len(prefix) :]: v.float() for k, v in _shipped_weights().items() if k.startswith(prefix)}
    module.load_state_dict(weights)
    return module.eval().requires_grad_(False)


def load_unet() -> UNet:
    """The base UNet in fp32, frozen; a new copy each time."""
    return _load(UNet(), "unet.")


def load_text_encoder() -> TextEncoder:
    """The text encoder in fp32, frozen; a new copy each time."""
    return _load(TextEncoder(), "text_encoder.")


def encode(text_encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Captions -> conditioning [B, 20, 128]. A marker such as `<toy>` reads as its word."""
    with torch.no_grad():
        return text_encoder(tokenize(list(texts)).to(text_encoder.position_embedding.device))


class ToyDenoiser(NetworkDenoiser):
    """The Toy World's UNet for the trainer; one conditioning is a tensor [20, 128]."""

    family = "ToyWorld"

    def __init__(self, config: AdapterConfig | None, unet: UNet | None = None):
        super().__init__(copy.deepcopy(unet) if unet is not None else load_unet(), Schedule.flow(), config)

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Sequence[Tensor]) -> Tensor:
        sigma = self.schedule.sigma[t.cpu()].to(x_t)
        dtype = self.network.conv_in.weight.dtype
        with torch.autocast(x_t.device.type, dtype, enabled=dtype != torch.float32):
            return self.network(x_t, sigma, torch.stack(list(conditioning)))


@torch.no_grad()
def sample(
    network: UNet,
    conditioning: Tensor,
    unconditional: Tensor,
    noise: Tensor,
    w_rg: float,
    w_text: float = TOY_WORLD.w_text,
    steps: int = 20,
) -> Tensor:
    """Euler sampling with reward guidance: noise [B, 3, 32, 32] -> images [B, 3, 32, 32] in about -1..1.

    network: a UNet, with an adapter from `add_adapter` or without (then any w_rg gives plain guidance).
    conditioning [B, 20, 128], unconditional [1, 20, 128].
    """
    x = noise
    sigmas = torch.linspace(1, 0, steps + 1)
    empty = unconditional.expand(len(x), -1, -1)
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        t = sigma.expand(len(x))
        theta = network(x, t, conditioning) if w_rg != 0 else None
        with adapter_off(network):
            phi = network(x, t, conditioning) if w_rg != w_text else None
            null = network(x, t, empty) if w_text != 1 else None
        x = x + (following - sigma) * reward_guidance(theta, phi, null, w_rg, w_text)
    return x
