"""Reward guidance: how much of what the LoRA learned to follow, and how much of the text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import DCOError


def reward_guidance(
    theta_cond: Tensor | None, phi_cond: Tensor | None, phi_uncond: Tensor | None, w_rg: float, w_text: float
) -> Tensor:
    """Reward guidance, Sec. 4.2 (the display after Eq. 13):

        w_rg (theta(c) - phi(c)) + w_text (phi(c) - phi(0)) + phi(0)
      = w_rg theta(c) + (w_text - w_rg) phi(c) + (1 - w_text) phi(0)

    theta_cond, phi_cond, phi_uncond: [B, ...], the prediction with the LoRA on the prompt, without it on the
        prompt, and without it on the empty or negative prompt. The coefficients sum to 1, so the formula holds
        alike for predictions of eps, v, flow velocity and denoised images. A term whose coefficient is 0 is
        skipped: its prediction may be None, and what it holds does not matter.
    w_rg: 0 is plain classifier-free guidance of the base, w_text is classifier-free guidance between the LoRA
        and the base's empty prompt; the paper uses 2 to 5 at w_text = 7.5.
    """
    names = ("theta_cond (w_rg)", "phi_cond (w_text - w_rg)", "phi_uncond (1 - w_text)")
    coefficients = (w_rg, w_text - w_rg, 1 - w_text)
    result: Tensor | None = None
    for name, coefficient, prediction in zip(
        names, coefficients, (theta_cond, phi_cond, phi_uncond), strict=True
    ):
        if coefficient == 0:
            continue
        if prediction is None:
            raise DCOError(
                f"reward_guidance needs {name}: its coefficient is {coefficient:g} at w_rg {w_rg:g}, w_text {w_text:g}."
            )
        term = prediction if coefficient == 1 else coefficient * prediction
        result = term if result is None else result + term
    assert result is not None  # the coefficients sum to 1, so one of them is not 0
    return result


def regional_guidance(
    thetas: Sequence[Tensor], phi_cond: Tensor, masks: Sequence[Tensor | None], ratios: Sequence[float]
) -> Tensor:
    """Reward guidance by several LoRAs, each in its own part of the picture; what classifier-free guidance at w_text
    then takes for the prediction on the prompt:

        phi(c) + sum_k (w_rg_k / w_text) M_k (theta_k(c_k) - phi(c))

    With one LoRA and M = 1 it is `reward_guidance`, to the bit; where every M is 0 it is phi(c), to the bit. Where
    masks overlap their guidance adds up.

    thetas: [B, ...] each, the predictions with the LoRAs, on the prompts that they read. phi_cond: [B, ...].
    masks: [B or 1, 1, ...] each in 0..1, on the CPU, None: everywhere. ratios: w_rg_k / w_text.
    """
    if len(thetas) == 1 and masks[0] is None:
        return reward_guidance(thetas[0], phi_cond, None, ratios[0], 1.0)

    def placed(share: Tensor) -> Tensor:
        return share.to(phi_cond.dtype).to(phi_cond.device)  # double, which not every device has

    whole = torch.ones((1,) * phi_cond.ndim, dtype=torch.float64)
    shares = [r * (whole if m is None else m.double()) for m, r in zip(masks, ratios, strict=True)]
    result = placed(whole - torch.stack(torch.broadcast_tensors(*shares)).sum(0)) * phi_cond
    for theta, share in zip(thetas, shares, strict=True):
        result = result + placed(share) * theta
    return result


W_RG_SCHEDULES = ("constant", "linear", "cosine")


def scheduled(scale: float, progress: float, start: float, end: float, schedule: str = "constant") -> float:
    """A guidance scale on an interval of sampling (Kynkaanniemi et al., arXiv 2404.07724): 0 outside of [start, end],
    and inside the scale itself (constant) or falling to 0 at `end` along a line or half a cosine.

    progress, start, end: shares of the noise schedule, 0 at pure noise and 1 at the image.
    """
    if schedule not in W_RG_SCHEDULES:
        raise DCOError(f'The schedule "{schedule}" is unknown: use {", ".join(W_RG_SCHEDULES)}.')
    if not start <= progress <= end:
        return 0.0
    if schedule == "constant":
        return scale
    inside = (progress - start) / (end - start) if end > start else 0.0
    return scale * (1 - inside if schedule == "linear" else (1 + math.cos(math.pi * inside)) / 2)


def autoguidance(strong: Tensor, weak: Tensor, w: float) -> Tensor:
    """AutoGuidance (Karras et al., arXiv 2406.02507, Eq. 3): D_weak + w (D_strong - D_weak), both on the prompt. Here
    the LoRA is what makes the model weak; it is reward guidance at w_rg = 1 - w, away from the LoRA."""
    return weak + w * (strong - weak)


def rows_of(w_rg: float, w_text: float) -> list[str]:
    """The network evaluations that reward guidance needs in a step: the terms whose coefficient is not 0."""
    names = ("LoRA on the prompt", "base on the prompt", "base on the negative")
    return [
        name
        for name, c in zip(names, (w_rg, w_text - w_rg, 1 - w_text), strict=True)
        if not math.isclose(c, 0, abs_tol=1e-9)
    ]
