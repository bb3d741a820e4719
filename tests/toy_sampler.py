"""The Toy World sampled on its bare network: what the sampler of dco_core is compared with."""

import torch
from torch import Tensor

from dco_core.guidance import reward_guidance
from dco_core.network.lora_layers import adapter_off
from dco_core.toy_world.bases import schedule_of
from dco_core.toy_world.model import times
from dco_core.toy_world.unet import UNet


@torch.no_grad()
def toy_sample(
    network: UNet,
    conditioning: Tensor,
    unconditional: Tensor,
    noise: Tensor,
    w_rg: float,
    w_text: float = 2.0,
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
        t = times(schedule, at, x)
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
