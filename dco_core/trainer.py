"""The trainer: examples and draws in, steps out (Algorithm 1). It knows a Denoiser and nothing of any host."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .calibration import resolved
from .config import TrainingConfig
from .denoiser import Denoiser
from .errors import DCOError
from .examples import Draw, Example, check_examples, random_draws
from .lora import LoraLayer
from .losses import gate
from .objectives import OBJECTIVES, Batch, Outcome, missing_in
from .tokens import LearnedTokens


@dataclass(frozen=True)
class StepReport:
    """What happened in one step. step counts from 1; loss is what was minimised; margin and gate are means over
    the batch (gate = 1 - sigmoid(margin): 1 learns at full rate, 0 is closed; where the objective has no margin
    they are 0 and 1); errors are mean squared errors in the native prediction space (error_phi NaN where phi was
    not asked)."""

    step: int
    steps: int
    loss: float
    margin: float
    gate: float
    learning_rate: float
    gradient_norm: float
    error_theta: float
    error_phi: float


def train(
    denoiser: Denoiser,
    examples: Sequence[Example],
    config: TrainingConfig,
    on_step: Callable[[StepReport], None] | None = None,
    draws: Iterator[Sequence[Draw]] | None = None,
    tokens: LearnedTokens | None = None,
) -> dict[str, LoraLayer]:
    """Run Algorithm 1 and return the LoRA as {dotted module name: LoraLayer}.

    on_step: called after every step; whatever it raises ends training, and `denoiser.lora()` still gives the LoRA
        as trained so far.
    draws: batches of draws to use in place of random ones, so that a recorded run can be replayed exactly; with
        accumulation every step takes several.
    tokens: rows that train along; the conditionings of the examples are then functions that read them.
    An automatic beta is calibrated first; the value is in `calibration.resolved(...)`'s answer, so callers that
    want to report it resolve the configuration themselves.
    Raises DCOError for bad input before the first step, and when the loss is no longer finite: the adapter then
    is as the last good step left it.
    """
    config.check()
    check_examples(examples, lambda example: missing_in(example, config))
    if config.objective == "dreambooth-prior" and not any(e.prior for e in examples):
        raise DCOError(
            "Prior preservation needs class images: connect some, or let the base model generate them."
        )
    if config.objective != "dreambooth-prior" and draws is None:
        examples = [e for e in examples if not e.prior]
    config = resolved(config, denoiser, examples, tokens)
    if draws is None:
        draws = random_draws(examples, len(denoiser.schedule), config)
    optimizer, parameters = _optimizer(denoiser, tokens, config)
    with _seeded_dropout(config.seed) as seed_step:
        for step in range(1, config.steps + 1):
            seed_step(step)
            optimizer.zero_grad(set_to_none=True)
            outcomes = [
                _backward(Batch(denoiser, examples, next(draws), config), step)
                for _ in range(config.accumulation)
            ]
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            optimizer.step()
            if tokens is not None:
                tokens.keep_norms()
            if on_step is not None:
                on_step(_report(outcomes, step, config, norm.item()))
    return denoiser.lora()


def _optimizer(
    denoiser: Denoiser, tokens: LearnedTokens | None, config: TrainingConfig
) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
    groups = [
        (list(denoiser.trainable().values()), config.learning_rate),
        (list(tokens.parameters().values()) if tokens is not None else [], config.token_learning_rate),
    ]
    parameters = [p for group, _ in groups for p in group]
    if not parameters:
        raise DCOError("There is nothing to train: choose a LoRA, learned tokens, or both.")
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": rate} for group, rate in groups if group],
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=config.weight_decay,
    )
    return optimizer, parameters


def _backward(batch: Batch, step: int) -> Outcome:
    """Add one micro-batch's gradient."""
    config = batch.config
    outcome = OBJECTIVES[config.objective](batch)
    if not torch.isfinite(outcome.loss):
        raise DCOError(
            f"The loss became {outcome.loss.item()} at step {step} of {config.steps}; the LoRA of step {step - 1} is "
            f"kept. Lower the learning rate (now {config.learning_rate:g}) or use a model in fp32 or bf16."
        )
    (outcome.loss / config.accumulation).backward()
    return outcome._replace(loss=outcome.loss.detach(), error_theta=outcome.error_theta.detach())


@contextmanager
def _seeded_dropout(seed: int) -> Iterator[Callable[[int], None]]:
    """Dropout of the LoRA takes torch's global generator: seeded from (seed, step), and left as it was found."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []

    def seed_step(step: int) -> None:
        torch.manual_seed((seed * 1_000_003 + step) % 2**63)

    with torch.random.fork_rng(devices):
        yield seed_step


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _report(outcomes: Sequence[Outcome], step: int, config: TrainingConfig, norm: float) -> StepReport:
    margins = [o.margin for o in outcomes if o.margin is not None]
    phi = [o.error_phi for o in outcomes if o.error_phi is not None]
    return StepReport(
        step=step,
        steps=config.steps,
        loss=_mean([o.loss.item() for o in outcomes]),
        margin=_mean([m.mean().item() for m in margins]) if margins else 0.0,
        gate=_mean([gate(m).mean().item() for m in margins]) if margins else 1.0,
        learning_rate=config.learning_rate,
        gradient_norm=norm,
        error_theta=_mean([o.error_theta.mean().item() for o in outcomes]),
        error_phi=_mean([e.mean().item() for e in phi]) if phi else math.nan,
    )


def evaluate(
    denoiser: Denoiser, examples: Sequence[Example], config: TrainingConfig, draws: Sequence[Sequence[Draw]]
) -> float:
    """The training loss averaged over fixed (held-out) batches of draws, without gradient."""
    with torch.no_grad():
        batches = (Batch(denoiser, examples, batch, config) for batch in draws)
        return _mean([OBJECTIVES[config.objective](batch).loss.item() for batch in batches])
