"""The training objectives: which predictions each one asks for, and which loss it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import losses
from ..errors import DCOError
from ..network.denoiser import Denoiser
from .config import TrainingConfig
from .draws import Draw
from .examples import Example, Prompt, check_examples
from .holding import Reference, drift_outside, drift_preserved, has_outside, reference_of
from .predictions import Prediction, in_order, predict


class Batch(NamedTuple):
    """One micro-batch and the network that looks at it. reference: phi on its references, where it was had
    ahead. betas: [B] of its references, where they are not the configuration's."""

    denoiser: Denoiser
    examples: Sequence[Example]
    draws: Sequence[Draw]
    config: TrainingConfig
    reference: Reference | None = None
    betas: Tensor | None = None

    @property
    def beta_T(self) -> Tensor | float:
        return self.config.beta_T if self.betas is None else self.betas * losses.T

    @property
    def references(self) -> list[Draw]:
        """The draws that are no class images."""
        return references_of(self.examples, self.draws)


class ObjectiveResult(NamedTuple):
    """loss: scalar, with gradient. margin: [B] or scalar, None where the objective has none. error_theta,
    error_phi: [B], plain mean squared errors; error_phi None where the objective does not ask phi. predictions:
    theta's on the references."""

    loss: Tensor
    margin: Tensor | None
    error_theta: Tensor
    error_phi: Tensor | None
    predictions: Sequence[Prediction] = ()


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
    return _errors_of(predict(denoiser, examples, draws, adapter=adapter, prompt=prompt, rejected=rejected))


def _errors_of(found: Sequence[Prediction]) -> Tensor:
    return in_order([(p.places, losses.mean_squared_error(p.output, p.target, p.mask)) for p in found])


def references_of(examples: Sequence[Example], draws: Sequence[Draw]) -> list[Draw]:
    """The draws that are no class images: those that DCO compares with phi."""
    return [d for d in draws if not examples[d.image].prior]


def _errors(batch: Batch, draws: Sequence[Draw], *, rejected: bool = False) -> Tensor:
    """theta's."""
    return batch_errors(batch.denoiser, batch.examples, draws, adapter=True, rejected=rejected)


def _predicted(batch: Batch) -> tuple[list[Prediction], Tensor]:
    """(theta's predictions, its errors [B]) on the references."""
    found = predict(batch.denoiser, batch.examples, batch.references, adapter=True)
    return found, _errors_of(found)


def draw_weights(denoiser: Denoiser, draws: Sequence[Draw], config: TrainingConfig, like: Tensor) -> Tensor:
    """w(t) of the draws, [B]."""
    t = torch.tensor([d.t for d in draws])
    return losses.weights_at(denoiser.schedule, t, config.settled_weighting, config.snr_gamma).to(like)


def _weights(batch: Batch, draws: Sequence[Draw], like: Tensor) -> Tensor:
    return draw_weights(batch.denoiser, draws, batch.config, like)


def dco(batch: Batch) -> ObjectiveResult:
    """Algorithm 1: theta on its caption against phi on the base caption, same image, noise and timestep."""
    config = batch.config
    assert batch.reference is not None
    predictions, error_theta = _predicted(batch)
    error_phi = batch.reference.errors.to(error_theta.device)  # had ahead, it may lie elsewhere
    weight = _weights(batch, batch.references, error_theta)
    loss = losses.dco_loss(error_theta, error_phi, batch.beta_T, config.reduction, weight)
    margin = losses.dco_margin(error_theta.detach(), error_phi, batch.beta_T, weight)
    if config.reduction == "batch-mean":
        margin = margin.mean()
    return ObjectiveResult(loss, margin, error_theta, error_phi, predictions)


def dreambooth(batch: Batch) -> ObjectiveResult:
    """The plain diffusion loss (Ruiz et al. 2023)."""
    predictions, error = _predicted(batch)
    loss = losses.diffusion_loss(error, _weights(batch, batch.references, error))
    return ObjectiveResult(loss, None, error, None, predictions)


def dreambooth_prior(batch: Batch) -> ObjectiveResult:
    """The plain loss on the references plus lambda times the plain loss on class images."""
    predictions, error = _predicted(batch)
    error_prior, weight_prior = _class_images(batch, error)
    weight = _weights(batch, batch.references, error)
    loss = losses.prior_preservation_loss(error, error_prior, batch.config.prior_weight, weight, weight_prior)
    return ObjectiveResult(loss, None, error, None, predictions)


def dco_prior(batch: Batch) -> ObjectiveResult:
    """DCO on the references plus lambda times the plain loss on class images, as the authors' code adds it."""
    result = dco(batch)
    error_prior, weight_prior = _class_images(batch, result.error_theta)
    prior_loss = losses.diffusion_loss(error_prior, weight_prior)
    return result._replace(loss=result.loss + batch.config.prior_weight * prior_loss)


def _class_images(batch: Batch, like: Tensor) -> tuple[Tensor, Tensor]:
    """(theta's errors, w(t)) [B'] of the class images. min-SNR weighs the references alone, as in the authors' code
    and diffusers' DreamBooth scripts, which it comes from."""
    draws = [d for d in batch.draws if batch.examples[d.image].prior]
    error = _errors(batch, draws)
    weight = torch.ones_like(error) if batch.config.settled_weighting == "min-snr" else _weights(batch, draws, like)
    return error, weight


def mapo(batch: Batch) -> ObjectiveResult:
    """MaPO: the reference image is chosen, one that the base model made of the same caption is rejected."""
    config = batch.config
    predictions, chosen = _predicted(batch)
    rejected = _errors(batch, batch.references, rejected=True)
    weight = _weights(batch, batch.references, chosen)
    if config.settled_weighting == "epsilon":  # another space of the errors: of those in the margin too
        better, worse, weight = weight * chosen, weight * rejected, torch.ones_like(weight)
    else:
        better, worse = chosen, rejected
    loss = losses.mapo_loss(better, worse, config.mapo_beta, config.mapo_snr, weight)
    margin = losses.mapo_margin(better.detach(), worse.detach(), config.mapo_snr)
    return ObjectiveResult(loss, margin, chosen, None, predictions)


def output_preservation(batch: Batch) -> ObjectiveResult:
    """The plain loss, and theta held to phi on the class prompt at the same x_t."""
    predictions, error = _predicted(batch)
    theta = predict(batch.denoiser, batch.examples, batch.references, adapter=True, prompt=Prompt.CLASS)
    with torch.no_grad():
        phi = predict(batch.denoiser, batch.examples, batch.references, adapter=False, prompt=Prompt.CLASS)
    drift = in_order(
        [(a.places, losses.mean_squared_error(a.output, b.output)) for a, b in zip(theta, phi, strict=True)]
    )
    weight = _weights(batch, batch.references, error)
    if batch.config.settled_weighting == "epsilon":
        drift = weight * drift
    loss = losses.output_preservation_loss(error, drift, batch.config.preservation_weight, weight)
    return ObjectiveResult(loss, None, error, None, predictions)


def _held(objective: Callable[[Batch], ObjectiveResult]) -> Callable[[Batch], ObjectiveResult]:
    """The objective, with theta held to phi outside of masks and on preservation prompts (holding.py)."""

    def held(batch: Batch) -> ObjectiveResult:
        config, references = batch.config, batch.references
        if batch.reference is None and config.reads_phi:
            found = reference_of(batch.denoiser, batch.examples, references, config)
            batch = batch._replace(reference=found)
        result = objective(batch)
        reference, loss = batch.reference, result.loss
        if reference is not None and any(kept is not None for kept in reference.outside):
            drift = _in_space(batch, references, drift_outside(result.predictions, reference))
            loss = loss + config.mask_prior * drift.mean()
        if reference is not None and any(kept is not None for kept in reference.preserved):
            drift = drift_preserved(batch.denoiser, batch.examples, references, reference)
            drift = _in_space(batch, [d for d in references if d.preserved >= 0], drift)
            loss = loss + config.preservation_weight * drift.sum() / len(references)
        return result._replace(loss=loss, predictions=())  # which would keep the graph

    return held


def _in_space(batch: Batch, draws: Sequence[Draw], drift: Tensor) -> Tensor:
    """Distances of the network's predictions in the space where the objective compares errors."""
    return _weights(batch, draws, drift) * drift if batch.config.settled_weighting == "epsilon" else drift


OBJECTIVES: dict[str, Callable[[Batch], ObjectiveResult]] = {
    "dco": _held(dco),
    "dreambooth": _held(dreambooth),
    "dreambooth-prior": _held(dreambooth_prior),
    "mapo": _held(mapo),
    "output-preservation": _held(output_preservation),
    "dco-prior": _held(dco_prior),
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
    config.check_masks(any(has_outside(e) for e in examples))
    return examples if config.with_prior or recorded else [e for e in examples if not e.prior]


def _missing_in(example: Example, config: TrainingConfig) -> str | None:
    """What the configuration needs and the example lacks, as a sentence; None if nothing."""
    if config.caption_dropout and example.empty_conditioning is None:
        return "caption dropout needs the empty prompt as empty_conditioning."
    if config.objective == "output-preservation" and example.class_conditioning is None:
        return 'output preservation needs a class prompt: name one, such as "a photo of a dog".'
    if config.preservation_prompts and not example.prior and not example.preserved:
        return "preservation needs its prompts encoded as preserved."
    if config.objective == "mapo" and not example.prior and not example.rejected:
        return "MaPO needs an image that the base model makes of the same caption: generate one first."
    return None
