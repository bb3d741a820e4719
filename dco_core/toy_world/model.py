"""The Toy World's bases outside any host: weights, text encoding, a Denoiser."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..network.denoiser import NetworkDenoiser
from ..network.lora_layers import AdapterConfig
from ..schedules import Schedule
from .bases import DEFAULT_BASE, network_class, schedule_of
from .text_encoder import TextEncoder
from .tokenizer import tokenize
from .unet import UNet

WEIGHTS = Path(__file__).with_name("weights.safetensors")
_Module = TypeVar("_Module", bound=torch.nn.Module)


@functools.cache
def _shipped_weights() -> dict[str, Tensor]:
    return load_file(WEIGHTS)


def _load(make: Callable[[], _Module], prefix: str) -> _Module:
    with torch.device("meta"):  # random values that are replaced at once would take most of the time
        module = make()
    shipped = _shipped_weights().items()
    weights = {k[len(prefix) :]: v.to(torch.float32, copy=True) for k, v in shipped if k.startswith(prefix)}
    module.load_state_dict(weights, assign=True)
    return module.eval().requires_grad_(False)


def load_unet(base: str = DEFAULT_BASE) -> UNet:
    """The UNet of a base ("epsilon" or "flow") in fp32, frozen; a new copy each time. DCOError for another name."""
    return _load(network_class(base), "unet.")


def load_text_encoder() -> TextEncoder:
    """The text encoder, which the bases share, in fp32, frozen; a new copy each time."""
    return _load(TextEncoder, "text_encoder.")


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
        self._frozen = unet, base
        super().__init__(network, schedule_of(network.base), config)

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Sequence[Tensor]) -> Tensor:
        dtype = self.network.conv_in.weight.dtype
        with torch.autocast(x_t.device.type, dtype, enabled=dtype != torch.float32):
            context = torch.stack(list(conditioning)).to(x_t.device)
            return self.network(x_t, times(self.schedule, t, x_t), context)

    def phi_on(self, device: torch.device) -> ToyDenoiser:
        phi = ToyDenoiser(None, *self._frozen)
        phi.network.to(device)
        return phi


def times(schedule: Schedule, t: Tensor, x: Tensor) -> Tensor:
    """What the network calls the time of timestep indices [B]: the index for epsilon, the flow time for flow."""
    return schedule.sigma[t.cpu()].to(x) if schedule.prediction == "flow" else t.to(x.device)
