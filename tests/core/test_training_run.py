"""A run that stops and goes on, that looks ahead, that scores itself and that meets numbers which are none."""

import dataclasses
import math
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

import dco_core.lora.atomic as atomic
from dco_core import look_ahead, trainer
from dco_core.adapters import AdapterConfig
from dco_core.checkpoints import RUNS, Checkpoints
from dco_core.config import TrainingConfig
from dco_core.errors import DCOError
from dco_core.examples import Draw
from dco_core.look_ahead import automatic_window
from dco_core.memory import estimate
from dco_core.optimizers import rate_factor
from dco_core.schedules import Schedule
from dco_core.speed_watch import SpeedWatch
from dco_core.tokens import LearnedTokens
from dco_core.trainer import Training
from tests.small_network import Denoiser, small_base, small_examples

STEPS = 9


class Stop(BaseException):
    """What the host raises when a user presses cancel is no Exception either."""


class Run:
    """A training on the small network: made anew each time, as after a restart."""

    def __init__(self, folder=None, every=0, content="", schedule=None, dropout=0.0, tokens=False, **config):
        self.examples = small_examples()
        self.denoiser = Denoiser(
            small_base(), schedule or Schedule.stable_diffusion(), AdapterConfig(rank=2, dropout=dropout)
        )
        self.tokens = None
        if tokens:
            self.tokens = LearnedTokens({"dog": {"text": torch.ones(1, 5)}}, {"dog": "dog"})
            rest = [e.conditioning[:3] for e in self.examples]
            row = self.tokens.rows()["dog"]["text"]
            self.examples = [
                dataclasses.replace(
                    e, conditioning=lambda r=r: torch.cat([r, row]), base_conditioning=e.conditioning
                )
                for e, r in zip(self.examples, rest, strict=True)
            ]
        checkpoints = None if folder is None else Checkpoints(folder, every)
        config = TrainingConfig(**{"steps": STEPS, "learning_rate": 1e-2, "seed": 7, **config})
        self.training = Training(
            self.denoiser, self.examples, config, self.tokens, checkpoints=checkpoints, content=content
        )

    def run(self, until=None):
        def on_step(report):
            if report.step == until:
                raise Stop

        if until is None:
            self.training.run(on_step)
        else:
            with pytest.raises(Stop):
                self.training.run(on_step)
        return self

    def made(self):
        """Everything the run leaves: weights, tokens, history."""
        with self.training.result():
            tensors = {f"{n}.{k}": v for n, layer in self.denoiser.lora().items()
                       for k, v in (("down", layer.down), ("up", layer.up))}  # fmt: skip
            if self.tokens is not None:
                tensors["tokens"] = self.tokens.tensors()["dog"]["text"]
        losses = [(r.step, r.loss, r.margin, r.learning_rate) for r in self.training.history]
        return tensors, losses, self.training.scores


def assert_same(run, other):
    (tensors, losses, scores), (others, other_losses, other_scores) = run.made(), other.made()
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[k], others[k]) for k in tensors)
    assert losses == other_losses
    assert scores == other_scores


CONFIGURATIONS = {
    "dco": {},
    "naive": {"look_ahead": 1},
    "window 4, batch 2, accumulated": {"look_ahead": 4, "batch_size": 2, "accumulation": 2},
    "dreambooth, cosine, warmup": {"objective": "dreambooth", "rate_schedule": "cosine", "warmup": 3},
    "adafactor": {"optimizer": "adafactor"},
    "ema and best": {"ema": 0.9, "score_every": 2, "keep": "best"},
    "dropout": {"dropout": 0.5},
    "tokens": {"tokens": True},
    "flow with automatic beta": {"beta": None, "schedule": Schedule.flow()},
}


@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize("stops", [[4], [1, 2, 7], [8]], ids=str)
def test_any_split_is_the_run_in_one_go(tmp_path, options, stops):
    whole = Run(**options).run()
    for stop in stops:
        Run(tmp_path, **options).run(until=stop)
        torch.manual_seed(stop)  # a new process has other random numbers
    last = Run(tmp_path, **options)
    assert last.training.step == stops[-1]
    assert f"step {stops[-1]}" in last.training.notes[0]
    assert_same(last.run(), whole)


def test_prodigy_resumes_too(tmp_path):
    pytest.importorskip("prodigyopt")
    options = {"optimizer": "prodigy", "learning_rate": 1.0}
    Run(tmp_path, **options).run(until=5)
    assert_same(Run(tmp_path, **options).run(), Run(**options).run())


def test_a_finished_run_is_there_at_once_and_goes_on_to_more_steps(tmp_path):
    first = Run(tmp_path, every=2).run()
    assert len(list(tmp_path.iterdir())) == 1
    again = Run(tmp_path, every=2)
    assert (again.training.step, "finished" in again.training.notes[0]) == (STEPS, True)
    assert_same(again.run(), first)
    longer = Run(tmp_path, every=2, steps=2 * STEPS)
    assert longer.training.step == STEPS
    assert_same(longer.run(), Run(steps=2 * STEPS).run())
    shorter = Run(tmp_path, steps=4).run()  # an earlier point of the same run
    assert_same(shorter, Run(steps=4).run())
    assert Run(tmp_path, steps=2 * STEPS).training.step == 2 * STEPS  # whose checkpoint is still there


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 2e-2}, "learning_rate 0.01 (now 0.02)"),
        ({"seed": 8}, "seed 7 (now 8)"),
        ({"beta": 2.0}, "beta 1.0 (now 2.0)"),
        ({"content": "other pictures"}, "other pictures"),
        ({"rate_schedule": "linear"}, "rate_schedule constant (now linear)"),
    ],
)
def test_another_configuration_starts_anew_and_says_so(tmp_path, change, words):
    Run(tmp_path).run(until=5)
    other = Run(tmp_path, **change)
    assert other.training.step == 0
    assert words in other.training.notes[0]
    assert_same(other.run(), Run(**change).run())
    assert Run(tmp_path).training.step == 5  # and leaves the first one's checkpoint


def test_the_length_matters_where_the_rate_depends_on_it(tmp_path):
    Run(tmp_path, rate_schedule="linear").run(until=5)
    assert Run(tmp_path, rate_schedule="linear").training.step == 5
    assert Run(tmp_path, rate_schedule="linear", steps=2 * STEPS).training.step == 0


def test_checkpoints_are_few(tmp_path):
    seen = []
    for seed in range(2 * RUNS):
        run = Run(tmp_path, every=1, seed=seed)
        pattern = f"{run.training.checkpoints.key}*"
        run.training.run(lambda report, pattern=pattern: seen.append(len(list(tmp_path.glob(pattern)))))
    assert max(seen) == 2
    assert len({path.name[:16] for path in tmp_path.iterdir()}) == RUNS


def test_checkpoints_by_the_clock(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("dco_core.checkpoints.time.monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, minutes=5)
    checkpoints.open("0" * 64, 10)
    assert not checkpoints.due(1)
    now[0] = 301
    assert checkpoints.due(2)
    checkpoints.save(2, {"x": torch.zeros(1)}, {})
    assert not checkpoints.due(3)


def flipped(contents, place):
    """With one bit changed."""
    changed = bytearray(contents)
    changed[place] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "a bit of a weight", "a bit of the header"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    Run(tmp_path, every=2).run(until=5)
    newest, before = sorted(tmp_path.iterdir(), reverse=True)
    contents = newest.read_bytes()
    damaged = {
        "truncated": contents[:-7],
        "empty": b"",
        "garbage": b"\xff" * 999,
        "a bit of a weight": flipped(contents, -40),
        "a bit of the header": flipped(contents, contents.index(b"learning_rate") + 20),
    }
    newest.write_bytes(damaged[damage])
    run = Run(tmp_path, every=2)
    assert run.training.step == int(before.stem[-8:]) == 4
    assert f"{newest.name} is damaged" in run.training.notes[0]
    assert_same(run.run(), Run().run())


def test_a_full_disk_is_a_clear_error_and_the_earlier_checkpoint_stays(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    run = Run(tmp_path, every=3)
    with pytest.raises(DCOError, match="No space left on device.*check free space"):
        run.training.run(lambda r: r.step == 4 and monkeypatch.setattr(atomic, "save_file", full))
    monkeypatch.undo()
    again = Run(tmp_path, every=3)
    assert again.training.step == 3
    assert len(list(tmp_path.iterdir())) == 1
    assert_same(again.run(), Run().run())


def test_an_error_in_the_middle_of_a_step_keeps_the_last_whole_one(tmp_path):
    run = Run(tmp_path)
    forward, calls = run.denoiser.forward, []

    def fails(*args):
        calls.append(1)
        if len(calls) == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args)

    run.denoiser.forward = fails
    with pytest.raises(torch.OutOfMemoryError):
        run.training.run()
    again = Run(tmp_path)
    assert 0 < again.training.step == run.training.step < STEPS
    assert_same(again.run(), Run().run())


def test_a_failure_to_save_does_not_hide_why_training_stopped(tmp_path, caplog):
    folder = tmp_path / "taken"
    run = Run(folder)
    folder.write_text("a file where the folder should be")
    run.run(until=2)
    assert "Cannot write" in caplog.text


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")
def test_an_update_that_was_cut_off_is_not_saved(tmp_path):
    run = Run(tmp_path, every=2)
    step, calls = run.training._optimizer.step, []

    def cut_off():
        calls.append(1)
        if len(calls) == 4:
            raise Stop
        step()

    run.training._optimizer.step = cut_off
    with pytest.raises(Stop):
        run.training.run()
    assert Run(tmp_path).training.step == 2


KILLED = """
    import sys
    sys.path[:0] = {path!r}
    from devtools.host_launcher import declare_torchvision_schemas
    schemas = declare_torchvision_schemas()
    import torch
    torch.set_num_threads(1)
    from tests.core.test_training_run import Run
    run = Run({folder!r}, every=1, steps=60)
    print("from", run.training.step, flush=True)
    run.training.run(lambda report: print("step", report.step, flush=True))
    print("done", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_killed_again_and_again_it_ends_the_same(tmp_path):
    """kill -9 from outside, while checkpoints are being written; benchmarks/kill_and_resume.py does it 200 times
    with the command line."""
    code = textwrap.dedent(KILLED.format(path=sys.path, folder=str(tmp_path)))
    starts = []
    for kill_after in (3, 11, 7, None):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            lines = 0
            for line in process.stdout:
                lines += 1
                if line.startswith("from"):
                    starts.append(int(line.split()[1]))
                if lines == kill_after:
                    process.send_signal(signal.SIGKILL)
    assert process.returncode == 0
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert starts[-1] >= 3 + 11 + 7 - 6
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert_same(Run(tmp_path, steps=60), Run(steps=60).run())
    finally:
        torch.set_num_threads(threads)


# --- looking ahead


@pytest.mark.parametrize("window", [2, 5, 16])
@pytest.mark.parametrize(
    "batch", [{}, {"batch_size": 2, "reduction": "batch-mean"}, {"accumulation": 2}], ids=str
)
def test_looking_ahead_changes_nothing_but_the_number_of_calls(window, batch):
    naive, ahead = Run(look_ahead=1, **batch), Run(look_ahead=window, **batch)
    calls = []
    predict = ahead.denoiser.predict
    ahead.denoiser.predict = lambda *args, adapter: calls.append(adapter) or predict(*args, adapter=adapter)
    naive.run()
    ahead.run()
    steps = STEPS * batch.get("accumulation", 1)
    assert calls.count(True) == steps
    assert calls.count(False) == math.ceil(steps / window)
    for a, b in zip(naive.training.history, ahead.training.history, strict=True):
        assert (a.loss, a.margin, a.error_phi) == pytest.approx(
            (b.loss, b.margin, b.error_phi), rel=1e-4, abs=1e-5
        )
    for (name, a), b in zip(naive.made()[0].items(), ahead.made()[0].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def test_the_window_follows_the_room_there_is(monkeypatch):
    run = Run()

    def window(batch_size=1):
        return automatic_window(run.denoiser, run.examples, TrainingConfig(batch_size=batch_size))

    assert run.training.config.look_ahead == window() == 8
    one = estimate(run.denoiser, run.examples, TrainingConfig()).activations
    for free, expected in ((0.62 * one, 3), (0.01 * one, 1), (None, 8)):
        monkeypatch.setattr(look_ahead, "free_memory", lambda device, free=free: free)
        assert window() == expected
    run.denoiser.rows_at_once = lambda shape: 3
    assert window() == 3
    assert window(4) == 1


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
    run = Run(steps=4, rate_schedule=schedule, warmup=warmup, learning_rate=1e-2).run()
    assert [r.learning_rate for r in run.training.history] == pytest.approx([1e-2 * e for e in expected])


def test_the_moving_average_is_the_mean_of_the_path():
    run = Run(ema=0.5, steps=3)
    path = [run.training._copied()]
    run.training.run(lambda report: path.append(run.training._copied()))
    name = next(iter(path[0]))
    expected = path[0][name] * 0.125 + path[1][name] * 0.125 + path[2][name] * 0.25 + path[3][name] * 0.5
    with run.training.result():
        torch.testing.assert_close(run.denoiser.trainable()[name].data, expected)
    assert torch.equal(run.denoiser.trainable()[name].data, path[3][name])


def test_scores_are_margin_and_distance_on_draws_that_training_has_not_seen():
    run = Run(score_every=3).run()
    assert [s.step for s in run.training.scores] == [3, 6, 9]
    assert run.training._held_out.score(9) == run.training.scores[-1]
    held_out = run.training._held_out
    margins, distances = [], []
    with torch.no_grad():
        for d in held_out._draws:
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
    assert len({d.t for d in held_out._draws}) == 16


def test_scoring_changes_nothing_that_is_trained():
    plain, scored = Run(dropout=0.3).run(), Run(dropout=0.3, score_every=2).run()
    assert plain.made()[1] == scored.made()[1]


def test_the_best_is_kept():
    run = Run(score_every=1, keep="best", learning_rate=0.3, steps=25)  # too fast: it gets worse again
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
        watch.tick(0.5)
    watch.tick(60.0)  # once is no trouble
    for _ in range(10):
        watch.tick(0.5)
    with pytest.raises(DCOError, match="Steps now take 6.0 s, 12 times as long.*kept"):
        for _ in range(5):
            watch.tick(6.0)
    fast = SpeedWatch()
    for seconds in [0.01] * 20 + [0.5] * 20:  # fifty times slower and still nothing to fear
        fast.tick(seconds)


def test_a_run_that_crawls_stops_and_goes_on_later(tmp_path, monkeypatch):
    def slow(outcomes, step, *rest):
        report = trainer_report(outcomes, step, *rest)
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
        ({"rate_schedule": "steps"}, "rate_schedule 'steps' is unknown"),
        ({"warmup": -1}, "warmup is -1"),
        ({"ema": 1.0}, "ema is 1"),
        ({"keep": "best"}, "set score_every"),
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


def test_a_recorded_run_cannot_be_resumed(tmp_path):
    run = Run()
    with pytest.raises(DCOError, match="cannot be resumed"):
        Training(
            run.denoiser, run.examples, TrainingConfig(), draws=iter([]), checkpoints=Checkpoints(tmp_path)
        )
