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
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dco_core.cli import train as train_command
from dco_core.cli.commands import main
from dco_core.data import folders
from dco_core.errors import DCOError
from dco_core.evidence.pictures import draw, with_lora
from dco_core.lora import read_lora
from dco_core.losses import REDUCTIONS, WEIGHTINGS
from dco_core.models.loading import PRECISIONS
from dco_core.network import compiling
from dco_core.network.lora_layers import LAYERS
from dco_core.toy_world.image_model import ToyWorldModel
from dco_core.toy_world.references import write_toy_references
from dco_core.training.config import AUTOMATIC_BETA, KEPT, OBJECTIVE_NAMES
from dco_core.training.optimizers import LR_SCHEDULERS, OPTIMIZERS
from devtools.environment import ROOT

STEPS = 40  # enough that a signal within 0.1 s of the first checkpoint comes in the middle


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy_references(tmp_path_factory.mktemp("toy") / "subject", "toy")


def command(data, output, **options):
    values = {"model": "toy-world", "data": data, "output": output, "steps": STEPS, "seed": 3, "learning-rate": 1e-3,
              "rank": 4, "checkpoint-every": 2, "threads": 1, "beta": 0.04, **options}  # fmt: skip
    given = {name: value for name, value in values.items() if value is not None}
    arguments = [x for name, value in given.items() for x in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "dco_core", "train", *arguments]


def run(arguments, **options):
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def here(arguments, capsys):
    """`run` without a process of its own, where no test asks for one."""
    capsys.readouterr()
    status = main(arguments[3:])
    printed = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, status, printed.out, printed.err)


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


def test_the_same_command_gives_the_same_bytes(whole, data, tmp_path, capsys):
    output = tmp_path / "toy.safetensors"
    assert here(command(data, output), capsys).returncode == 0
    assert digest(output) == digest(whole)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_stopped_and_run_again_it_ends_with_the_same_bytes(whole, data, tmp_path, capsys, number):
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
    again = here(command(data, output), capsys)
    assert again.returncode == 0, again.stderr
    assert "Found the checkpoint of step " in again.stdout
    assert digest(output) == digest(whole)
    assert len(list(folder.iterdir())) == 1
    there = {output.name, folder.name, f"{output.name}.toml", "dco_reference_cache"}
    assert {path.name for path in tmp_path.iterdir()} == there


def test_finished_it_is_there_at_once_and_changed_it_starts_anew(data, tmp_path, capsys):
    def trained(output, steps, **changes):
        return command(data, output, steps=steps, beta=None, **changes)  # found on the pictures, once a run

    output, whole = tmp_path / "toy.safetensors", tmp_path / "whole" / "toy.safetensors"
    assert here(trained(whole, 10), capsys).returncode == 0
    assert here(trained(output, 4), capsys).returncode == 0
    first = digest(output)
    again = here(trained(output, 4), capsys)
    assert "Found the checkpoint of step 4: finished." in again.stdout
    assert digest(output) == first
    longer = here(trained(output, 10), capsys)
    assert "Found the checkpoint of step 4: going on from there." in longer.stdout
    assert digest(output) == digest(whole)
    refused = here(trained(output, 10, seed=4), capsys)
    assert refused.returncode == 1 and f"{output} is of another run and would be lost" in refused.stderr
    assert digest(output) == digest(whole)
    other = here([*trained(output, 10, seed=4), "--overwrite"], capsys)
    assert "Starting anew: the earlier run had seed 3 (now 4)" in other.stdout
    assert digest(output) != digest(whole)


@pytest.mark.skipif(os.name != "posix", reason="limits file sizes")
def test_a_disk_without_room_is_a_clear_error_and_the_earlier_checkpoint_stays(whole, data, tmp_path, capsys):
    output = tmp_path / "toy.safetensors"
    assert here(command(data, output, steps=4), capsys).returncode == 0
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
    assert here(command(data, output), capsys).returncode == 0
    assert digest(output) == digest(whole)


def without_captions(folder):
    for path in folder.glob("*.txt"):
        path.unlink()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "flux"}, "--model flux is unknown: use toy-world, toy-world:epsilon, toy-world:flow, diffusers:"),
        ({"data": "/nowhere"}, "/nowhere"),
        ({"output": "toy.pt"}, "write FILE.safetensors"),
        ({"output": f"{__file__}/toy.safetensors"}, "cannot be written"),
        ({"steps": 0}, "steps is 0"),
        ({"objective": "sgd"}, "objective 'sgd' is unknown"),
        ({"rank": 0}, "rank is 0"),
        ({"layers": "("}, "regular expression"),
        ({"checkpoint-every": -1}, "every -1 steps"),
        ({"resolution": 64}, "draws 256 px, not 64"),
        ({"resolution": 0}, "The resolution is 0 px: use at least 16"),
        ({"resolution": 7}, "The resolution is 7 px: use at least 16"),
        ({"alpha": 0}, "alpha is 0"),
        ({"threads": -1}, "--threads is -1: use at least 1"),
        ({"threads": 0}, "--threads is 0: use at least 1"),
        ({"device": "foo"}, "--device foo is unknown: use cpu, cuda"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"device": "meta"}, "--device meta cannot be used"),
        ({"token-learning-rate": 1e-3}, "--token-learning-rate is for learned tokens, and none are learned"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(data, tmp_path, capsys, options, words):
    assert main(command(**{"data": data, "output": tmp_path / "toy.safetensors", **options})[3:]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert words in printed
    assert printed.count("\n") == 1
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
    options = ["--validation-steps", "2", "--keep", "best", "--ema-decay", "0.9"]
    assert main([*command(data, tmp_path / "toy.safetensors", steps=4)[3:], *options]) == 0
    assert re.search(r"Validation margin: best -?[\d.]+ at step [24], last ", capsys.readouterr().out)


def test_compiled_blocks_are_asked_for(data, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(compiling, "compile_blocks", lambda network: asked.append(network))
    assert main([*command(data, tmp_path / "toy.safetensors", steps=1)[3:], "--compile"]) == 0
    assert len(asked) == 1


def test_pictures_without_captions_are_named(tmp_path, capsys):
    folder = write_toy_references(tmp_path / "subject", "toy")
    without_captions(folder)
    done = here(command(folder, tmp_path / "toy.safetensors"), capsys)
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
    for choice in (
        *OPTIMIZERS, *LR_SCHEDULERS, *WEIGHTINGS, *REDUCTIONS, *LAYERS, *OBJECTIVE_NAMES, *KEPT, *AUTOMATIC_BETA,
    ):  # fmt: skip
        assert choice.replace("-", "") in re.sub(r"[-\s]+", " ", text.replace("-", "")), choice
    described = re.split(r"^  (?=-)", text, flags=re.MULTILINE)[1:]
    assert [entry for entry in described if not re.search(r"(\n {24}|\S {2,})\w", entry)] == []


def no_model(*_):
    raise AssertionError("a model was loaded")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": "/nowhere"}, "/nowhere"),
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0}, "alpha is 0"),
        ({"dropout": 1}, "dropout is 1"),
        ({"name-filter": "("}, "regular expression"),
        ({"optimizer": "prodigy"}, "pip install prodigyopt` with the same Python"),
        ({"resolution": 7}, "7 px"),
        ({"class-data": "/nowhere"}, "Class images are for"),
        ({"objective": "dreambooth-prior", "class-data": "/nowhere"}, "/nowhere"),
        ({"class-images": 0}, "class_images is 0"),
        ({"log-dir": "log"}, "pip install tensorboard"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_loaded(data, tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.setattr(train_command, "load_model", no_model)
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(command(**{"data": data, "output": tmp_path / "toy.safetensors", **options})[3:]) == 1
    assert words in capsys.readouterr().err


def test_a_file_of_others_is_not_replaced_without_being_asked(whole, data, tmp_path, capsys, monkeypatch):
    output = tmp_path / "toy.safetensors"
    arguments = command(data, output, steps=2)[3:]
    save_file({"x": torch.zeros(1)}, output)
    before = digest(output)
    with monkeypatch.context() as patch:
        patch.setattr(train_command, "load_model", no_model)
        assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert f"{output} was not written by this command and would be lost" in printed and "--overwrite" in printed
    assert digest(output) == before and list(tmp_path.iterdir()) == [output]
    assert main([*arguments, "--overwrite"]) == 0
    first = digest(output)
    assert main(command(data, output, steps=3)[3:]) == 0  # the same run, longer
    assert main(command(data, output, steps=2, seed=9)[3:]) == 1
    assert main([*command(data, output, steps=2, seed=9)[3:], "--overwrite"]) == 0
    other = digest(output)
    assert main(arguments) == 1  # its checkpoint is there, but the file is the other run's
    assert digest(output) == other
    assert main([*arguments, "--overwrite"]) == 0
    assert digest(output) == first


def test_control_codes_in_captions_and_names_do_not_reach_the_terminal(tmp_path, capsys):
    folder = write_toy_references(tmp_path / "subject", "toy")
    (folder / "0.txt").write_text("a \x1b[31mred <t\x9boy> on \u202egrass", encoding="utf-8")
    output = tmp_path / "to\x1by.safetensors"
    done = here(command(folder, output, steps=1), capsys)
    assert done.returncode == 0, done.stderr
    printed = done.stdout + done.stderr
    assert "\\x1b[31mred" in printed and "to\\x1by.safetensors" in printed
    assert all(c.isprintable() or c == "\n" for c in printed)
    error = DCOError("There is no \x1b]0;picture\n.png")
    assert str(error) == "There is no \\x1b]0;picture\\n.png"


def test_words_that_a_console_cannot_show_do_not_stop_a_run(tmp_path):
    folder = write_toy_references(tmp_path / "subject", "toy")
    (folder / "0.txt").write_text("a <\u72d7>", encoding="utf-8")
    done = run(command(folder, tmp_path / "toy.safetensors", steps=1), env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "\\u72d7" in done.stdout


def test_objectives_without_a_margin_do_not_print_one(data, tmp_path, capsys):
    assert main(command(data, tmp_path / "a.safetensors", steps=1, objective="dreambooth")[3:]) == 0
    printed = capsys.readouterr()
    assert "step 1/1  loss " in printed.err and "margin" not in printed.err and "gate" not in printed.err
    assert main(command(data, tmp_path / "b.safetensors", steps=1, objective="dco")[3:]) == 0
    assert re.search(r"margin -?\d.*gate 0\.\d", capsys.readouterr().err)


def test_markers_are_reported_as_read_as_words(data, tmp_path, capsys):
    assert main(command(data, tmp_path / "toy.safetensors", steps=1)[3:]) == 0
    assert 'reads <toy> as the word "toy". To learn a new token for it, add --learned-tokens' in capsys.readouterr().out


def test_large_pictures_are_reported_as_made_smaller(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(folders, "MAX_PIXELS", 200 * 200)
    assert main(command(data, tmp_path / "toy.safetensors", steps=1)[3:]) == 0
    assert "0.png has 256 x 256 px and was read at 200 x 200 px." in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_toy_world_trains_in_half_precision(whole, data, tmp_path, precision):
    output = tmp_path / "toy.safetensors"
    assert main(command(data, output, precision=precision, device="cpu")[3:]) == 0
    expected, found = load_file(whole), load_file(output)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    differences = [(found[key] - tensor).norm() / tensor.norm() for key, tensor in expected.items() if tensor.norm()]
    assert 0 < max(differences) < 0.5


def test_the_device_of_the_toy_world_does_not_change_its_bytes_on_the_cpu(whole, data, tmp_path):
    output = tmp_path / "toy.safetensors"
    assert main(command(data, output, device="cpu", precision="fp32")[3:]) == 0
    assert digest(output) == digest(whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("precision", "objective"), [("fp32", "dco"), ("bf16", "mapo")])
def test_the_toy_world_trains_and_samples_on_a_gpu(data, tmp_path, capsys, precision, objective):
    files = {}
    for device in ("cuda", "cpu"):
        output = tmp_path / f"{device}.safetensors"
        options = {"precision": precision, "objective": objective, "generation-steps": 4, "device": device}
        assert main(command(data, output, **options)[3:]) == 0
        assert ("of GPU memory" in capsys.readouterr().out) == (device == "cuda")
        files[device] = load_file(output)
    worst = max((files["cuda"][k] - t).norm() / t.norm() for k, t in files["cpu"].items() if t.norm())
    assert worst < (0.05 if precision == "fp32" else 0.5)
    model = ToyWorldModel("cuda", PRECISIONS[precision])
    denoiser = with_lora(model, read_lora(tmp_path / "cuda.safetensors").layers)
    pictures = draw(model, denoiser, ["a photo of a toy"], 1.4, w_text=2.0, steps=4, pictures=2, seed=0)
    assert pictures.shape == (2, 256, 256, 3) and torch.isfinite(pictures).all() and pictures.device.type == "cpu"
