"""What the command line says of models that ComfyUI reads, where there is none or its options do not fit."""

import subprocess
import sys

import pytest

from dco_core.cli import commands
from dco_core.models import host_model
from dco_core.toy_world.references import write_toy_references
from devtools.environment import ROOT


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy_references(tmp_path_factory.mktemp("references") / "subject", "toy")


def train(data, output, *arguments):
    return commands.main(["train", "--data", str(data), "--output", str(output), "--steps", "1", *arguments])


@pytest.mark.parametrize(
    ("arguments", "path", "words"),
    [
        (["--model", "checkpoint:a.safetensors"], None, "set COMFYUI_PATH to its folder, the one with main.py in it"),
        (["--model", "checkpoint:a.safetensors"], " ", "set COMFYUI_PATH to its folder"),
        (["--model", "checkpoint:a.safetensors"], "/nowhere", "COMFYUI_PATH is /nowhere, which is no ComfyUI: name"),
        (["--model", "unet:a.safetensors"], None, "is a network without text encoder and VAE: add --clip FILE"),
        (["--model", "unet:a.safetensors", "--clip", "b"], None, "add --vae FILE"),
        (["--model", "checkpoint:"], None, "diffusers:FOLDER, checkpoint:FILE or unet:FILE"),
        (["--model", "toy-world", "--clip", "b"], None, "--clip, --clip-type and --vae are for models that Com"),
        (["--model", "toy-world", "--vae", "b"], None, "not toy-world: leave them out"),
    ],
)
def test_what_is_missing_is_one_sentence(arguments, path, words, data, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    if path is not None:
        monkeypatch.setenv("COMFYUI_PATH", path)
    assert train(data, tmp_path / "a.safetensors", *arguments) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and words in printed and printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_pack_in_custom_nodes_finds_its_own_comfyui(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    monkeypatch.setattr(host_model, "_ROOT", tmp_path / "custom_nodes" / "ComfyUI-DCO")
    assert host_model._comfyui("--model checkpoint:") == tmp_path.resolve()


def test_one_core_serves_both_and_the_command_line_imports_no_host_by_itself(tmp_path):
    """The pack's modules under its second name are the very modules of dco_core."""
    code = (
        "import sys, dco_core.cli.commands\n"
        "assert not {'comfy', 'folder_paths', 'dco_pack'} & set(sys.modules)\n"
        "from dco_core.models import host_model\n"
        f"assert host_model._pack_module('nodes.host', {str(tmp_path)!r}).__name__ == 'dco_pack.nodes.host'\n"
        "import dco_core.errors, dco_core.lora.keys as ours, importlib\n"
        "theirs = importlib.import_module('dco_pack.dco_core.lora.keys')\n"
        "assert theirs is ours and ours.__spec__.name == ours.__name__ == 'dco_core.lora.keys'\n"
        "assert importlib.import_module('dco_pack.dco_core').DCOError is dco_core.errors.DCOError\n"
        "import dco_core.lora.flux_keys\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
