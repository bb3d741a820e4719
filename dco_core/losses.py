"""The losses: plain diffusion, Direct Consistency Optimization, and the baselines, on per-sample errors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import DCOError
from .schedules import Schedule

T = 1000  # the authors' number of timesteps: user-facing beta = 1.0 means beta_T = 1000

REDUCTIONS = ("per-sample", "batch-mean")
WEIGHTINGS = ("uniform", "min-snr", "epsilon")


def mean_squared_error(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over all but the first dimension, in fp32: [B, ...] -> [B]. This is the |eps_theta - eps|^2 of the
    losses; the authors' code takes the element mean where the paper writes the squared norm.

    mask: [B, 1, H, W], or as many dimensions as the prediction has, weights in 0..1: a weighted mean, so that a small
    mask counts as much as a large one. DCOError for another number of dimensions, which would mix samples."""
    squared = (prediction.float() - target.float()).square()
    if mask is None:
        return squared.flatten(1).mean(1)
    if mask.ndim != squared.ndim or len(mask) != len(squared):
        raise DCOError(
            f"The mask has shape {tuple(mask.shape)} and the prediction {tuple(squared.shape)}: "
            "a mask needs one entry a sample and as many dimensions."
        )
    weights = mask.float().expand_as(squared)
    return (squared * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)


def outside_drift(theta: Tensor, phi: Tensor, mask: Tensor) -> Tensor:
    """How far theta is from phi outside of the mask, for the mask prior: the mean of |theta - phi|^2 weighted by
    1 - mask, [B, ...] -> [B]; 0 where nothing is outside. phi is treated as a constant. mask: as in
    mean_squared_error, whose weighted mean is of the inside.

    ai-toolkit has it as the inverted mask prior, OneTrainer as masked prior preservation."""
    squared = (theta.float() - phi.detach().float()).square()
    outside = (1 - mask.float()).expand_as(squared).flatten(1)
    area = outside.sum(1)
    return (squared.flatten(1) * outside).sum(1) / torch.where(area > 0, area, 1.0)


def weights_at(schedule: Schedule, t: Tensor, weighting: str = "uniform", gamma: float = 5.0) -> Tensor:
    """w(t) of the losses at timestep indices t [B] -> [B].

    "uniform" is 1. "min-snr" is min(SNR, gamma) on the error of x0 (Hang et al. 2023, Eq. 7-8), turned into the
    native prediction's space: min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v, and
    min(SNR, gamma) sigma^2 for flow. "epsilon" is (d eps / d prediction)^2: 1 for epsilon, alpha^2 for v, and
    alpha^2 = (1 - sigma)^2 for flow, so that w(t) times the error is |eps_theta - eps|^2, the error of the paper."""
    if weighting == "uniform":
        return torch.ones(len(t))
    if weighting == "epsilon":
        epsilon = schedule.prediction == "epsilon"
        return torch.ones(len(t)) if epsilon else schedule.alpha[t.cpu()].double().square().float()
    if weighting != "min-snr":
        raise DCOError(f"weighting {weighting!r} is unknown: use one of {', '.join(WEIGHTINGS)}.")
    alpha, sigma = schedule.alpha[t.cpu()].double(), schedule.sigma[t.cpu()].double()
    x0_error_per_native = (sigma / alpha if schedule.prediction == "epsilon" else sigma) ** 2
    return (torch.clamp((alpha / sigma) ** 2, max=gamma) * x0_error_per_native).float()


def diffusion_loss(error_theta: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Plain diffusion (DreamBooth) loss, Eq. (2): the mean of the per-sample errors [B] -> scalar."""
    return (weight * error_theta).mean()


def prior_preservation_loss(
    error_theta: Tensor, error_prior: Tensor, prior_weight: float, weight: Tensor | float = 1.0,
    weight_prior: Tensor | float = 1.0,
) -> Tensor:  # fmt: skip
    """DreamBooth with prior preservation, Eq. (3): the plain loss on the references [B] plus lambda times the
    plain loss on class images [B'] -> scalar."""
    return diffusion_loss(error_theta, weight) + prior_weight * diffusion_loss(error_prior, weight_prior)


def dco_margin(
    error_theta: Tensor, error_phi: Tensor, beta_T: Tensor | float = 1000.0, weight: Tensor | float = 1.0
) -> Tensor:
    """d_t of Eq. (12): -beta_T * w(t) * (error_theta - error_phi), [B] -> [B]. Positive once theta beats phi;
    1 - sigmoid(margin) is the gate that scales the gradient of the diffusion loss."""
    return -beta_T * weight * (error_theta - error_phi)


def dco_loss(
    error_theta: Tensor,
    error_phi: Tensor,
    beta_T: Tensor | float = 1000.0,
    reduction: str = "per-sample",
    weight: Tensor | float = 1.0,
) -> Tensor:
    """Direct Consistency Optimization loss, Algorithm 1 line 7 and Eq. (32):
    -log sigmoid(-beta_T * w(t) * (|eps_theta - eps|^2 - |eps_phi - eps|^2)), a scalar.

    error_theta, error_phi: [B], per-sample mean squared errors of the model with and without the adapter, on
        the same image, noise and timestep. error_phi is treated as a constant (phi is frozen).
    beta_T: beta * T, a number or [B]. The user-facing beta = 1.0 is beta_T = 1000 on the element mean of the squared
        error, as the authors run it; the paper's text has the squared norm, which is larger by the number of elements.
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


def mapo_margin(error_chosen: Tensor, error_rejected: Tensor, snr: float = 0.5) -> Tensor:
    """T times the difference of the amplification factors s e / (exp(s e) - 1) of MaPO (Hong et al. 2024, arXiv
    2406.06424; train.py of the authors), [B], [B] -> [B]. Positive when the chosen image is the likelier one."""

    def amplification(error: Tensor) -> Tensor:
        x = snr * error
        # s e / expm1(s e) tends to 1 - s e / 2 where the quotient would be 0 / 0
        return torch.where(x < 1e-6, 1 - x / 2, x / torch.expm1(x.clamp(min=1e-6)))

    return T * (amplification(error_chosen) - amplification(error_rejected))


def mapo_loss(
    error_chosen: Tensor, error_rejected: Tensor, beta: float = 0.1, snr: float = 0.5, weight: Tensor | float = 1.0
) -> Tensor:  # fmt: skip
    """MaPO, reference-free: the plain loss on the chosen (reference) image minus beta times the log-sigmoid of
    the margin over the rejected one, on the same noise and timestep. [B], [B] -> scalar."""
    margin = mapo_margin(error_chosen, error_rejected, snr)
    return diffusion_loss(error_chosen, weight) - beta * F.logsigmoid(margin).mean()


def output_preservation_loss(
    error_theta: Tensor, drift: Tensor, preservation_weight: float, weight: Tensor | float = 1.0
) -> Tensor:
    """The plain loss plus a weight times the drift [B] -> scalar: the mean squared difference between theta and
    phi on the class prompt, same x_t ("differential output preservation" of ai-toolkit and kohya)."""
    return diffusion_loss(error_theta, weight) + preservation_weight * drift.mean()
