"""Reward guidance: how much of what the LoRA learned to follow, and how much of the text."""

from __future__ import annotations

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
