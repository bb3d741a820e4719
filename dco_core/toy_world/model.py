"""The Toy World's bases outside any host: weights, text encoding, a Denoiser for training, sampling."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..guidance import reward_guidance
from ..network.denoiser import NetworkDenoiser
from ..network.lora_layers import AdapterConfig, adapter_off
from ..schedules import Schedule
from ..suggested_scales import TOY_WORLD
from .bases import DEFAULT_BASE, network_class, schedule_of
from .text_encoder import TextEncoder
from .tokenizer import tokenize
from .unet import UNet

WEIGHTS = Path(__file__).with_name("weights.safetensors")
_Module = TypeVar("_Module", bound=torch.nn.Module)


@functools.cache
def _shipped_weights() -> dict[str, Tensor]:
    return load_file(WEIGHTS)


def _load(module: _Module, prefix: str) -> _Module:
    weights = {k[len(prefix) :]: v.float() for k, v in _shipped_weights().items() if k.startswith(prefix)}
    module.load_state_dict(weights)
    return module.eval().requires_grad_(False)


def load_unet(base: str = DEFAULT_BASE) -> UNet:
    """The UNet of a base ("epsilon" or "flow") in fp32, frozen; a new copy each time. DCOError for another name."""
    return _load(network_class(base)(), "unet.")


def load_text_encoder() -> TextEncoder:
    """The text encoder, which the bases share, in fp32, frozen; a new copy each time."""
    return _load(TextEncoder(), "text_encoder.")


def encode(text_encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Captions -> conditioning [B, 20, 128]. A marker such as `<toy>` reads as its word."""
    with torch.no_grad():
        return text_encoder(tokenize(list(texts)).to(text_encoder.position_embedding.device))


class ToyDenoiser(NetworkDenoiser):
    """A Toy World UNet for the trainer; one conditioning is a tensor [20, 128].

    unet: of either base, copied; None: the shipped one of `base`."""

    family = "ToyWorld"
    network: UNet

    def __init__(self, config: AdapterConfig | None, unet: UNet | None = None, base: str = DEFAULT_BASE):
        network = copy.deepcopy(unet) if unet is not None else load_unet(base)
        super().__init__(network, schedule_of(network.base), config)

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Sequence[Tensor]) -> Tensor:
        dtype = self.network.conv_in.weight.dtype
        with torch.autocast(x_t.device.type, dtype, enabled=dtype != torch.float32):
            return self.network(x_t, _times(self.schedule, t, x_t), torch.stack(list(conditioning)))


def _times(schedule: Schedule, t: Tensor, x: Tensor) -> Tensor:
    """What the network calls the time of timestep indices [B]: the index for epsilon, the flow time for flow."""
    return schedule.sigma[t.cpu()].to(x) if schedule.prediction == "flow" else t.to(x.device)


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
    """Reward guidance from noise [B, 3, 32, 32] to images [B, 3, 32, 32] in about -1..1: DDIM for the epsilon base and
    Euler for flow, which is the same rule on the base's schedule.

    network: a UNet, with an adapter from `add_adapter` or without (then any w_rg gives plain guidance).
    conditioning [B, 20, 128], unconditional [1, 20, 128].
    """
    schedule, n, x = schedule_of(network.base), len(noise), noise
    empty = unconditional.expand(n, -1, -1)
    last = len(schedule) - 1
    indices = [last - i * len(schedule) // steps for i in range(steps)]
    for index, following in zip(indices, [*indices[1:], None], strict=True):
        at = torch.full((n,), index)
        t = _times(schedule, at, x)
        theta = network(x, t, conditioning) if w_rg != 0 else None
        with adapter_off(network):
            phi = network(x, t, conditioning) if w_rg != w_text else None
            null = network(x, t, empty) if w_text != 1 else None
        x0 = schedule.denoised(x, reward_guidance(theta, phi, null, w_rg, w_text), at)
        if following is None:
            break
        alpha, sigma = schedule.at(at, x)
        x = schedule.noised(x0, (x - alpha * x0) / sigma, torch.full((n,), following))
    return x0
