"""The host's own KSampler, previews and progress included."""

from __future__ import annotations

import comfy.samplers

from nodes import common_ksampler  # the host's module of this name

SAMPLERS = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS = comfy.samplers.KSampler.SCHEDULERS


def ksample(model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent, denoise) -> dict:
    """LATENT in, LATENT out, as the KSampler node does it."""
    (samples,) = common_ksampler(
        model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent, denoise=denoise
    )
    return samples


def cfg_guider(model, positive, negative, cfg: float):
    """A GUIDER with classifier-free guidance."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider
