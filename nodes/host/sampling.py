"""The host's own KSampler, previews and progress included."""

from __future__ import annotations

import comfy.samplers
from torch import Tensor

from nodes import VAEDecode, common_ksampler

from .connected import vae_of

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


def decode(vae, latent: dict) -> Tensor:
    """LATENT -> IMAGE [B, H, W, 3], as the VAE Decode node does it."""
    (images,) = VAEDecode().decode(vae_of(vae), latent)
    return images
