"""Many runs of one method at once: their LoRAs stacked on one frozen network, their batches one after the other in one
call. Each run takes the steps that `Training` takes of it alone, to rounding; a small network, whose time goes into
starting its layers, does so many times faster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DCOError
from ..lora import LoraLayer
from ..network.denoiser import Denoiser, NetworkDenoiser
from ..network.lora_layers import AdapterConfig
from ..training import reference_pass
from ..training.config import TrainingConfig
from ..training.draws import Draw, random_draws
from ..training.examples import Example
from ..training.noise_levels import noise_levels
from ..training.objectives import OBJECTIVES, Batch, batch_errors, checked_examples
from ..training.optimizers import make_optimizer, rate_factor
from ..training.validation import Validation

_PHI_ROWS = 256  # samples that phi looks at in one call


class StackedDenoiser(Denoiser):
    """A Denoiser of R networks theta that share phi: `plain` without an adapter, and R LoRAs of the same layers. A
    batch has as many samples of every run, run by run. DCOError for LoRAs of layers that are not linear."""

    def __init__(
        self, plain: NetworkDenoiser, loras: Sequence[Mapping[str, LoraLayer]], device: torch.device
    ):
        self._plain, self.schedule, self._runs = plain, plain.schedule, len(loras)
        modules = dict(plain.network.named_modules())
        self._values: dict[str, nn.Parameter] = {}
        self._scale: dict[str, float] = {}
        self._on = False
        for name in sorted(loras[0]):
            if not isinstance(modules[name], nn.Linear):
                raise DCOError(
                    f"{name} is no linear layer: runs side by side take linear ones, train them alone."
                )
            layers = [lora[name] for lora in loras]
            self._scale[name] = layers[0].scale
            for part in ("down", "up"):
                stacked = torch.stack([getattr(layer, part).float() for layer in layers]).to(device)
                self._values[f"{name}.{part}"] = nn.Parameter(stacked)
            modules[name].register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[..., Tensor | None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self._on:
                return None
            down, up = self._values[f"{name}.down"], self._values[f"{name}.up"]
            rows = inputs[0].reshape(self._runs, -1, inputs[0].shape[-1]).to(down.dtype)
            delta = torch.bmm(torch.bmm(rows, down.transpose(1, 2)), up.transpose(1, 2))
            return output + (self._scale[name] * delta).to(output.dtype).view_as(output)

        return add

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Sequence[Any], *, adapter: bool) -> Tensor:
        self._on = adapter
        try:
            return self._plain.predict(x_t, t, conditioning, adapter=False)
        finally:
            self._on = False

    def trainable(self) -> dict[str, nn.Parameter]:
        return self._values

    def lora(self) -> dict[str, LoraLayer]:
        raise DCOError("Runs side by side have a LoRA each: ask for that of one run (lora_of).")

    def lora_of(self, run: int, values: Mapping[str, Tensor] | None = None) -> dict[str, LoraLayer]:
        """Copies of one run's LoRA on the CPU. values: in place of the present ones."""
        found = values or self._values

        def part(name: str) -> Tensor:
            return found[name][run].detach().float().cpu().clone()

        return {
            name: LoraLayer(part(f"{name}.down"), up := part(f"{name}.up"), self._scale[name] * up.shape[1])
            for name in self._scale
        }


def convolve_faster(network: torch.nn.Module) -> None:
    """Lay out a network so that convolutions on a CPU take an eighth less time; the same values but for rounding."""
    if next(network.parameters()).device.type == "cpu":
        network.to(memory_format=torch.channels_last)


class SideBySide:
    """R runs that differ in their examples, their start and their seed alone. examples: of each run, as many of each
    kind; seeds: of their draws; config: of all of them, its seed is not looked at; betas: of each, where they are not
    the configuration's. Raises DCOError for what only a run alone can do.

    stopped: {name: values [R, ...]} of the adapters with the highest validation margin so far, stopped_at: the steps
    they were scored at; both empty unless the configuration says validation_steps."""

    def __init__(
        self, plain: NetworkDenoiser, loras: Sequence[Mapping[str, LoraLayer]], examples: Sequence[Sequence[Example]],
        seeds: Sequence[int], config: TrainingConfig, device: torch.device, betas: Sequence[float] = (),
    ):  # fmt: skip
        config.check()
        _refuse(config)
        if config.is_dco and config.beta is None and not betas:
            raise DCOError("Runs side by side with an automatic beta need that of each: find them first.")
        convolve_faster(plain.network)
        self.config, self.denoiser = config, StackedDenoiser(plain, loras, device)
        self._runs = [[_moved(e, device) for e in checked_examples(run, config)] for run in examples]
        if len({(len(run), sum(e.prior for e in run)) for run in self._runs}) != 1:
            raise DCOError("Runs side by side need as many pictures each: train them alone.")
        own: Sequence[float | None] = betas or [config.beta] * len(examples)
        self._configs = [dataclasses.replace(config, seed=seed, beta=b) for seed, b in zip(seeds, own, strict=True)]
        self._betas: Tensor | None = None
        if betas:  # of a batch's references, of which every run has as many
            self._betas = torch.tensor(betas, device=device).repeat_interleave(config.batch_size)
        self._all = [e for run in self._runs for e in run]
        self._parameters = list(self.denoiser.trainable().values())
        self._optimizer = make_optimizer(
            config.optimizer, [(self._parameters, config.learning_rate)], config.weight_decay
        )
        factor = rate_factor(config.lr_scheduler, config.lr_warmup_steps, config.steps)
        self._rates = torch.optim.lr_scheduler.LambdaLR(self._optimizer, factor)
        self._validation = self._validation_draws() if config.validation_steps else None
        self._best = torch.full((len(self._runs),), -torch.inf)
        self.stopped: dict[str, Tensor] = {}
        self.stopped_at = [0] * len(self._runs)

    def run(self, on_step: Callable[[int], None] = lambda step: None) -> None:
        """Train to the last step. on_step: called after every step with its number. DCOError where a gradient is not
        finite."""
        config = self.config
        for step, batch in zip(range(1, config.steps + 1), self._batches(), strict=False):
            self._optimizer.zero_grad(set_to_none=True)
            # losses are means over samples, of which every run has as many: R times the mean is the sum of the runs'
            (OBJECTIVES[config.objective](batch).loss * len(self._runs)).backward()
            self._clip(step)
            self._optimizer.step()
            self._rates.step()
            if self._validation is not None and (step % config.validation_steps == 0 or step == config.steps):
                self._score(step)
            on_step(step)

    def _clip(self, step: int) -> None:
        """Each run's gradient at max_grad_norm, as torch.nn.utils.clip_grad_norm_ does of one."""
        grads = [p.grad for p in self._parameters if p.grad is not None]
        norms = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
        if step % 50 == 1 and not torch.isfinite(norms).all():  # looking waits for the device
            raise DCOError(f"The gradient is not finite at step {step}: lower the learning rate.")
        factor = (self.config.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
        for g in grads:
            g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))

    def _batches(self) -> Iterator[Batch]:
        stream = self._draws()
        if not self.config.reads_phi:
            return (Batch(self.denoiser, self._all, draws, self.config, None, self._betas) for draws in stream)
        window = max(1, _PHI_ROWS // (len(self._runs) * self.config.batch_size))
        pairs = reference_pass.with_reference(self.denoiser, self._all, stream, self.config, window)
        return (Batch(self.denoiser, self._all, draws, self.config, found, self._betas) for draws, found in pairs)

    def _draws(self) -> Iterator[list[Draw]]:
        """A batch of every run, one after the other, with the numbers of their examples among all."""
        levels = noise_levels(self.denoiser, self.config)
        streams = [
            random_draws(run, levels, config) for run, config in zip(self._runs, self._configs, strict=True)
        ]
        while True:
            yield [d for run, stream in enumerate(streams) for d in self._numbered(run, next(stream))]

    def _numbered(self, run: int, draws: Sequence[Draw]) -> list[Draw]:
        first = run * len(self._runs[0])
        return [dataclasses.replace(d, image=first + d.image) for d in draws]

    def _validation_draws(self) -> tuple[list[Draw], Tensor, Tensor]:
        """The draws that `Validation` has for each run, their beta*T w(t) and phi's errors on them, both [R, draws]."""
        made = [
            Validation(self.denoiser, run, config) for run, config in zip(self._runs, self._configs, strict=True)
        ]
        # its draws are of the references alone, which come first in a run
        draws = [d for run, one in enumerate(made) for d in self._numbered(run, one.draws)]
        with torch.no_grad():
            phi = batch_errors(self.denoiser, self._all, draws, adapter=False).view(len(made), -1)
        return draws, torch.tensor([one.factors for one in made]).to(phi), phi

    def _score(self, step: int) -> None:
        assert self._validation is not None
        draws, factors, phi = self._validation
        with torch.no_grad():
            theta = batch_errors(self.denoiser, self._all, draws, adapter=True).view_as(phi)
            margin = (factors * (phi - theta)).mean(1).cpu()
            better = margin > self._best
            for name, value in self.denoiser.trainable().items():
                kept = self.stopped.setdefault(name, value.detach().clone())
                kept[better.to(kept.device)] = value.detach()[better.to(kept.device)]
        self._best = torch.where(better, margin, self._best)
        self.stopped_at = [step if b else at for b, at in zip(better.tolist(), self.stopped_at, strict=True)]


def possible(config: TrainingConfig, adapter: AdapterConfig) -> bool:
    """Whether runs of this configuration can be side by side."""
    if adapter.dropout:
        return False
    try:
        _refuse(config)
    except DCOError:
        return False
    return True


def _refuse(config: TrainingConfig) -> None:
    plain_values = {
        "reduction": "per-sample", "gradient_accumulation_steps": 1, "ema_decay": 0.0, "keep": "last",
    }  # fmt: skip
    for name, value in plain_values.items():
        if getattr(config, name) != value and not (name == "reduction" and not config.is_dco):
            raise DCOError(f"{name} {getattr(config, name)} is for a run alone: side_by_side 1.")
    if config.preservation_prompts and config.preservation_share < 1:
        raise DCOError(
            f"preservation_share {config.preservation_share:g} is for a run alone: side_by_side 1, or in every batch."
        )


def _moved(example: Example, device: torch.device) -> Example:
    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    changes = {f.name: moved(getattr(example, f.name)) for f in dataclasses.fields(example)}
    changes |= {name: tuple(map(moved, getattr(example, name))) for name in ("rejected", "preserved")}
    return Example(**changes)
