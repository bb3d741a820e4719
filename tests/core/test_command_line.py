"""`python -m dco_core train` on the Toy World, as a user runs it."""

import hashlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dco_core import compiling
from dco_core.command_line import main
from dco_core.toy_world.references import write_toy_references
from devtools.environment import ROOT

STEPS = 60  # enough that a signal within 0.1 s of the first checkpoint comes in the middle


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy_references(tmp_path_factory.mktemp("toy") / "subject", "toy")


def command(data, output, **options):
    values = {"model": "toy-world", "data": data, "output": output, "steps": STEPS, "seed": 3, "learning-rate": 1e-3,
              "rank": 4, "checkpoint-every": 2, "threads": 1, **options}  # fmt: skip
    arguments = [x for name, value in values.items() for x in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "dco_core", "train", *arguments]


def run(arguments, **options):
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The file of a run that was never stopped."""
    output = tmp_path_factory.mktemp("whole") / "toy.safetensors"
    done = run(command(data, output))
    assert done.returncode == 0, done.stderr
    assert f"Saved {output} after {STEPS} steps." in done.stdout
    assert re.search(r"Peak memory: \d.* [MG]B of the whole process", done.stdout)
    assert f"step {STEPS}/{STEPS}  loss " in done.stderr
    return output


def test_the_file_is_a_lora_with_its_header(whole):
    with safe_open(whole, "pt") as file:
        header, keys = file.metadata(), list(file.keys())
    assert header["ss_steps"] == str(STEPS)
    assert header["ss_base_model_version"] == "ToyWorld"
    assert header["modelspec.trigger_phrase"] == "toy"
    assert float(header["dco.w_rg"]) == 1.4
    assert all(key.startswith("lora_unet_") for key in keys)
    assert any("attn" in key for key in keys)


def test_the_same_command_gives_the_same_bytes(whole, data, tmp_path):
    output = tmp_path / "toy.safetensors"
    assert run(command(data, output)).returncode == 0
    assert digest(output) == digest(whole)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_stopped_and_run_again_it_ends_with_the_same_bytes(whole, data, tmp_path, number):
    output = tmp_path / "toy.safetensors"
    folder = tmp_path / "toy.safetensors.checkpoints"
    with subprocess.Popen(
        command(data, output), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not (folder.is_dir() and list(folder.glob("*.safetensors"))):
            time.sleep(0.002)
        time.sleep(random.random() * 0.1)
        process.send_signal(number)
        error = process.stderr.read()
    if process.returncode == 0 or (number == signal.SIGKILL and output.exists()):
        assert digest(output) == digest(whole)  # never half a file
        pytest.skip("it was faster than the signal")
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "The same command goes on" in error
    assert not output.exists()
    again = run(command(data, output))
    assert again.returncode == 0, again.stderr
    assert "Found the checkpoint of step " in again.stdout
    assert digest(output) == digest(whole)
    assert len(list(folder.iterdir())) == 1


def test_finished_it_is_there_at_once_and_changed_it_starts_anew(whole, data, tmp_path):
    output = tmp_path / "toy.safetensors"
    short = {"steps": 4}
    assert run(command(data, output, **short)).returncode == 0
    first = digest(output)
    again = run(command(data, output, **short))
    assert "Found the checkpoint of step 4: finished." in again.stdout
    assert digest(output) == first
    longer = run(command(data, output))
    assert "Found the checkpoint of step 4: going on from there." in longer.stdout
    assert digest(output) == digest(whole)
    other = run(command(data, output, seed=4))
    assert "Starting anew: the earlier run had seed 3 (now 4)" in other.stdout
    assert digest(output) != digest(whole)


@pytest.mark.skipif(os.name != "posix", reason="limits file sizes")
def test_a_disk_without_room_is_a_clear_error_and_the_earlier_checkpoint_stays(whole, data, tmp_path):
    output = tmp_path / "toy.safetensors"
    assert run(command(data, output, steps=4)).returncode == 0
    folder = tmp_path / "toy.safetensors.checkpoints"
    (before,) = folder.iterdir()
    contents = digest(before)

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    full = run(command(data, output), preexec_fn=little_room)
    assert full.returncode == 1
    assert "error: Cannot write " in full.stderr
    assert "check free space" in full.stderr
    assert [digest(path) for path in folder.iterdir()] == [contents]
    assert run(command(data, output)).returncode == 0
    assert digest(output) == digest(whole)


def without_captions(folder):
    for path in folder.glob("*.txt"):
        path.unlink()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "flux"}, "--model flux is unknown: use toy-world, toy-world:flow, or diffusers:FOLDER"),
        ({"data": "/nowhere"}, "/nowhere"),
        ({"output": "toy.pt"}, "write FILE.safetensors"),
        ({"output": f"{__file__}/toy.safetensors"}, "cannot be written"),
        ({"steps": 0}, "steps is 0"),
        ({"objective": "sgd"}, "objective 'sgd' is unknown"),
        ({"rank": 0}, "rank is 0"),
        ({"layers": "("}, "regular expression"),
        ({"checkpoint-every": -1}, "every -1 steps"),
        ({"resolution": 64}, "draws 512 px, not 64"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(data, tmp_path, capsys, options, words):
    assert main(command(**{"data": data, "output": tmp_path / "toy.safetensors", **options})[3:]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert words in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_gradient_checkpointing_and_a_log_do_not_change_what_is_learned(whole, data, tmp_path, capsys):
    def activations():
        return float(re.search(r"\(([\d.]+) MB of activations\)", capsys.readouterr().out).group(1))

    output, log = tmp_path / "toy.safetensors", tmp_path / "log"
    assert main(command(data, output, steps=1)[3:]) == 0
    kept = activations()
    options = ["--gradient-checkpointing", "--log-dir", str(log)]
    output = tmp_path / "again.safetensors"
    assert main([*command(data, output)[3:], *options]) == 0
    assert activations() < kept
    expected, found = load_file(whole), load_file(output)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-5)
    curves = EventAccumulator(str(log))
    curves.Reload()
    assert [event.step for event in curves.Scalars("train/loss")] == list(range(1, STEPS + 1))


def test_scores_and_the_kept_adapter_are_reported(data, tmp_path, capsys):
    options = ["--score-every", "2", "--keep", "best", "--ema", "0.9"]
    assert main([*command(data, tmp_path / "toy.safetensors", steps=4)[3:], *options]) == 0
    assert re.search(r"Held-out margin: best -?[\d.]+ at step [24], last ", capsys.readouterr().out)


def test_compiled_blocks_are_asked_for(data, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(compiling, "compile_blocks", lambda network: asked.append(network))
    assert main([*command(data, tmp_path / "toy.safetensors", steps=1)[3:], "--compile"]) == 0
    assert len(asked) == 1


def test_pictures_without_captions_are_named(tmp_path):
    folder = write_toy_references(tmp_path / "subject", "toy")
    without_captions(folder)
    done = run(command(folder, tmp_path / "toy.safetensors"))
    assert done.returncode == 1
    assert "4 of 4 pictures" in done.stderr
    assert "0.png" in done.stderr


def test_help_names_every_option():
    text = run([sys.executable, "-m", "dco_core", "train", "--help"]).stdout
    for option in (
        "--model",
        "--data",
        "--steps",
        "--seed",
        "--checkpoint-every",
        "--output",
        "--look-ahead",
        "--beta",
    ):
        assert option in text
