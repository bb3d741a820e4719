"""The trainer: examples and draws in, steps out (Algorithm 1). It knows a Denoiser and nothing of any host."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import DCOError
from .lora import LoraLayer
from .losses import REDUCTIONS, T, dco_loss, dco_margin, diffusion_loss, gate, mean_squared_error

OBJECTIVES = ("dco", "dreambooth")


@dataclass(frozen=True)
class Example:
    """One reference image: its latent [C, H, W] in the model's own scale, the conditioning that theta sees and
    the one that phi sees (None: the same)."""

    latent: Tensor
    conditioning: Any
    base_conditioning: Any = None


@dataclass(frozen=True)
class Draw:
    """One random draw: which example, its noise [C, H, W] (offset included: it is part of the target), and the
    timestep index."""

    image: int
    noise: Tensor
    t: int


@dataclass(frozen=True)
class TrainingConfig:
    """objective: "dco" or "dreambooth" (the plain diffusion loss). beta: 1.0 is beta*T = 1000, which suits epsilon
    prediction; v and flow errors are larger and saturate the gate there, so their beta is smaller. The optimiser
    is the authors': AdamW (0.9, 0.999), weight decay 1e-4, constant rate, gradients clipped at norm 1."""

    steps: int = 1000
    batch_size: int = 1
    learning_rate: float = 5e-5
    objective: str = "dco"
    beta: float = 1.0
    reduction: str = "per-sample"
    offset_noise: float = 0.0
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Raise DCOError for a value that cannot train."""
        if self.objective not in OBJECTIVES:
            raise DCOError(f"objective {self.objective!r} is unknown: use one of {', '.join(OBJECTIVES)}.")
        if self.reduction not in REDUCTIONS:
            raise DCOError(f"reduction {self.reduction!r} is unknown: use one of {', '.join(REDUCTIONS)}.")
        for name in ("steps", "batch_size", "learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise DCOError(f"{name} is {getattr(self, name)}: it must be greater than 0.")
        if self.objective == "dco" and not self.beta > 0:
            raise DCOError(
                f'beta is {self.beta:g}: DCO needs more than 0; for the plain loss choose "dreambooth".'
            )
        if self.offset_noise < 0 or self.weight_decay < 0:
            raise DCOError(
                f"offset_noise ({self.offset_noise:g}) and weight_decay ({self.weight_decay:g}) cannot be negative."
            )

    @property
    def beta_T(self) -> float:
        return self.beta * T

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class StepReport:
    """What happened in one step. step counts from 1; loss is what was minimised; margin and gate are means over
    the batch (gate = 1 - sigmoid(margin): 1 learns at full rate, 0 is closed; for the plain loss margin is 0 and
    gate 1); errors are mean squared errors in the native prediction space."""

    step: int
    steps: int
    loss: float
    margin: float
    gate: float
    learning_rate: float
    gradient_norm: float
    error_theta: float
    error_phi: float


def random_draws(
    examples: Sequence[Example], n_timesteps: int, config: TrainingConfig
) -> Iterator[list[Draw]]:
    """Endless batches of draws from the seed: images in shuffled rounds so that all are seen equally often,
    Gaussian noise plus `offset_noise` times a constant per channel, uniform timesteps. Drawn on the CPU, so that
    the seed means the same everywhere."""
    generator = torch.Generator().manual_seed(config.seed)
    order: list[int] = []
    while True:
        batch = []
        for _ in range(config.batch_size):
            if not order:
                order = torch.randperm(len(examples), generator=generator).tolist()
            image = order.pop()
            shape = examples[image].latent.shape
            noise = torch.randn(shape, generator=generator)
            if config.offset_noise:
                offset = torch.randn((shape[0],) + (1,) * (len(shape) - 1), generator=generator)
                noise = noise + config.offset_noise * offset
            batch.append(Draw(image, noise, int(torch.randint(n_timesteps, (), generator=generator))))
        yield batch


def check_examples(examples: Sequence[Example], config: TrainingConfig) -> None:
    """Raise DCOError for examples that cannot be trained on."""
    if not examples:
        raise DCOError("There are no images to train on: connect at least one.")
    for i, example in enumerate(examples):
        if not torch.isfinite(example.latent).all():
            raise DCOError(
                f"The latent of image {i + 1} holds NaN or infinity: the VAE overflowed. "
                "Use an fp32 or a fixed-fp16 VAE."
            )
    shapes = {tuple(e.latent.shape) for e in examples}
    if config.batch_size > 1 and len(shapes) > 1:
        raise DCOError(
            f"Latents of different shapes {sorted(shapes)} cannot share a batch: use batch_size 1."
        )


def batch_errors(
    denoiser: Denoiser, examples: Sequence[Example], draws: Sequence[Draw], *, adapter: bool
) -> Tensor:
    """Per-sample mean squared error [B] of theta (with the adapter, on the conditioning) or of phi (without it, on
    the base conditioning) for the given draws."""
    chosen = [examples[d.image] for d in draws]
    device = chosen[0].latent.device
    x0 = torch.stack([e.latent for e in chosen])
    noise = torch.stack([d.noise for d in draws]).to(device, x0.dtype)
    t = torch.tensor([d.t for d in draws])
    conditioning = [
        e.conditioning if adapter or e.base_conditioning is None else e.base_conditioning for e in chosen
    ]
    schedule = denoiser.schedule
    prediction = denoiser.predict(schedule.noised(x0, noise, t), t, conditioning, adapter=adapter)
    return mean_squared_error(prediction, schedule.target(x0, noise, t))


def train(
    denoiser: Denoiser,
    examples: Sequence[Example],
    config: TrainingConfig,
    on_step: Callable[[StepReport], None] | None = None,
    draws: Iterator[Sequence[Draw]] | None = None,
) -> dict[str, LoraLayer]:
    """Run Algorithm 1 and return the LoRA as {dotted module name: LoraLayer}.

    on_step: called after every step; whatever it raises ends training, and `denoiser.lora()` still gives the LoRA
        as trained so far.
    draws: batches of draws to use in place of random ones, so that a recorded run can be replayed exactly.
    Raises DCOError for bad input before the first step, and when the loss is no longer finite: the adapter then
    is as the last good step left it.
    """
    config.check()
    check_examples(examples, config)
    if draws is None:
        draws = random_draws(examples, len(denoiser.schedule), config)
    parameters = list(denoiser.trainable().values())
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=config.weight_decay
    )
    for step in range(1, config.steps + 1):
        batch = next(draws)
        error_theta = batch_errors(denoiser, examples, batch, adapter=True)
        if config.objective == "dco":
            with torch.no_grad():
                error_phi = batch_errors(denoiser, examples, batch, adapter=False)
            loss = dco_loss(error_theta, error_phi, config.beta_T, config.reduction)
            margin = dco_margin(error_theta.detach(), error_phi, config.beta_T)
            if config.reduction == "batch-mean":
                margin = margin.mean()
        else:
            error_phi = torch.full_like(error_theta, math.nan)
            loss = diffusion_loss(error_theta)
            margin = None
        if not torch.isfinite(loss):
            raise DCOError(
                f"The loss became {loss.item()} at step {step} of {config.steps}; the LoRA of step {step - 1} is kept. "
                f"Lower the learning rate (now {config.learning_rate:g}) or use a model in fp32 or bf16."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        if on_step is not None:
            on_step(
                StepReport(
                    step=step,
                    steps=config.steps,
                    loss=loss.item(),
                    margin=0.0 if margin is None else margin.mean().item(),
                    gate=1.0 if margin is None else gate(margin).mean().item(),
                    learning_rate=config.learning_rate,
                    gradient_norm=norm.item(),
                    error_theta=error_theta.mean().item(),
                    error_phi=error_phi.mean().item(),
                )
            )
    return denoiser.lora()


def evaluate(
    denoiser: Denoiser, examples: Sequence[Example], config: TrainingConfig, draws: Sequence[Sequence[Draw]]
) -> float:
    """The training loss averaged over fixed (held-out) batches of draws, without gradient."""
    losses = []
    with torch.no_grad():
        for batch in draws:
            error_theta = batch_errors(denoiser, examples, batch, adapter=True)
            if config.objective == "dco":
                error_phi = batch_errors(denoiser, examples, batch, adapter=False)
                losses.append(dco_loss(error_theta, error_phi, config.beta_T, config.reduction).item())
            else:
                losses.append(diffusion_loss(error_theta).item())
    return sum(losses) / len(losses)
