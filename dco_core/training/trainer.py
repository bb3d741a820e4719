"""The trainer: examples and draws in, steps out (Algorithm 1). It knows a Denoiser and nothing of any host."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..errors import DCOError
from ..files.content_key import content_key
from ..lora import LoraLayer
from ..losses import gate
from ..network.denoiser import Denoiser
from ..network.out_of_place import clear_refusal
from . import calibration, reference_pass
from .calibration import with_beta
from .checkpoints import Checkpoints, Saved
from .config import TrainingConfig
from .draws import Draw, random_draws
from .examples import Example
from .learned_tokens import LearnedTokens
from .noise_levels import noise_levels, note_of
from .objectives import OBJECTIVES, Batch, ObjectiveResult, checked_examples
from .optimizers import make_optimizer, rate_factor
from .processes import ALONE, Processes
from .reference_ahead import ReferenceAhead
from .reference_cache import ReferenceCache
from .run_state import RunState, differences, from_checkpoint, to_checkpoint
from .step_report import StepReport
from .step_time import SpeedWatch
from .validation import Score, Validation

_FORMAT = 2  # of checkpoints: those of another are of another run
MAX_SKIPPED = 5  # steps in a row without a finite loss, before training stops


def train(
    denoiser: Denoiser,
    examples: Sequence[Example],
    config: TrainingConfig,
    on_step: Callable[[StepReport], None] | None = None,
    draws: Iterator[Sequence[Draw]] | None = None,
    tokens: LearnedTokens | None = None,
) -> dict[str, LoraLayer]:
    """Run Algorithm 1 and return the LoRA as {dotted module name: LoraLayer}: a Training from start to end, without
    checkpoints; the arguments are its."""
    training = Training(denoiser, examples, config, tokens, draws=draws)
    training.run(on_step)
    with training.result():
        return denoiser.lora()


class Training:
    """One run of Algorithm 1: what trains, how far it is, and where it goes on after a stop.

    config: as asked; afterwards with the values that were automatic (beta, look_ahead).
    tokens: rows that train along; the conditionings of the examples are then functions that read them.
    draws: batches of draws to use in place of random ones, so that a recorded run can be replayed exactly; with
        accumulation every step takes several. They cannot be resumed.
    checkpoints: where to keep the run. A checkpoint in it that was made of the same `content`, start and
        configuration is gone on from, bit for bit as if the run had never stopped.
    content: whatever else the run is made of (model, pictures, captions), as `content_key` gives it.
    reference_cache: where phi's errors of earlier runs are, and those of this one go.
    reference: phi on another device, where it is to look ahead; closed when the run ends.
    callback: called now and then while the automatic beta is sought; whatever it raises ends that.
    watch_speed: stop when steps become many times slower.
    processes: those that make this run together, all with the same arguments. The first alone writes checkpoints.

    Raises DCOError for bad input. examples: those that are trained on. history: the reports of all steps so far;
    scores: of the validation draws; notes: sentences for the user about resuming.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        examples: Sequence[Example],
        config: TrainingConfig,
        tokens: LearnedTokens | None = None,
        *,
        draws: Iterator[Sequence[Draw]] | None = None,
        checkpoints: Checkpoints | None = None,
        content: str = "",
        reference_cache: ReferenceCache | None = None,
        reference: ReferenceAhead | None = None,
        callback: Callable[[], None] = lambda: None,
        watch_speed: bool = False,
        processes: Processes = ALONE,
    ):
        config.check()
        if config.gradient_accumulation_steps % processes.count:
            raise DCOError(
                f"{processes.count} processes share the micro-batches of a step: gradient_accumulation_steps is "
                f"{config.gradient_accumulation_steps}, use a multiple of {processes.count}."
            )
        self._levels = noise_levels(denoiser, config)
        self.examples = checked_examples(examples, config, recorded=draws is not None)
        if draws is not None and checkpoints is not None:
            raise DCOError("A recorded run cannot be resumed: replay it without checkpoints.")
        self.denoiser, self.tokens, self.checkpoints = denoiser, tokens, checkpoints
        self._processes = processes
        self.history: list[StepReport] = []
        self.scores: list[Score] = []
        self.notes = [note] if (note := note_of(denoiser, config)) else []
        self.step = 0
        self._parameters: dict[str, torch.nn.Parameter] = dict(denoiser.trainable())
        if tokens is not None:
            self._parameters |= {f"token:{name}": p for name, p in tokens.parameters().items()}
        if not self._parameters:
            raise DCOError("There is nothing to train: choose a LoRA, learned tokens, or both.")
        if config.preservation_prompts and not denoiser.trainable():
            raise DCOError(
                "preservation_prompts hold a LoRA to the base model, and only learned tokens are trained, which other "
                "prompts do not have: leave them out, or train a LoRA."
            )
        self._draws, self._asked, self._content = draws, config, content
        self._ema: dict[str, Tensor] = {}
        self._best: dict[str, Tensor] = {}
        self._whole = True  # no step is half done
        self._saved_step = 0
        self._watch = SpeedWatch() if watch_speed else None

        processes.copy_firsts(list(self._parameters.values()))
        saved = self._found(checkpoints) if checkpoints is not None else None
        if len(set(processes.all(-1 if saved is None else saved.step))) > 1:
            raise DCOError("The processes found different checkpoints: they need one folder that all can read.")
        if saved is not None:
            self.config = dataclasses.replace(TrainingConfig(**saved.about["config"]), steps=config.steps)
        else:
            self.config = processes.firsts(self._settled(config, callback))
        groups = [
            (list(denoiser.trainable().values()), self.config.learning_rate),
            (
                list(tokens.parameters().values()) if tokens is not None else [],
                self.config.token_learning_rate,
            ),
        ]
        self._optimizer = make_optimizer(self.config.optimizer, groups, self.config.weight_decay)
        if self.config.ema_decay:
            self._ema = self._copied()
            # AveragedModel would pair values by position, and a run is resumed by name
            self._average = get_ema_multi_avg_fn(self.config.ema_decay)
        if saved is not None:
            self._restore(saved)
        factor = rate_factor(self.config.lr_scheduler, self.config.lr_warmup_steps, self.config.steps)
        self._rates = torch.optim.lr_scheduler.LambdaLR(self._optimizer, factor, last_epoch=self.step - 1)
        self._validation = Validation(denoiser, self.examples, self.config) if self.config.validation_steps else None
        self._ahead = self._looking_ahead(reference)
        self._cache = self._opened(reference_cache)

    # --- the run

    def run(self, on_step: Callable[[StepReport], None] | None = None) -> None:
        """Train to the last step.

        on_step: called after every step; whatever it raises ends training, as every other exception does. What was
            trained until then is kept: in the adapter, and as a checkpoint where there are any.
        Raises DCOError when steps have had no finite loss again and again, and when a checkpoint cannot be
        written.
        """
        batches = self._batches()
        with _seeded_dropout(self.config.seed) as seed_batch:
            try:
                while self.step < self.config.steps:
                    self._one_step(batches, seed_batch)
                    if on_step is not None:
                        on_step(self.history[-1])
                    if self._watch is not None:
                        self._watch.after_step(self.history[-1].seconds)
                    if self.checkpoints is not None and self.checkpoints.due(self.step):
                        self._save()
            except BaseException:
                self._save_while_stopping()
                raise
            finally:
                if self._ahead is not None:
                    self._ahead.close()
                if self._cache is not None:
                    self._cache.write()
        if self.checkpoints is not None and self._processes.is_first:
            self._save()
            self.checkpoints.finish()

    def _one_step(self, batches: Iterator[Batch], seed_batch: Callable[[int, int], None]) -> None:
        started = time.monotonic()
        step, config = self.step + 1, self.config
        self._optimizer.zero_grad(set_to_none=True)
        results = self._gradients(batches, seed_batch)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), config.max_grad_norm))
        finite = math.isfinite(norm) and all(bool(torch.isfinite(o.loss)) for o in results)
        rate = float(self._rates.get_last_lr()[0])
        self._whole = False
        if finite:
            self._optimizer.step()
            if self.tokens is not None:
                self.tokens.keep_norms()
            if self._ema:
                names = list(self._parameters)
                self._average([self._ema[n] for n in names], [self._parameters[n] for n in names], self.step)
        self._optimizer.zero_grad(set_to_none=True)
        self._advance_rate()
        self.step = step
        seconds = time.monotonic() - started
        self.history.append(_report(results, step, config, rate, norm, seconds, not finite))
        if self._validation is not None and (step % config.validation_steps == 0 or step == config.steps):
            self._score()
        self._whole = True
        if not finite:
            self._give_up_if_hopeless(results)

    def _gradients(
        self, batches: Iterator[Batch], seed_batch: Callable[[int, int], None]
    ) -> list[ObjectiveResult]:
        """Add up the gradients of a step's micro-batches, in all processes."""
        processes, results = self._processes, []
        for i in range(processes.rank, self.config.gradient_accumulation_steps, processes.count):
            seed_batch(self.step + 1, i)
            results.append(_backward(next(batches)))
        if processes.count == 1:
            return results
        processes.add_gradients(self._parameters.values())
        shares = processes.all([_on_cpu(result) for result in results])
        return [result for of_each in zip(*shares, strict=True) for result in of_each]

    def _advance_rate(self) -> None:
        self._optimizer._opt_called = True  # type: ignore[attr-defined]  # a first step may have been skipped
        self._rates.step()

    def _give_up_if_hopeless(self, results: Sequence[ObjectiveResult]) -> None:
        skipped = sum(1 for _ in itertools.takewhile(lambda report: report.skipped, reversed(self.history)))
        if skipped < min(MAX_SKIPPED, self.config.steps):
            return
        base = any(o.error_phi is not None and not torch.isfinite(o.error_phi).all() for o in results)
        theta = any(not torch.isfinite(o.error_theta).all() for o in results)
        if base:
            cause = (
                "the base model itself gives NaN, as fp16 weights that overflow do: load it in bf16 or fp32."
            )
        elif theta:
            cause = (
                f"the LoRA drove the model to NaN: lower the learning rate (now {self.config.learning_rate:g}), or "
                "load the model in bf16 or fp32."
            )
        else:
            cause = f"the gradients overflow: lower the learning rate (now {self.config.learning_rate:g})."
        raise DCOError(
            f"The loss or its gradient was not finite in {skipped} steps in a row, up to step {self.step} of "
            f"{self.config.steps}; the LoRA of the last good step is kept. Likely {cause}"
        )

    def _batches(self) -> Iterator[Batch]:
        """The batches of this and the following steps, with phi on them where it looks ahead. Windows lie where
        they would lie in a run from the start, so that their rounding is the same."""
        config, examples, every = self.config, self.examples, self._processes.count
        number = self.step * config.gradient_accumulation_steps // every  # of this process's
        window = config.look_ahead if config.reads_phi else 1
        first = number // window * window
        stream = self._draws or random_draws(examples, self._levels, config, start=first * every)
        if every > 1:
            stream = itertools.islice(stream, self._processes.rank, None, every)
        if self._ahead is not None:  # not beyond the last step
            last = config.steps * config.gradient_accumulation_steps // every
            stream = itertools.islice(stream, max(0, -(-last // window) * window - first))
        if window == 1 and self._cache is None and self._ahead is None:
            return (Batch(self.denoiser, examples, draws, config) for draws in stream)
        pairs = reference_pass.with_reference(
            self.denoiser, examples, stream, config, window, self._cache, first // window, self._ahead
        )
        return (
            Batch(self.denoiser, examples, draws, config, reference)
            for draws, reference in itertools.islice(pairs, number - first, None)
        )

    def _settled(self, config: TrainingConfig, callback: Callable[[], None]) -> TrainingConfig:
        """The configuration with numbers for what is automatic."""
        with _seeded_dropout(config.seed) as seed_batch:
            seed_batch(0, 0)
            config = with_beta(config, self.denoiser, self.examples, self.tokens, callback)
        window = config.look_ahead
        if not reference_pass.possible(self.examples) or not config.reads_phi:
            window = 1
        elif window == 0:
            window = reference_pass.automatic_window(self.denoiser, self.examples, config)
        return dataclasses.replace(config, look_ahead=window)

    def _looking_ahead(self, reference: ReferenceAhead | None) -> ReferenceAhead | None:
        """phi on another device, where its draws can be looked at ahead, and a note of it."""
        if reference is None:
            return None
        if self.config.reads_phi and reference_pass.possible(self.examples):
            self.notes.append(f"The base model looks ahead on {reference.device}.")
            return reference
        reference.close()
        why = "it reads tokens in training" if self.config.reads_phi else "this objective asks it for nothing ahead"
        self.notes.append(f"The base model does not look ahead on {reference.device}: {why}.")
        return None

    def _opened(self, cache: ReferenceCache | None) -> ReferenceCache | None:
        """The cache, where phi's errors can be kept and found, and a note of what was found."""
        if cache is None:
            return None
        note = reference_pass.not_cached(self.examples, self.config, self._draws is not None)
        if self.config.is_dco and not note:
            share = (self._processes.rank, self._processes.count)
            device = None if self._ahead is None else self._ahead.device
            cache.open(self.denoiser, self.examples, self.config, share, device)
            self.notes += [cache.note] * bool(cache.note)
            return cache
        self.notes += [note] * bool(note)
        return None

    # --- what it has made

    @contextmanager
    def result(self) -> Iterator[None]:
        """Inside, the adapter and the tokens are the result: the best-scored ones or their moving average where the
        configuration says so, otherwise as they are."""
        chosen = self._best if self.config.keep == "best" and self._best else self._ema
        with self._in_place(chosen):
            yield

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the adapter and the tokens are what a run that keeps the last would have made by now: their moving
        average where the configuration says so, otherwise as they are."""
        with self._in_place(self._ema):
            yield

    @property
    def learned(self) -> bool:
        """Whether any step has changed what trains."""
        return any(not report.skipped for report in self.history)

    @property
    def best(self) -> Score | None:
        """The highest margin among the scores."""
        return max(self.scores, key=lambda score: score.margin, default=None)

    def _score(self) -> None:
        assert self._validation is not None
        with self._in_place(self._ema):
            self.scores.append(self._validation.score(self.step))
            if self.config.keep == "best" and self.best is self.scores[-1]:
                self._best = self._copied()

    def _copied(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self._parameters.items()}

    @contextmanager
    def _in_place(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        if not values:
            yield
            return
        own = {name: p.data for name, p in self._parameters.items()}
        try:
            for name, p in self._parameters.items():
                p.data = values[name]
            yield
        finally:
            for name, p in self._parameters.items():
                p.data = own[name]

    # --- checkpoints

    def _found(self, checkpoints: Checkpoints) -> Saved | None:
        """The checkpoint to go on from, and a note of what was found."""
        key = content_key(
            _FORMAT, self._content, self._identity(), self._copied(), self._words(), self.denoiser.schedule
        )
        saved = checkpoints.open(key, self._asked.steps)
        self.notes += [
            f"The checkpoint {name} is damaged and was passed over." for name in checkpoints.damaged
        ]
        if saved is not None:
            done = "finished" if saved.step == self._asked.steps else "going on from there"
            self.notes.append(f"Found the checkpoint of step {saved.step}: {done}.")
            return saved
        other = checkpoints.latest_other()
        if other is not None:
            changed = ", ".join(differences(self._asked, self._content, other))
            self.notes.append(f"Starting anew: the earlier run had {changed}.")
        return None

    def _identity(self) -> dict[str, Any]:
        """The configuration as far as steps depend on it: a run may be asked for more of them."""
        return calibration.identity(self._asked, self.denoiser)

    def _words(self) -> dict[str, str]:
        return dict(self.tokens.initializers) if self.tokens is not None else {}

    def _save(self) -> None:
        if self.checkpoints is None or self._saved_step == self.step or not self._processes.is_first:
            return
        state = RunState(self._ema, self._best, self.history, self.scores)
        tensors, about = to_checkpoint(state, self._parameters, self._optimizer)
        about |= {"config": self.config.as_dict(), "asked": dataclasses.asdict(self._asked), "content": self._content}
        self.checkpoints.save(self.step, tensors, about)
        if self._cache is not None:
            self._cache.write()
        self._saved_step = self.step

    def _save_while_stopping(self) -> None:
        """Keep what is there; a failure to do so must not hide why training stopped."""
        if self._whole and self.learned:
            try:
                self._save()
            except DCOError as error:
                logging.error("DCO: %s", error)

    def _restore(self, saved: Saved) -> None:
        state = from_checkpoint(saved, self._parameters, self._optimizer, self.config.steps)
        self._ema, self._best, self.history, self.scores = state
        self.step = self._saved_step = saved.step


def _backward(batch: Batch) -> ObjectiveResult:
    """Add one micro-batch's gradient."""
    config = batch.config
    result = OBJECTIVES[config.objective](batch)
    if torch.isfinite(result.loss):
        with clear_refusal():
            (result.loss / config.gradient_accumulation_steps).backward()
    return result._replace(loss=result.loss.detach(), error_theta=result.error_theta.detach())


@contextmanager
def _seeded_dropout(seed: int) -> Iterator[Callable[[int, int], None]]:
    """Dropout of the LoRA takes torch's global generator: seeded from (seed, step, micro-batch), and left as it was
    found."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []

    def seed_batch(step: int, batch: int) -> None:
        torch.manual_seed((seed * 1_000_003 + step + batch * 0x9E3779B97F4A7C15) % 2**63)

    with torch.random.fork_rng(devices):
        yield seed_batch


def _on_cpu(result: ObjectiveResult) -> ObjectiveResult:
    """What a report needs of a result, to be sent to other processes."""
    margin, error_phi = (None if value is None else value.cpu() for value in (result.margin, result.error_phi))
    return ObjectiveResult(result.loss.cpu(), margin, result.error_theta.cpu(), error_phi)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _report(
    results: Sequence[ObjectiveResult], step: int, config: TrainingConfig, rate: float, norm: float, seconds: float,
    skipped: bool,
) -> StepReport:  # fmt: skip
    margins = [o.margin for o in results if o.margin is not None]
    phi = [o.error_phi for o in results if o.error_phi is not None]
    return StepReport(
        step=step,
        steps=config.steps,
        loss=_mean([o.loss.item() for o in results]),
        margin=_mean([m.mean().item() for m in margins]) if margins else 0.0,
        gate=_mean([gate(m).mean().item() for m in margins]) if margins else 1.0,
        learning_rate=rate,
        gradient_norm=norm,
        error_theta=_mean([o.error_theta.mean().item() for o in results]),
        error_phi=_mean([e.mean().item() for e in phi]) if phi else math.nan,
        seconds=seconds,
        skipped=skipped,
    )


def evaluate(
    denoiser: Denoiser, examples: Sequence[Example], config: TrainingConfig, draws: Sequence[Sequence[Draw]]
) -> float:
    """The training loss averaged over fixed batches of draws, without gradient."""
    with torch.no_grad():
        batches = (Batch(denoiser, examples, batch, config) for batch in draws)
        return _mean([OBJECTIVES[config.objective](batch).loss.item() for batch in batches])
