"""Two processes as one run: up to rounding the run of one, and after a kill the run that was not killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from dco_core.cli.commands import main
from dco_core.errors import DCOError
from dco_core.toy_world.references import write_toy_references
from dco_core.training.processes import Processes
from dco_core.training.trainer import Training
from tests.small_runs import Run

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
TRAIN = ["dco_core", "train", "--model", "toy-world", "--beta", "0.01", "--rank", "2", "--learning-rate", "1e-3"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_toy_references(tmp_path_factory.mktemp("pictures"), "toy")


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def command(pictures, output, processes, accumulation, **options):
    start = LAUNCH + [port(), "-m"] if processes > 1 else [sys.executable, "-m"]
    options = {"steps": 6, "checkpoint_every": 2, "gradient_accumulation_steps": accumulation, **options}
    return [*start, *TRAIN, "--data", str(pictures), "--output", str(output), "--device", "cpu"] + [
        f"--{name.replace('_', '-')}={value}" for name, value in options.items()
    ]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def trained(pictures, output, processes, accumulation, **options):
    arguments = command(pictures, output, processes, accumulation, **options)
    if processes == 1:  # this one will do
        assert main(arguments[arguments.index("train") :]) == 0
        return load_file(output), ""
    done = subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return load_file(output), done.stdout


def deviation(a, b):
    assert a.keys() == b.keys()
    return max(float((a[n].float() - b[n].float()).norm() / b[n].float().norm().clamp(min=1e-6)) for n in a)


def test_two_processes_are_one_with_twice_the_accumulation(pictures, tmp_path):
    """Also with dropout, whose random numbers are a function of the micro-batch, and scores on validation draws."""
    options = {"dropout": 0.2, "validation_steps": 3}
    one, _ = trained(pictures, tmp_path / "one.safetensors", 1, 4, **options)
    two, printed = trained(pictures, tmp_path / "two.safetensors", 2, 2, **options)
    half, _ = trained(pictures, tmp_path / "half.safetensors", 1, 2, **options)
    assert deviation(two, one) < 1e-3 < 0.02 < deviation(half, one)
    assert printed.count("Saved") == 1  # the second process says nothing


def test_a_killed_process_ends_all_and_the_run_goes_on(pictures, tmp_path):
    whole, _ = trained(pictures, tmp_path / "whole.safetensors", 2, 1, steps=40)
    output = tmp_path / "killed.safetensors"
    run = subprocess.Popen(
        command(pictures, output, 2, 1, steps=40), cwd=ROOT, env=environment(), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    checkpoints = Path(f"{output}.checkpoints")
    deadline = time.monotonic() + 240
    while not list(checkpoints.glob("*.safetensors")) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [p for p in psutil.Process(run.pid).children(recursive=True) if "dco_core" in p.cmdline()]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    assert run.wait(timeout=120) != 0
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in workers)
    assert not output.exists()
    again, printed = trained(pictures, output, 2, 1, steps=40)
    assert "going on from there" in printed
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_micro_batches_that_cannot_be_shared_out_are_refused():
    run = Run(gradient_accumulation_steps=3)
    with pytest.raises(DCOError, match="gradient_accumulation_steps is 3, use a multiple of 2"):
        Training(run.denoiser, run.examples, run.training.config, processes=Processes(0, 2))
