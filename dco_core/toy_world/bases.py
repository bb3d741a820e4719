"""The Toy World's two bases: one network, read as two kinds of model.

The weights were trained as a flow model, x = (1 - s) x0 + s eps with the velocity v = eps - x0, which is the base
*flow*, as SD3 and Flux are. The same x is x_t / (alpha + sigma) of a variance-preserving x_t = alpha x0 + sigma eps,
at s = sigma / (alpha + sigma), and eps = x + (1 - s) v. So the network is also an *epsilon* model, as SD1.5 and SDXL
are, with their 1000 timesteps: s runs from 0.028 to 0.936 there, and training drew it from all of 0..1. The two draw
the same pictures; what losses compare is not the same (see losses.weights_at): errors of eps are (1 - s)^2 times those
of v.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import DCOError
from ..schedules import Schedule
from .unet import UNet

# Made once, outside of inference mode, in which hosts build networks: its values take part in training.
_SCHEDULES = {"epsilon": Schedule.stable_diffusion(), "flow": Schedule.flow()}
BASES = tuple(_SCHEDULES)
DEFAULT_BASE = "epsilon"  # where the paper makes its claim


def schedule_of(base: str) -> Schedule:
    """The schedule of a base. DCOError for a name that is none."""
    if base not in _SCHEDULES:
        raise DCOError(f'The Toy World has no base "{base}": use {" or ".join(BASES)}.')
    return _SCHEDULES[base]


class EpsilonUNet(UNet):
    """x_t [B, 3, 32, 32], timestep indices t [B] in 0..999, context [B, n, 128] -> eps [B, 3, 32, 32]. Its parameters
    are those of the flow network, name by name."""

    base = "epsilon"

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        alpha, sigma = _SCHEDULES["epsilon"].at(t.long(), x)
        x, s = x / (alpha + sigma), sigma / (alpha + sigma)
        return x + (1 - s) * super().forward(x, s.flatten(), context)


def network_class(base: str) -> type[UNet]:
    """The network of a base. DCOError for a name that is none."""
    schedule_of(base)
    return EpsilonUNet if base == EpsilonUNet.base else UNet
