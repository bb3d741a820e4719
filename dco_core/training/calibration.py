"""The automatic beta.

The paper gives beta for errors of the noise (1.0), which are what DCO compares by default, whatever the model predicts
(weighting "epsilon"). The errors of v and flow predictions themselves have another size: at beta*T = 1000 their gate
closes at once and nothing is learned. There, and where it is asked for, beta is found where it acts: train a
moment with the plain loss, look at how far theta got ahead of phi, and take the beta at which the gates would
stand open to the wanted share there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..losses import T, diffusion_loss
from ..network.denoiser import Denoiser
from .config import TrainingConfig
from .draws import random_draws
from .examples import Example
from .learned_tokens import LearnedTokens
from .noise_levels import noise_levels
from .objectives import batch_errors, draw_weights

PAPER_BETA = 1.0  # Sec. 5, for SDXL's epsilon prediction
_PROBE_DRAWS = 64


def with_beta(
    config: TrainingConfig,
    denoiser: Denoiser,
    examples: Sequence[Example],
    tokens: LearnedTokens | None = None,
    callback: Callable[[], None] = lambda: None,
) -> TrainingConfig:
    """The configuration with a settled weighting and a number for beta: as it is where there is one, the paper's for
    errors of the noise (unless automatic_beta is "images"), else calibrated on the examples, in the weighted space
    where it acts. What is trained is left exactly as it was found. callback: called after every step of the
    calibration; whatever it raises ends it."""
    config = dataclasses.replace(config, weighting=config.settled_weighting)
    if config.beta is not None or not config.is_dco:
        return config
    if not is_calibrated(config, denoiser):
        return dataclasses.replace(config, beta=PAPER_BETA)
    ahead = _probe(config, denoiser, [e for e in examples if not e.prior], tokens, callback)
    return dataclasses.replace(config, beta=beta_T_for(ahead, config.target_gate) / T)


def is_calibrated(config: TrainingConfig, denoiser: Denoiser) -> bool:
    """Whether beta is to be found on the examples."""
    automatic = config.beta is None and config.is_dco
    of_the_paper = denoiser.schedule.prediction == "epsilon" or config.settled_weighting == "epsilon"
    return automatic and (config.automatic_beta == "images" or not of_the_paper)


def probe_steps(config: TrainingConfig) -> int:
    """How many plain steps the calibration tries: a tenth of the run, 8 to 50."""
    return max(8, min(50, config.steps // 10))


def identity(config: TrainingConfig, denoiser: Denoiser) -> dict[str, Any]:
    """The configuration as far as steps depend on it: a run may be asked for more of them and stays the same run."""
    values = config.as_dict() | {"weighting": config.settled_weighting}
    if config.lr_scheduler == "constant" and not config.validation_steps:
        del values["steps"]
        if is_calibrated(config, denoiser):
            values["probe_steps"] = probe_steps(config)
    return values


def beta_T_for(difference: Tensor, target_gate: float) -> float:
    """The beta_T at which gates sigmoid(-beta_T d) have the mean `target_gate`, for the distances
    d = |error_theta - error_phi| of the given differences [n]: how far gates stand open once theta is that far
    ahead. (Signed differences of a short probe may not reach every share; distances do.)"""
    distance = difference.abs().double()
    if not distance.sum() > 0:
        return PAPER_BETA * T
    low, high = 0.0, 1.0
    while torch.sigmoid(-high * distance).mean() > target_gate and high < 1e12:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if torch.sigmoid(-middle * distance).mean() > target_gate else (low, middle)
    return high


def _probe(
    config: TrainingConfig,
    denoiser: Denoiser,
    examples: Sequence[Example],
    tokens: LearnedTokens | None,
    callback: Callable[[], None],
) -> Tensor:
    """w(t) (error_theta - error_phi) [n] on fresh draws after probe_steps with the plain loss."""
    groups = [(list(denoiser.trainable().values()), config.learning_rate)]
    if tokens is not None:
        groups.append((list(tokens.parameters().values()), config.token_learning_rate))
    parameters = [p for group, _ in groups for p in group]
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW([{"params": group, "lr": rate} for group, rate in groups if group])
    draws = random_draws(
        examples, noise_levels(denoiser, config), dataclasses.replace(config, seed=config.seed ^ 0xBE7A)
    )
    try:
        for _ in range(probe_steps(config)):
            optimizer.zero_grad(set_to_none=True)
            batch = next(draws)
            error = batch_errors(denoiser, examples, batch, adapter=True)
            diffusion_loss(error, draw_weights(denoiser, batch, config, error)).backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            if tokens is not None:
                tokens.keep_norms()
            callback()
        differences: list[Tensor] = []
        with torch.no_grad():
            while sum(len(d) for d in differences) < _PROBE_DRAWS:
                batch = next(draws)
                theta = batch_errors(denoiser, examples, batch, adapter=True)
                difference = theta - batch_errors(denoiser, examples, batch, adapter=False)
                differences.append((draw_weights(denoiser, batch, config, theta) * difference).cpu())
                callback()
        return torch.cat(differences)
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)
                p.grad = None
