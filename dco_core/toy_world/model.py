"""The Toy World's base models outside any host: weights, text encoding, a Denoiser for training, sampling."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..adapters import AdapterConfig, adapter_off
from ..denoiser import NetworkDenoiser
from ..guidance import reward_guidance
from .text_encoder import TextEncoder
from .tokenizer import tokenize
from .unet import BASES, UNet, schedule_of

DEFAULT_BASE = BASES[0]  # the paper compares epsilon errors


def weights_file(base: str = DEFAULT_BASE) -> Path:
    """The shipped weights of a base, "epsilon" or "flow". DCOError for any other."""
    schedule_of(base)
    return Path(__file__).with_name(f"{base}.safetensors")


@functools.cache
def _shipped_weights(base: str) -> dict[str, Tensor]:
    return load_file(weights_file(base))


def _load(module: torch.nn.Module, base: str, prefix: str) -> torch.nn.Module:
    weights = {k[len(prefix) :]: v.float() for k, v in _shipped_weights(base).items() if k.startswith(prefix)}
    module.load_state_dict(weights)
    return module.eval().requires_grad_(False)


def load_unet(base: str = DEFAULT_BASE) -> UNet:
    """The UNet of a base in fp32, frozen; a new copy each time."""
    return _load(UNet(base), base, "unet.")


def load_text_encoder(base: str = DEFAULT_BASE) -> TextEncoder:
    """The text encoder of a base in fp32, frozen; a new copy each time. Each base has its own."""
    return _load(TextEncoder(), base, "text_encoder.")


def encode(text_encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Captions -> conditioning [B, 20, 128]. A marker such as `<toy>` reads as its word."""
    with torch.no_grad():
        return text_encoder(tokenize(list(texts)).to(text_encoder.position_embedding.device))


class ToyDenoiser(NetworkDenoiser):
    """A Toy World UNet for the trainer; one conditioning is a tensor [20, 128].

    unet: of either base, copied; None: the shipped one of `base`."""

    network: UNet

    def __init__(self, config: AdapterConfig | None, unet: UNet | None = None, base: str = DEFAULT_BASE):
        network = copy.deepcopy(unet) if unet is not None else load_unet(base)
        super().__init__(network, schedule_of(network.base), config)

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Sequence[Tensor]) -> Tensor:
        times = self.schedule.sigma[t.cpu()].to(x_t) if self.network.base == "flow" else t.to(x_t.device)
        dtype = self.network.conv_in.weight.dtype
        with torch.autocast(x_t.device.type, dtype, enabled=dtype != torch.float32):
            return self.network(x_t, times, torch.stack(list(conditioning)))


@torch.no_grad()
def sample(
    network: UNet,
    conditioning: Tensor,
    unconditional: Tensor,
    noise: Tensor,
    w_rg: float,
    w_text: float = 2.0,
    steps: int = 20,
) -> Tensor:
    """Reward guidance from noise [B, 3, 64, 64] to images [B, 3, 64, 64] in about -1..1, by DDIM for epsilon and Euler
    for flow, which is the same rule over the base's schedule.

    network: a UNet, with an adapter from `add_adapter` or without (then any w_rg gives plain guidance).
    conditioning [B, 20, 128], unconditional [1, 20, 128].
    """
    schedule = schedule_of(network.base)
    last, n, x = len(schedule) - 1, len(noise), noise
    empty = unconditional.expand(n, -1, -1)
    indices = [last - i * len(schedule) // steps for i in range(steps)]
    for i, index in enumerate(indices):
        at = torch.full((n,), index)
        t = (schedule.sigma[at] if network.base == "flow" else at).to(x.device)
        theta = network(x, t, conditioning) if w_rg != 0 else None
        with adapter_off(network):
            phi = network(x, t, conditioning) if w_rg != w_text else None
            null = network(x, t, empty) if w_text != 1 else None
        x0 = schedule.denoised(x, reward_guidance(theta, phi, null, w_rg, w_text), at)
        if i + 1 == steps:
            break
        alpha, sigma = schedule.at(at, x)
        x = schedule.noised(x0, (x - alpha * x0) / sigma, torch.full((n,), indices[i + 1]))
    return x0
