"""Which noise level a draw gets. The paper draws all alike (Algorithm 1); trainers of flow models prefer the middle,
and shift it to where the family samples.

    uniform        every index of the model's schedule alike
    logit-normal   the index at the share sigmoid(n) of the schedule, n normal (Esser et al. 2024, Sec. 3.1; the scripts
                   of diffusers): a schedule that is shifted for sampling shifts it too
    sigmoid        the flow time sigmoid(n) itself, whatever the schedule (kohya's and musubi-tuner's "sigmoid")
    shifted        the flow time sigmoid(n), shifted by the picture's size as the family samples (kohya's "flux_shift");
                   by the family's own schedule where its shift is one number
    family         what the table below has for the family: its trainers' choice, with their shift
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DCOError
from ..network.denoiser import Denoiser
from .config import TrainingConfig


@dataclass(frozen=True)
class ShiftLaw:
    """shift = exp(mu), mu on the line through (first_tokens, first_mu) and (last_tokens, last_mu). cells: latent cells
    of a token along each side."""

    first_tokens: int
    first_mu: float
    last_tokens: int
    last_mu: float
    cells: int = 2

    @classmethod
    def constant(cls, shift: float) -> ShiftLaw:
        """One number, whatever the size."""
        return cls(0, math.log(shift), 1, math.log(shift))

    def shift(self, latent_shape: Sequence[int]) -> float:
        """For a latent [C, H, W] or [C, T, H, W]."""
        tokens = math.prod(latent_shape[1:]) / self.cells**2
        slope = (self.last_mu - self.first_mu) / (self.last_tokens - self.first_tokens)
        return math.exp(self.first_mu + slope * (tokens - self.first_tokens))


@dataclass(frozen=True)
class FamilyLevels:
    """sampling: what its trainers use. law: how its sampler shifts by size, None for one number. trainers: the shift
    that its trainers use, where it is another number than that of its schedule. source: of all of it."""

    sampling: str
    law: ShiftLaw | None
    source: str
    trainers: float | None = None


# By how the family's name in a LoRA's header begins (kohya's name, or the host's class); the first that fits.
_FAMILIES = {
    "sd3": FamilyLevels("logit-normal", None, "Esser et al. 2024, Sec. 5.1"),
    "flux1": FamilyLevels(
        "shifted", ShiftLaw(256, 0.5, 4096, 1.15),
        "get_schedule in flux/sampling.py of black-forest-labs/flux; flux_shift in library/flux_train_utils.py of "
        "sd-scripts",
    ),
    "Flux2": FamilyLevels(
        "shifted", ShiftLaw(256, 0.5, 4096, 1.15, cells=1),  # its samplers' shift depends on the number of steps too
        "flux2_shift, docs/flux_2.md of musubi-tuner",
    ),
    "QwenImage": FamilyLevels(
        "shifted", ShiftLaw(256, 0.5, 8192, 0.9),
        "scheduler_config.json of Qwen/Qwen-Image; qwen_shift, docs/qwen_image.md of musubi-tuner",
    ),
    "Krea2": FamilyLevels("shifted", ShiftLaw(256, 0.5, 6400, 1.15), "krea2_shift, docs/krea2.md of musubi-tuner"),
    "LTXV": FamilyLevels(
        "shifted", ShiftLaw(1024, 0.95, 4096, 2.05, cells=1),
        "scheduler_config.json of Lightricks/LTX-Video; shifted_logit_normal of its developers' trainer",
    ),
    "Lumina2": FamilyLevels(
        "shifted", None,
        "shift 6: scheduler_config.json of Alpha-VLLM/Lumina-Image-2.0; the defaults in library/lumina_train_util.py "
        "of sd-scripts",
    ),
    "ZImage": FamilyLevels("shifted", None, "shift 2 to begin with, docs/zimage.md of musubi-tuner", 2.0),
    "WAN2": FamilyLevels("shifted", None, "shift 3, the example in docs/wan.md of musubi-tuner", 3.0),
    "HunyuanVideo15": FamilyLevels(
        "shifted", None, "shift 2 to begin with, docs/hunyuan_video_1_5.md of musubi-tuner", 2.0
    ),
    "HunyuanVideo": FamilyLevels(
        "shifted", None,
        "shift 7: scheduler_config.json of hunyuanvideo-community/HunyuanVideo; docs/hunyuan_video.md of musubi-tuner",
    ),
    "Anima": FamilyLevels("sigmoid", None, "docs/anima_train_network.md of sd-scripts"),
    "ToyWorld": FamilyLevels("uniform", None, "tools/train_toy_world.py"),
}  # fmt: skip
_OTHER_FLOW = FamilyLevels("logit-normal", None, "Esser et al. 2024, Sec. 5.1")
_DIFFUSION = FamilyLevels("uniform", None, "Ho et al. 2020, Algorithm 1; Rombach et al. 2022")


def family_levels(family: str, prediction: str) -> FamilyLevels:
    """What trainers use for a family. family: the base's name in a LoRA's header; prediction: epsilon, v or flow."""
    if prediction != "flow":
        return _DIFFUSION
    return next((found for start, found in _FAMILIES.items() if family.startswith(start)), _OTHER_FLOW)


@dataclass(frozen=True)
class NoiseLevels:
    """How timestep indices are drawn. sampling: of the list above, but "family". sigma: [T], the schedule's, rising;
    needed where flow times are drawn. law: of "shifted"; None: the schedule is the shift."""

    sampling: str
    length: int
    sigma: Tensor | None = None
    law: ShiftLaw | None = None

    def draw(self, latent_shape: Sequence[int], generator: torch.Generator) -> int:
        """The index of a draw for a latent of this shape."""
        if self.sampling == "uniform":
            return int(torch.randint(self.length, (), generator=generator))
        share = float(torch.sigmoid(torch.randn((), generator=generator, dtype=torch.float64)))
        if self.sampling == "logit-normal" or (self.sampling == "shifted" and self.law is None):
            return min(int(share * self.length), self.length - 1)
        if self.sampling == "shifted":
            assert self.law is not None
            shift = self.law.shift(latent_shape)
            share = shift * share / (1 + (shift - 1) * share)
        assert self.sigma is not None
        return int((self.sigma.double() - share).abs().argmin())


def noise_levels(denoiser: Denoiser, config: TrainingConfig) -> NoiseLevels:
    """How a run draws noise levels. Raises DCOError for flow times where the model has none."""
    schedule = denoiser.schedule
    family = family_levels(denoiser.family, schedule.prediction)
    sampling = family.sampling if config.timestep_sampling == "family" else config.timestep_sampling
    if sampling in ("sigmoid", "shifted") and schedule.prediction != "flow":
        raise DCOError(
            f"timestep_sampling {sampling} is for flow models, and this one predicts {schedule.prediction}: use "
            "uniform, as the paper does, or logit-normal."
        )
    law = family.law if sampling == "shifted" else None
    if sampling == "shifted" and config.timestep_sampling == "family" and family.trainers is not None:
        law = ShiftLaw.constant(family.trainers)
    return NoiseLevels(sampling, len(schedule), schedule.sigma, law)


def note_of(denoiser: Denoiser, config: TrainingConfig) -> str:
    """What "family" came to, as a sentence; "" for another choice."""
    if config.timestep_sampling != "family":
        return ""
    found = family_levels(denoiser.family, denoiser.schedule.prediction)
    return f"Noise levels are drawn {found.sampling}, as for {denoiser.family or 'this family'} ({found.source})."
