"""A run that stops in whatever way and goes on."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import dco_core.files.atomic as atomic
from dco_core.errors import DCOError
from dco_core.schedules import Schedule
from dco_core.training.checkpoints import RUNS, Checkpoints
from dco_core.training.config import TrainingConfig
from dco_core.training.optimizers import OPTIMIZERS
from dco_core.training.trainer import Training
from tests.small_runs import STEPS, Run, Stop, assert_same

ROOT = Path(__file__).parents[2]  # alone on the path: a host, which other tests put there, has a package `tests` too

CONFIGURATIONS = {
    "dco": {},
    "naive": {"look_ahead": 1},
    "window 4, batch 2, accumulated": {"look_ahead": 4, "batch_size": 2, "gradient_accumulation_steps": 2},
    "dreambooth, cosine, warmup": {"objective": "dreambooth", "lr_scheduler": "cosine", "lr_warmup_steps": 3},
    "adafactor": {"optimizer": "adafactor"},
    "ema and best": {"ema_decay": 0.9, "validation_steps": 2, "keep": "best"},
    "dropout": {"dropout": 0.5},
    "tokens": {"tokens": True},
    "DCO with prior": {"objective": "dco-prior", "prior": True, "look_ahead": 4, "batch_size": 2},
    "held outside of masks and on prompts": {
        "held": True, "mask_prior": 3.0, "preservation_prompts": "one; two; three", "preservation_share": 0.6,
        "look_ahead": 4, "batch_size": 2,
    },
    "DreamBooth, held": {
        "held": True, "objective": "dreambooth", "mask_prior": 3.0, "preservation_prompts": "one; two; three",
    },
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


LIBRARIES = {"adamw-8bit": "bitsandbytes", "prodigy": "prodigyopt"}


@pytest.mark.parametrize("kept", [{}, {"validation_steps": 2, "keep": "best"}], ids=["last", "best"])
@pytest.mark.parametrize("rows", [{"zoo": 1, "cat": 1}, {"zoo": 1, "cat": 2}], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_tokens_whose_names_sort_otherwise_resume_with_their_average_and_states(tmp_path, optimizer, rows, kept):
    """What is read back from a file comes in the file's order: <cat> before <zoo>, and both after the LoRA."""
    if optimizer in LIBRARIES:
        pytest.importorskip(LIBRARIES[optimizer])
    rate = 1.0 if optimizer == "prodigy" else 1e-2
    options = {"tokens": rows, "optimizer": optimizer, "learning_rate": rate, "token_learning_rate": rate}
    options |= {"ema_decay": 0.8} | kept
    whole = Run(**options).run()
    for stop in (2, 5):
        Run(tmp_path, **options).run(until=stop)
    last = Run(tmp_path, **options)
    assert last.training.step == 5
    assert_same(last.run(), whole)
    averaged, plain = whole.made()[0], {f"<{n}>": t["text"] for n, t in whole.tokens.tensors().items()}
    assert not any(torch.equal(averaged[n], t) for n, t in plain.items())  # the average is no idle option here


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_checkpoint_finds_its_parameters_by_name_in_whatever_order_they_come(tmp_path, optimizer):
    options = {"optimizer": optimizer, "ema_decay": 0.8}
    Run(tmp_path, tokens={"zoo": 1, "cat": 1}, **options).run(until=5)
    turned = Run(tmp_path, tokens={"cat": 1, "zoo": 1}, **options)
    assert turned.training.step == 5
    found, expected = turned.run().made()[0], Run(tokens={"zoo": 1, "cat": 1}, **options).run().made()[0]
    for name, tensor in expected.items():  # the sum of the gradient's norm may round otherwise
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


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
        ({"held": True, "mask_prior": 2.0}, "mask_prior 0.0 (now 2.0)"),
        ({"content": "other pictures"}, "other pictures"),
        ({"lr_scheduler": "linear"}, "lr_scheduler constant (now linear)"),
        ({"schedule": Schedule.stable_diffusion("v")}, "another start or another noise schedule"),
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
    Run(tmp_path, lr_scheduler="linear").run(until=5)
    assert Run(tmp_path, lr_scheduler="linear").training.step == 5
    assert Run(tmp_path, lr_scheduler="linear", steps=2 * STEPS).training.step == 0


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
    monkeypatch.setattr("dco_core.training.checkpoints.time.monotonic", lambda: now[0])
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


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "garbage", "a bit of a weight", "a bit of the header"]
)
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
    from tests.small_runs import Run
    run = Run({folder!r}, every=1, steps=60)
    print("from", run.training.step, flush=True)
    run.training.run(lambda report: print("step", report.step, flush=True))
    print("done", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_killed_again_and_again_it_ends_the_same(tmp_path):
    """kill -9 from outside, while checkpoints are being written; benchmarks/kill_and_resume.py does it 200 times
    with the command line."""
    code = textwrap.dedent(KILLED.format(path=[str(ROOT)], folder=str(tmp_path)))
    starts = []
    for kill_after in (3, 11, 7):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            lines = 0
            for line in process.stdout:
                lines += 1
                if line.startswith("from"):
                    starts.append(int(line.split()[1]))
                if lines == kill_after:
                    process.send_signal(signal.SIGKILL)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the killed ones had
    try:
        last = Run(tmp_path, every=1, steps=60)
        starts.append(last.training.step)
        assert_same(last.run(), Run(steps=60).run())
    finally:
        torch.set_num_threads(threads)
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert starts[-1] >= 3 + 11 + 7 - 6


def test_a_recorded_run_cannot_be_resumed(tmp_path):
    run = Run()
    with pytest.raises(DCOError, match="cannot be resumed"):
        Training(
            run.denoiser, run.examples, TrainingConfig(), draws=iter([]), checkpoints=Checkpoints(tmp_path)
        )
