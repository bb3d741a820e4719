"""The command line beside the trainer node: the same training gives the same LoRA, and both read kept errors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from host_graph import Graph, saved_file
from safetensors import safe_open
from safetensors.torch import load_file

from dco_core.toy_world.bases import DEFAULT_BASE
from dco_core.toy_world.references import write_toy_references
from devtools.environment import ROOT, comfyui_path

# as devtools/host_launcher.py starts the host where there is no GPU
START = (
    "import sys; from devtools.host_launcher import declare_torchvision_schemas as declare; kept = declare();"
    "from dco_core.cli.commands import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def references(host):
    return write_toy_references(host.base_dir / "input" / "shell_references", "toy")


def by_node(host, base, g, size, **changes):
    """(the file, what the node says)."""
    data = g.add("DCOLoadDataset", folder="shell_references")
    values = {
        "steps": 3, "rank": 2, "learning_rate": 1e-2, "seed": 5, "resolution": size, "crop": "square",
        "learned_tokens": "with the LoRA", "learned_tokens__token_learning_rate": 5e-3,
        "learned_tokens__initializers": "", "learned_tokens__vectors": 0, "timestep_sampling": "logit-normal",
        "caption_dropout": 0.2, "look_ahead": 2,
    } | changes  # fmt: skip
    trainer = g.trainer(base, [data, 0], [data, 1], **values)
    outputs = host.client.run(g.prompt)
    return host.base_dir / "output" / saved_file(outputs, trainer), outputs[trainer]["text"][0]


def by_command(data, output, model, size, threads):
    options = {
        "model": model, "data": data, "output": output, "steps": 3, "rank": 2, "learning-rate": 1e-2, "seed": 5,
        "resolution": size, "learned-tokens": "with-lora", "token-lr": 5e-3, "timestep-sampling": "logit-normal",
        "caption-dropout": 0.2, "look-ahead": 2, "batch-size": 2, "beta": 0.03, "device": "cpu", "threads": threads,
    }  # fmt: skip
    arguments = [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(
        [sys.executable, "-c", START, "train", "--square", *arguments], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"COMFYUI_PATH": str(comfyui_path())}, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_node_and_command_line_make_the_same_lora_and_tokens(host, references, tmp_path):
    """Of a checkpoint: tests/engine/test_command_line_models.py."""
    g = Graph()
    path, _ = by_node(host, g.toy(DEFAULT_BASE), g, 256, name="node_toy")
    output = tmp_path / "shell.safetensors"
    by_command(references, output, "toy-world", 256, torch.get_num_threads())
    expected, found = load_file(path), load_file(output)
    assert expected.keys() == found.keys()
    assert any(key.startswith("bundle_emb.toy.") for key in found)
    different = [key for key, tensor in expected.items() if not torch.equal(found[key], tensor)]
    assert different == []
    with safe_open(path, "pt") as ours, safe_open(output, "pt") as theirs:
        for key in ("dco.tokens", "modelspec.trigger_phrase", "dco.base_words", "ss_base_model_version"):
            assert ours.metadata()[key] == theirs.metadata()[key]


def test_another_run_of_the_node_reads_what_the_base_model_made_of_the_draws(host, references):
    def run(name, **changes):
        g = Graph()
        return by_node(host, g.toy(), g, 256, name=name, seed=6, **changes)

    path, text = run("first_errors")
    folder = host.base_dir / "output" / "dco_reference_cache"
    assert "from an earlier run" not in text and len(list(folder.iterdir())) >= 1
    again, printed = run("second_errors", rank=3, objective__beta=0.5, steps=4)
    assert "The base model's errors on 4 batches are there from an earlier run." in printed
    without, silent = run("no_errors", rank=3, objective__beta=0.5, steps=4, reference_cache=False)
    assert "from an earlier run" not in silent
    found, expected = load_file(again), load_file(without)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
