"""Reward guidance as the paper writes it, from two models that are patched separately: what the engine is held to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def merged(model, lora: dict[str, Tensor], strength: float = 1.0):
    """theta: a MODEL, of its own weights, with the LoRA merged by the host."""
    import comfy.sd

    theta, _ = comfy.sd.load_lora_for_models(model, None, dict(lora), strength, 0)
    assert len(theta.patches) > 0
    return theta


def evaluate(guider, patcher, conds: list, x: Tensor, timestep: Tensor, options: dict) -> list[Tensor]:
    """Predictions of a MODEL's own evaluation, one condition after the other."""
    import comfy.model_management
    import comfy.samplers

    comfy.model_management.load_models_gpu([patcher])
    patcher.pre_run()
    return comfy.samplers.calc_cond_batch(patcher.model, conds, x, timestep, options)


def formula(w_rg: float, w_text: float) -> Callable[[Any, Any, Any], Tensor]:
    """Paper, Sec. 4.2."""
    return lambda theta_c, phi_c, phi_0: w_rg * (theta_c - phi_c) + w_text * (phi_c - phi_0) + phi_0


def oracle(phi, theta, positive, negative, combine: Callable, personalized=None):
    """A guider of `combine(theta(positive), phi(positive), phi(negative))`."""
    import comfy.samplers

    class TwoModels(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):
            conds = self.conds
            phi_c, phi_0 = evaluate(
                self, phi, [conds["positive"], conds["negative"]], x, timestep, model_options
            )
            (theta_c,) = evaluate(
                self, theta, [conds.get("own", conds["positive"])], x, timestep, model_options
            )
            evaluate(self, phi, [None], x, timestep, model_options)
            return combine(theta_c, phi_c, phi_0)

    assert phi.model is not theta.model
    guider = TwoModels(phi)
    conds = {"positive": positive, "negative": negative}
    if personalized is not None:
        conds["own"] = personalized
    guider.inner_set_conds(conds)
    return guider


def cfg(model, positive, negative, scale: float):
    """The host's own guider."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(scale)
    return guider


def sample(guider, latent: dict[str, Tensor], steps: int = 3, sampler: str = "euler", seed: int = 3,
           denoise: float = 1.0) -> Tensor:  # fmt: skip
    import comfy.sample
    import comfy.samplers

    patcher = guider.model_patcher
    samples = latent["samples"]
    noise = comfy.sample.prepare_noise(samples, seed)
    total = round(steps / denoise)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "normal", total)
    with torch.inference_mode():
        return guider.sample(
            noise, samples, comfy.samplers.sampler_object(sampler), sigmas[-(steps + 1) :],
            denoise_mask=latent.get("noise_mask"), disable_pbar=True, seed=seed,
        )  # fmt: skip


def difference(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    assert a.isfinite().all() and b.isfinite().all()
    return float((a.double() - b.double()).norm() / b.double().norm())
