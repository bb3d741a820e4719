"""`--start-from` and `--stream-weights` of `python -m dco_core train`: what they change, and what they refuse."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dco_core.cli.commands import main
from dco_core.cli.config_file import read_options
from dco_core.lora import LoraLayer, LoraWeights, read_lora, write_lora
from dco_core.toy_world.references import write_toy_references

MODULE = "lora_unet_down_1_attn2_to_q"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy_references(tmp_path_factory.mktemp("toy") / "subject", "toy")


def train(data, output, *options, steps=2, rate=1e-2, rank=3):
    return main([
        "train", "--model", "toy-world", "--data", str(data), "--output", str(output), "--steps", str(steps),
        "--learning-rate", str(rate), "--rank", str(rank), "--beta", "0.04", "--validation-steps", "0",
        "--checkpoint-every", "1", *options,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    """A LoRA with a learned token, of rank 3 and alpha 1.5."""
    output = tmp_path_factory.mktemp("first") / "first.safetensors"
    assert train(data, output, "--learned-tokens", "with-lora", "--alpha", "1.5") == 0
    return output


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_it_goes_on_with_its_layers_ranks_alphas_and_tokens(first, data, tmp_path, capsys):
    """A step at a rate of almost nothing moves little, whatever rank and layers are asked for beside it."""
    output = tmp_path / "a.safetensors"
    given = ["--start-from", str(first), "--layers", "all linear", "--rank", "9"]
    assert train(data, output, *given, steps=1, rate=1e-7) == 0
    started, found = load_file(first), load_file(output)
    assert started.keys() == found.keys()
    for key, tensor in started.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-5, msg=key)
    assert any(not torch.equal(found[key], tensor) for key, tensor in started.items())
    (rows,) = (key for key in started if key.startswith("bundle_emb.toy."))
    assert torch.equal(found[rows], started[rows])  # read, and not trained
    told = header(output)
    assert told["ss_network_dim"] == "3" and float(told["ss_network_alpha"]) == 1.5
    assert 'reads <toy> as the word "toy"' not in capsys.readouterr().out


def test_its_tokens_train_on(first, data, tmp_path):
    given = ["--start-from", str(first), "--learned-tokens", "with-lora", "--token-learning-rate", "1e-7"]
    assert train(data, tmp_path / "a.safetensors", *given, steps=1, rate=1e-7) == 0
    before, after = load_file(first), load_file(tmp_path / "a.safetensors")
    (rows,) = (key for key in before if key.startswith("bundle_emb.toy."))
    started, found = before[rows], after[rows]
    torch.testing.assert_close(found, started, rtol=0, atol=1e-5)
    assert not torch.equal(found, started)


def test_a_file_of_options_names_it_and_a_stopped_run_goes_on_from_it(first, data, tmp_path, capsys):
    whole, again = tmp_path / "whole.safetensors", tmp_path / "again.safetensors"
    assert train(data, whole, "--start-from", str(first)) == 0
    assert train(data, again, "--start-from", str(first), steps=1) == 0
    assert main(["train", "--config", f"{again}.toml", "--steps", "2"]) == 0
    assert "Found the checkpoint of step 1: going on" in capsys.readouterr().out
    one, other = load_file(whole), load_file(again)
    assert all(torch.equal(one[key], other[key]) for key in one)
    without = tmp_path / "without.safetensors"
    assert train(data, without) == 0
    assert any(not torch.equal(one[key], tensor) for key, tensor in load_file(without).items())


def lora(path, key, shape=(128, 128), **more):
    layer = LoraLayer(torch.full((2, shape[1]), 0.1), torch.full((shape[0], 2), 0.1))
    write_lora(path, LoraWeights({key: layer}, **more), keys={key: key})
    return path


def test_what_does_not_fit_is_one_sentence(data, tmp_path, capsys):
    def refused(*options):
        assert train(data, tmp_path / "a.safetensors", *options) == 1
        printed = capsys.readouterr().err
        assert printed.startswith("error: ") and printed.count("\n") == 1
        assert not (tmp_path / "a.safetensors").exists()
        return printed

    assert "no.safetensors" in refused("--start-from", "no.safetensors")
    other = lora(tmp_path / "other.safetensors", "lora_unet_mid_block_attn_to_q")
    assert "does not belong to this model (the Toy World)" in refused("--start-from", str(other))
    text = lora(tmp_path / "text.safetensors", "lora_te_layers_0_to_q")
    assert "also changes the text encoder" in refused("--start-from", str(text))
    alone = ["--learned-tokens", "alone"]
    assert "tokens are to be learned alone" in refused("--start-from", str(other), *alone)
    tensors = load_file(other) | {"lora_unet_x.diff_b": torch.ones(4)}
    save_file(tensors, tmp_path / "bias.safetensors")
    assert "also changes biases or norms" in refused("--start-from", str(tmp_path / "bias.safetensors"))
    assert "far too small to be streamed: leave stream_weights out" in refused("--stream-weights", "on")


def test_the_toy_world_takes_the_other_choices_and_they_are_written_down(data, tmp_path, first):
    from dco_core.cli.commands import _parser

    assert train(data, tmp_path / "a.safetensors", "--stream-weights", "off", "--start-from", str(first)) == 0
    parser = _parser().parse_args(["train"]).parser
    written = read_options(tmp_path / "a.safetensors.toml", parser)
    assert written["stream_weights"] == "off" and written["start_from"] == first
    assert read_lora(tmp_path / "a.safetensors").layers
