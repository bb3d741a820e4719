"""The losses: plain diffusion and Direct Consistency Optimization, on per-sample errors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import DCOError

T = 1000  # the authors' number of timesteps: user-facing beta = 1.0 means beta_T = 1000

REDUCTIONS = ("per-sample", "batch-mean")


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over all but the first dimension, in fp32: [B, ...] -> [B]. This is the |eps_theta - eps|^2 of the
    losses; the authors' code takes the element mean where the paper writes the squared norm."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def diffusion_loss(error_theta: Tensor) -> Tensor:
    """Plain diffusion (DreamBooth) loss, Eq. (2): the mean of the per-sample errors [B] -> scalar."""
    return error_theta.mean()


def dco_margin(
    error_theta: Tensor, error_phi: Tensor, beta_T: float = 1000.0, weight: Tensor | float = 1.0
) -> Tensor:
    """d_t of Eq. (12): -beta_T * w(t) * (error_theta - error_phi), [B] -> [B]. Positive once theta beats phi;
    1 - sigmoid(margin) is the gate that scales the gradient of the diffusion loss."""
    return -beta_T * weight * (error_theta - error_phi)


def dco_loss(
    error_theta: Tensor,
    error_phi: Tensor,
    beta_T: float = 1000.0,
    reduction: str = "per-sample",
    weight: Tensor | float = 1.0,
) -> Tensor:
    """Direct Consistency Optimization loss, Algorithm 1 line 7 and Eq. (32):
    -log sigmoid(-beta_T * w(t) * (|eps_theta - eps|^2 - |eps_phi - eps|^2)), a scalar.

    error_theta, error_phi: [B], per-sample mean squared errors of the model with and without the adapter, on
        the same image, noise and timestep. error_phi is treated as a constant (phi is frozen).
    beta_T: beta * T. The user-facing beta = 1.0 is beta_T = 1000 on the element mean of the squared error, as
        the authors run it; the paper's text has the squared norm, which is larger by the number of elements.
    reduction: "per-sample" takes the mean of the log-sigmoids (the paper's expectation); "batch-mean" takes the
        log-sigmoid of the mean margin (the authors' code). They agree for B = 1.
    weight: w(t), [B] or a number; it multiplies both errors inside the sigmoid.
    """
    if reduction not in REDUCTIONS:
        raise DCOError(f'reduction {reduction!r} is unknown: use "per-sample" or "batch-mean".')
    if error_theta.shape != error_phi.shape:
        raise DCOError(
            f"error_theta has shape {tuple(error_theta.shape)} and error_phi {tuple(error_phi.shape)}: "
            "both need one error per sample, in the same order."
        )
    margin = dco_margin(error_theta, error_phi.detach(), beta_T, weight)
    if reduction == "batch-mean":
        margin = margin.mean()
    return -F.logsigmoid(margin).mean()


def gate(margin: Tensor) -> Tensor:
    """1 - sigmoid(margin), Eq. (12): 1 is fully open (learns at full rate), 0 is closed."""
    return torch.sigmoid(-margin)
