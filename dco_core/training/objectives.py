"""The training objectives: which predictions each one asks for, and which loss it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DCOError
from ..losses import (
    dco_loss,
    dco_margin,
    diffusion_loss,
    mapo_loss,
    mapo_margin,
    mean_squared_error,
    output_preservation_loss,
    prior_preservation_loss,
    weights_at,
)
from ..network.denoiser import Denoiser
from .config import TrainingConfig
from .draws import Draw
from .examples import Example, Prompt, check_examples
from .predictions import in_order, predict


class Batch(NamedTuple):
    """One micro-batch and the network that looks at it. error_phi: phi's errors [B] on its references, where they
    were had ahead."""

    denoiser: Denoiser
    examples: Sequence[Example]
    draws: Sequence[Draw]
    config: TrainingConfig
    error_phi: Tensor | None = None


class ObjectiveResult(NamedTuple):
    """loss: scalar, with gradient. margin: [B] or scalar, None where the objective has none. error_theta,
    error_phi: [B], plain mean squared errors; error_phi None where phi was not asked."""

    loss: Tensor
    margin: Tensor | None
    error_theta: Tensor
    error_phi: Tensor | None


def batch_errors(
    denoiser: Denoiser,
    examples: Sequence[Example],
    draws: Sequence[Draw],
    *,
    adapter: bool,
    rejected: bool = False,
) -> Tensor:
    """Per-sample mean squared error [B] of theta (with the adapter, on its own conditioning) or of phi (without
    it, on the base conditioning) for the given draws."""
    prompt = Prompt.OWN if adapter else Prompt.BASE
    found = predict(denoiser, examples, draws, adapter=adapter, prompt=prompt, rejected=rejected)
    return in_order([(p.places, mean_squared_error(p.output, p.target, p.mask)) for p in found])


def references_of(examples: Sequence[Example], draws: Sequence[Draw]) -> list[Draw]:
    """The draws that are no class images: those that DCO compares with phi."""
    return [d for d in draws if not examples[d.image].prior]


def _errors(batch: Batch, draws: Sequence[Draw], *, adapter: bool, rejected: bool = False) -> Tensor:
    return batch_errors(batch.denoiser, batch.examples, draws, adapter=adapter, rejected=rejected)


def draw_weights(denoiser: Denoiser, draws: Sequence[Draw], config: TrainingConfig, like: Tensor) -> Tensor:
    """w(t) of the draws, [B]."""
    t = torch.tensor([d.t for d in draws])
    return weights_at(denoiser.schedule, t, config.weighting, config.snr_gamma).to(like)


def _weights(batch: Batch, draws: Sequence[Draw], like: Tensor) -> Tensor:
    return draw_weights(batch.denoiser, draws, batch.config, like)


def dco(batch: Batch) -> ObjectiveResult:
    """Algorithm 1: theta on its caption against phi on the base caption, same image, noise and timestep."""
    config = batch.config
    error_theta = _errors(batch, batch.draws, adapter=True)
    error_phi = batch.error_phi
    if error_phi is None:
        with torch.no_grad():
            error_phi = _errors(batch, batch.draws, adapter=False)
    error_phi = error_phi.to(error_theta.device)  # had ahead, it may lie elsewhere
    weight = _weights(batch, batch.draws, error_theta)
    loss = dco_loss(error_theta, error_phi, config.beta_T, config.reduction, weight)
    margin = dco_margin(error_theta.detach(), error_phi, config.beta_T, weight)
    if config.reduction == "batch-mean":
        margin = margin.mean()
    return ObjectiveResult(loss, margin, error_theta, error_phi)


def dreambooth(batch: Batch) -> ObjectiveResult:
    """The plain diffusion loss (Ruiz et al. 2023)."""
    error = _errors(batch, batch.draws, adapter=True)
    return ObjectiveResult(diffusion_loss(error, _weights(batch, batch.draws, error)), None, error, None)


def dreambooth_prior(batch: Batch) -> ObjectiveResult:
    """The plain loss on the references plus lambda times the plain loss on class images."""
    references = references_of(batch.examples, batch.draws)
    error = _errors(batch, references, adapter=True)
    error_prior, weight_prior = _class_images(batch, error)
    weight = _weights(batch, references, error)
    loss = prior_preservation_loss(error, error_prior, batch.config.prior_weight, weight, weight_prior)
    return ObjectiveResult(loss, None, error, None)


def dco_prior(batch: Batch) -> ObjectiveResult:
    """DCO on the references plus lambda times the plain loss on class images, as the authors' code adds it."""
    result = dco(batch._replace(draws=references_of(batch.examples, batch.draws)))
    error_prior, weight_prior = _class_images(batch, result.error_theta)
    prior_loss = diffusion_loss(error_prior, weight_prior)
    return result._replace(loss=result.loss + batch.config.prior_weight * prior_loss)


def _class_images(batch: Batch, like: Tensor) -> tuple[Tensor, Tensor]:
    """(theta's errors, w(t)) [B'] of the class images. min-SNR weighs the references alone, as in the authors' code
    and diffusers' DreamBooth scripts, which it comes from."""
    draws = [d for d in batch.draws if batch.examples[d.image].prior]
    error = _errors(batch, draws, adapter=True)
    weight = torch.ones_like(error) if batch.config.weighting == "min-snr" else _weights(batch, draws, like)
    return error, weight


def mapo(batch: Batch) -> ObjectiveResult:
    """MaPO: the reference image is chosen, one that the base model made of the same caption is rejected."""
    config = batch.config
    chosen = _errors(batch, batch.draws, adapter=True)
    rejected = _errors(batch, batch.draws, adapter=True, rejected=True)
    weight = _weights(batch, batch.draws, chosen)
    if config.weighting == "epsilon":  # another space of the errors: of those in the margin too
        better, worse, weight = weight * chosen, weight * rejected, torch.ones_like(weight)
    else:
        better, worse = chosen, rejected
    loss = mapo_loss(better, worse, config.mapo_beta, config.mapo_snr, weight)
    return ObjectiveResult(loss, mapo_margin(better.detach(), worse.detach(), config.mapo_snr), chosen, None)


def output_preservation(batch: Batch) -> ObjectiveResult:
    """The plain loss, and theta held to phi on the class prompt at the same x_t."""
    error = _errors(batch, batch.draws, adapter=True)
    theta = predict(batch.denoiser, batch.examples, batch.draws, adapter=True, prompt=Prompt.CLASS)
    with torch.no_grad():
        phi = predict(batch.denoiser, batch.examples, batch.draws, adapter=False, prompt=Prompt.CLASS)
    drift = in_order(
        [(a.places, mean_squared_error(a.output, b.output)) for a, b in zip(theta, phi, strict=True)]
    )
    weight = _weights(batch, batch.draws, error)
    if batch.config.weighting == "epsilon":
        drift = weight * drift
    loss = output_preservation_loss(error, drift, batch.config.preservation_weight, weight)
    return ObjectiveResult(loss, None, error, None)


OBJECTIVES: dict[str, Callable[[Batch], ObjectiveResult]] = {
    "dco": dco,
    "dreambooth": dreambooth,
    "dreambooth-prior": dreambooth_prior,
    "mapo": mapo,
    "output-preservation": output_preservation,
    "dco-prior": dco_prior,
}


def checked_examples(
    examples: Sequence[Example], config: TrainingConfig, recorded: bool = False
) -> Sequence[Example]:
    """The examples that training is to see. recorded: draws of another run say which, by number.

    Raises DCOError where something is missing.
    """
    check_examples(examples, lambda example: _missing_in(example, config))
    if config.with_prior and not any(e.prior for e in examples):
        raise DCOError(
            "Prior preservation needs class images: connect some, or let the base model generate them."
        )
    return examples if config.with_prior or recorded else [e for e in examples if not e.prior]


def _missing_in(example: Example, config: TrainingConfig) -> str | None:
    """What the configuration needs and the example lacks, as a sentence; None if nothing."""
    if config.caption_dropout and example.empty_conditioning is None:
        return "caption dropout needs the empty prompt as empty_conditioning."
    if config.objective == "output-preservation" and example.class_conditioning is None:
        return 'output preservation needs a class prompt: name one, such as "a photo of a dog".'
    if config.objective == "mapo" and not example.prior and not example.rejected:
        return "MaPO needs an image that the base model makes of the same caption: generate one first."
    return None
