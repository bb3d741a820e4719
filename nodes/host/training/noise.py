"""The noise that a host model was trained on, in the core's terms: x_t = alpha x0 + sigma eps and a prediction type.

Where the host's latents have the standard deviation sigma_data (EDM: Karras et al. 2022, Sec. 5), x0 here is a latent
divided by it. EDM's network then sees alpha x0 + sigma eps as a v model does, and its output is -v:

    D = c_skip x + c_out F = sigma_data (alpha x_t + sigma F),   sigma / alpha = sigma_host / sigma_data

Cosmos Predict2 counts the noise of a flow model as noise over signal: its flow time is sigma_host / (1 + sigma_host).
"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_sampling
from torch import Tensor

from ....dco_core.errors import DCOError
from ....dco_core.schedules import Schedule

_PREDICTIONS = (  # most specific first: V_PREDICTION is a subclass of EPS, EDM of V_PREDICTION
    (comfy.model_sampling.CONST, "flow"),
    (comfy.model_sampling.COSMOS_RFLOW, "flow"),
    (comfy.model_sampling.V_PREDICTION, "v"),
    (comfy.model_sampling.EPS, "epsilon"),
)
_UNTRAINABLE = (
    comfy.model_sampling.X0,
    comfy.model_sampling.IMG_TO_IMG_FLOW,
    comfy.model_sampling.StableCascadeSampling,
)


@dataclass(frozen=True)
class Noise:
    """scale: x0 is the host's latent divided by it. sign: the network's output is the prediction times it."""

    schedule: Schedule
    scale: float = 1.0
    sign: float = 1.0


def noise_of(sampling) -> Noise:
    """Of a host `model_sampling`; DCOError if the trainer has no formula for it."""
    kind = next((name for cls, name in _PREDICTIONS if isinstance(sampling, cls)), None)
    sigmas, scale = getattr(sampling, "sigmas", None), float(getattr(sampling, "sigma_data", 1.0))
    no_formula = isinstance(sampling, _UNTRAINABLE) or (scale != 1.0 and kind != "v")
    if kind is None or no_formula or sigmas is None:
        names = " / ".join(c.__name__ for c in type(sampling).__mro__[1:3])
        raise DCOError(
            f"A model with {names} noise cannot be trained yet: use an epsilon (SD1.5, SDXL), v (SD2) or flow model."
        )
    if getattr(sampling, "noise_scale", 1.0) != 1.0:
        raise DCOError(f"A flow model with noise scale {sampling.noise_scale:g} cannot be trained yet.")
    if isinstance(sampling, comfy.model_sampling.COSMOS_RFLOW):
        sigmas = sigmas / (1 + sigmas)
    sign = -1.0 if isinstance(sampling, comfy.model_sampling.EDM) else 1.0
    return Noise(Schedule.from_sigmas(kind, sigmas / scale), scale, sign)


def latent_scale(model) -> float:
    """What the host's latents of MODEL, as its network sees them, are divided by to be an x0."""
    return float(getattr(model.get_model_object("model_sampling"), "sigma_data", 1.0))


class NativeSampling:
    """Stands in for a model's `model_sampling`: x_t goes in, and the prediction comes out."""

    def __init__(self, original, sign: float = 1.0):
        self.timestep, self._sign = original.timestep, sign

    def calculate_input(self, _sigma: Tensor, x: Tensor) -> Tensor:
        return x

    def calculate_denoised(self, _sigma: Tensor, output: Tensor, _x: Tensor) -> Tensor:
        return output if self._sign == 1.0 else self._sign * output
