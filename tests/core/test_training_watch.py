"""A run that looks ahead, that scores itself, that meets numbers which are none and that becomes slow."""

import dataclasses
import math
import sys

import pytest
import torch

import dco_core
from dco_core.errors import DCOError
from dco_core.network.lora_layers import AdapterConfig
from dco_core.schedules import Schedule
from dco_core.training import reference_pass, trainer
from dco_core.training.checkpoints import Checkpoints
from dco_core.training.config import TrainingConfig
from dco_core.training.draws import Draw
from dco_core.training.memory import estimate
from dco_core.training.optimizers import rate_factor
from dco_core.training.reference_pass import automatic_window
from dco_core.training.step_time import SpeedWatch
from dco_core.training.trainer import Training
from tests.small_network import Denoiser, small_base, small_examples
from tests.small_runs import STEPS, Run

# --- looking ahead


@pytest.mark.parametrize("window", [2, 5, 16])
@pytest.mark.parametrize(
    "batch", [{}, {"batch_size": 2, "reduction": "batch-mean"}, {"gradient_accumulation_steps": 2}], ids=str
)
def test_looking_ahead_changes_nothing_but_the_number_of_calls(window, batch):
    naive, ahead = Run(look_ahead=1, **batch), Run(look_ahead=window, **batch)
    calls = []
    predict = ahead.denoiser.predict
    ahead.denoiser.predict = lambda *args, adapter: calls.append(adapter) or predict(*args, adapter=adapter)
    naive.run()
    ahead.run()
    steps = STEPS * batch.get("gradient_accumulation_steps", 1)
    assert calls.count(True) == steps
    assert calls.count(False) == math.ceil(steps / window)
    for a, b in zip(naive.training.history, ahead.training.history, strict=True):
        assert (a.loss, a.margin, a.error_phi) == pytest.approx(
            (b.loss, b.margin, b.error_phi), rel=1e-4, abs=1e-5
        )
    for (name, a), b in zip(naive.made()[0].items(), ahead.made()[0].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def test_looking_ahead_asks_phi_about_references_alone():
    options = {"objective": "dco-prior", "prior": True, "batch_size": 2, "prior_weight": 30.0}
    naive, ahead = Run(look_ahead=1, **options), Run(look_ahead=4, **options)
    asked = []
    predict = ahead.denoiser.predict
    ahead.denoiser.predict = lambda x, *args, adapter: (
        asked.append((adapter, len(x))) or predict(x, *args, adapter=adapter)
    )
    naive.run()
    ahead.run()
    assert sum(n for adapter, n in asked if not adapter) == 2 * 4 * math.ceil(STEPS / 4)
    assert sum(n for adapter, n in asked if adapter) == 4 * STEPS
    for a, b in zip(naive.training.history, ahead.training.history, strict=True):
        assert (a.loss, a.margin, a.error_phi) == pytest.approx(
            (b.loss, b.margin, b.error_phi), rel=1e-4, abs=1e-5
        )


def test_the_window_follows_the_room_there_is(monkeypatch):
    run = Run()

    def window(batch_size=1):
        return automatic_window(run.denoiser, run.examples, TrainingConfig(batch_size=batch_size))

    assert run.training.config.look_ahead == window() == 8
    one = estimate(run.denoiser, run.examples, TrainingConfig()).activations
    for free, expected in ((0.62 * one, 3), (0.01 * one, 1), (None, 8)):
        monkeypatch.setattr(reference_pass, "free_memory", lambda device, free=free: free)
        assert window() == expected
    run.denoiser.rows_at_once = lambda shape: 3
    assert window() == 3
    assert window(4) == 1


class Bare(dco_core.Denoiser):
    """A denoiser that says nothing of its memory, over one that would."""

    def __init__(self, inner):
        self.schedule, self.inner = inner.schedule, inner

    def predict(self, x_t, t, conditioning, *, adapter):
        return self.inner.predict(x_t, t, conditioning, adapter=adapter)

    def trainable(self):
        return self.inner.trainable()

    def lora(self):
        return self.inner.lora()


def test_what_a_denoiser_does_not_say_of_its_memory_has_a_default(monkeypatch):
    run = Run()
    bare = Bare(run.denoiser)
    assert bare.rows_at_once((6, 2, 2)) is None and not bare.checkpointed and not bare.network_tensors()
    config = TrainingConfig()
    weights = sum(t.nbytes for t in run.denoiser.network_tensors())
    known, unknown = (estimate(d, run.examples, config).activations for d in (run.denoiser, bare))
    assert known < unknown <= known + weights  # the frozen weights count where they are not known
    monkeypatch.setattr(reference_pass, "free_memory", lambda device: None)
    assert automatic_window(bare, run.examples, config) == 8
    monkeypatch.setattr(Bare, "checkpointed", True)
    assert automatic_window(bare, run.examples, config) == 3
    with pytest.raises(TypeError, match="abstract"):
        dco_core.Denoiser()


def test_where_theta_is_checkpointed_phi_takes_no_more_than_theta():
    run = Run()
    run.denoiser.checkpoint_blocks()
    assert automatic_window(run.denoiser, run.examples, TrainingConfig()) == 3
    assert automatic_window(run.denoiser, run.examples, TrainingConfig(batch_size=4)) == 2


def test_a_base_that_reads_the_learned_tokens_is_asked_anew_in_every_step():
    run = Run(tokens=True)
    shared = [dataclasses.replace(e, base_conditioning=None) for e in run.examples]
    training = Training(run.denoiser, shared, TrainingConfig(steps=2, look_ahead=8), run.tokens)
    assert training.config.look_ahead == 1


# --- rates, averages, scores


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0, [1, math.cos(math.pi / 8) ** 2, 0.5, math.sin(math.pi / 8) ** 2]),
        ("linear", 2, [0.5, 1, 1, 0.5]),
    ],
)
def test_rates(schedule, warmup, expected):
    assert [rate_factor(schedule, warmup, 4)(i) for i in range(4)] == pytest.approx(expected)
    run = Run(steps=4, lr_scheduler=schedule, lr_warmup_steps=warmup, learning_rate=1e-2).run()
    assert [r.learning_rate for r in run.training.history] == pytest.approx([1e-2 * e for e in expected])


def test_the_moving_average_is_the_mean_of_the_path():
    """ema_decay is the share of what was, as everywhere: 0.8 remembers about five steps."""
    run = Run(ema_decay=0.8, steps=3)
    path = [run.training._copied()]
    run.training.run(lambda report: path.append(run.training._copied()))
    for name, p in run.denoiser.trainable().items():
        expected = sum(w * at[name] for w, at in zip((0.512, 0.128, 0.16, 0.2), path, strict=True))
        with run.training.result():
            torch.testing.assert_close(p.data, expected)
        assert torch.equal(p.data, path[3][name])


def test_scores_are_margin_and_distance_on_draws_that_training_has_not_seen():
    run = Run(validation_steps=3).run()
    assert [s.step for s in run.training.scores] == [3, 6, 9]
    assert run.training._validation.score(9) == run.training.scores[-1]
    validation = run.training._validation
    margins, distances = [], []
    with torch.no_grad():
        for d in validation._draws:
            e = run.examples[d.image]
            t = torch.tensor([d.t])
            x_t = run.denoiser.schedule.noised(e.latent[None], d.noise[None], t)
            theta = run.denoiser.predict(x_t, t, [e.conditioning], adapter=True)
            phi = run.denoiser.predict(x_t, t, [e.base_conditioning], adapter=False)
            error = ((phi - d.noise) ** 2).mean() - ((theta - d.noise) ** 2).mean()
            margins.append(1000 * error.item())
            distances.append(((theta - phi) ** 2).mean().item())
    assert run.training.scores[-1].margin == pytest.approx(sum(margins) / 16, rel=1e-4)
    assert run.training.scores[-1].distance == pytest.approx(sum(distances) / 16, rel=1e-4)
    assert len({d.t for d in validation._draws}) == 16


def test_scoring_changes_nothing_that_is_trained():
    plain, scored = Run(dropout=0.3).run(), Run(dropout=0.3, validation_steps=2).run()
    assert plain.made()[1] == scored.made()[1]


def test_the_best_is_kept():
    run = Run(validation_steps=1, keep="best", learning_rate=0.3, steps=25)  # too fast: it gets worse again
    seen = {0: None}
    run.training.run(lambda report: seen.update({report.step: run.training._copied()}))
    best = run.training.best
    assert best.margin == max(s.margin for s in run.training.scores)
    assert best.step < 25
    with run.training.result():
        assert all(torch.equal(p.data, seen[best.step][n]) for n, p in run.denoiser.trainable().items())


# --- numbers that are none


def nan_draws(steps, bad):
    g = torch.Generator().manual_seed(0)
    draws = [Draw(0, torch.randn(6, 2, 2, generator=g), 500) for _ in range(steps)]
    return [
        [dataclasses.replace(d, noise=d.noise * math.nan) if i in bad else d] for i, d in enumerate(draws, 1)
    ]


def training_on(draws, **config):
    denoiser = Denoiser(small_base(), Schedule.stable_diffusion(), AdapterConfig(rank=2))
    config = TrainingConfig(**{"steps": len(draws), "learning_rate": 1e-2, **config})
    return Training(denoiser, small_examples(), config, draws=iter(draws))


@pytest.mark.parametrize("window", [1, 3])
def test_a_step_that_is_not_finite_is_skipped_and_counted(window):
    training = training_on(nan_draws(7, {3, 4}), look_ahead=window)
    training.run()
    assert [r.skipped for r in training.history] == [False, False, True, True, False, False, False]
    clean = training_on([d for d in nan_draws(7, {3, 4}) if torch.isfinite(d[0].noise).all()], look_ahead=1)
    clean.run()
    for name, p in training.denoiser.trainable().items():
        torch.testing.assert_close(p.data, clean.denoiser.trainable()[name].data, rtol=1e-3, atol=1e-5)


def test_a_gradient_that_is_not_finite_is_skipped():
    training = training_on(nan_draws(3, set()))
    parameter = next(iter(training.denoiser.trainable().values()))
    count = []
    parameter.register_hook(lambda g: count.append(1) or (g * math.inf if len(count) == 2 else g))
    training.run()
    assert [r.skipped for r in training.history] == [False, True, False]
    assert all(torch.isfinite(p).all() for p in training.denoiser.trainable().values())


def test_five_in_a_row_stop_the_run_with_the_likely_cause():
    training = training_on(nan_draws(12, set(range(4, 13))))
    with pytest.raises(
        DCOError, match="in 5 steps in a row, up to step 8 of 12.*base model itself.*bf16 or fp32"
    ):
        training.run()
    assert all(torch.isfinite(p).all() for p in training.denoiser.trainable().values())
    with pytest.raises(DCOError, match="in 1 steps in a row|in 1 step"):
        training_on(nan_draws(1, {1})).run()


def test_a_lora_that_explodes_is_named_as_the_cause():
    training = training_on(nan_draws(12, set()))

    def explode(report):
        if report.step == 3:
            for p in training.denoiser.trainable().values():
                p.data.fill_(3e38)

    with pytest.raises(DCOError, match=r"drove the model to NaN: lower the learning rate \(now 0.01\)"):
        training.run(explode)


# --- the rest


def test_steps_that_become_many_times_slower_stop_the_run():
    watch = SpeedWatch()
    for _ in range(40):
        watch.after_step(0.5)
    watch.after_step(60.0)  # once is no trouble
    for _ in range(10):
        watch.after_step(0.5)
    with pytest.raises(DCOError, match="Steps now take 6.0 s, 12 times as long.*kept"):
        for _ in range(5):
            watch.after_step(6.0)
    fast = SpeedWatch()
    for seconds in [0.01] * 20 + [0.5] * 20:  # fifty times slower and still nothing to fear
        fast.after_step(seconds)


def test_a_run_that_crawls_stops_and_goes_on_later(tmp_path, monkeypatch):
    def slow(results, step, *rest):
        report = trainer_report(results, step, *rest)
        return dataclasses.replace(report, seconds=0.3 if step <= 14 else 30.0)

    def training(folder):
        run = Run(steps=30)
        return Training(
            run.denoiser, run.examples, run.training.config, checkpoints=Checkpoints(folder), watch_speed=True
        )

    trainer_report = trainer._report
    monkeypatch.setattr(trainer, "_report", slow)
    with pytest.raises(DCOError, match="Steps now take 30.0 s, 100 times as long as at first"):
        training(tmp_path).run()
    monkeypatch.undo()
    assert training(tmp_path).step == 17  # three of five slow ones


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": "sgd"}, "optimizer 'sgd' is unknown"),
        ({"lr_scheduler": "steps"}, "lr_scheduler 'steps' is unknown"),
        ({"lr_warmup_steps": -1}, "lr_warmup_steps is -1"),
        ({"ema_decay": 1.0}, "ema_decay is 1"),
        ({"keep": "best"}, "set validation_steps"),
        ({"look_ahead": -2}, "look_ahead is -2"),
    ],
)
def test_settings_that_cannot_be(change, words):
    with pytest.raises(DCOError, match=words):
        Run(**change)


@pytest.mark.parametrize(
    ("optimizer", "library"), [("adamw-8bit", "bitsandbytes"), ("prodigy", "prodigyopt")]
)
def test_a_missing_library_is_one_sentence(monkeypatch, optimizer, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        DCOError, match=f"needs the package {library}.*pip install {library}.*or choose adamw"
    ):
        Run(optimizer=optimizer)


def test_prodigy_has_one_rate_for_all_and_says_so():
    pytest.importorskip("prodigyopt")
    with pytest.raises(
        DCOError, match="learning_rate is 1 and token_learning_rate 0.0005: set both to 1, or choose adamw"
    ):
        Run(optimizer="prodigy", learning_rate=1.0, tokens=True)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "prodigy"])
def test_every_optimizer_learns(optimizer):
    if optimizer == "prodigy":
        pytest.importorskip("prodigyopt")
    rate = {"prodigy": 1.0}.get(optimizer, 1e-2)
    training = training_on(
        nan_draws(1, set()) * 60, objective="dreambooth", optimizer=optimizer, learning_rate=rate
    )
    training.run()
    assert training.history[-1].loss < 0.7 * training.history[0].loss
