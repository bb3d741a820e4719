"""What ordinary files do not hold: zeros, huge values and shapes, names of control codes, words of unused LoRAs."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dco_core.cli.commands import main
from dco_core.errors import DCOError, printable
from dco_core.lora import LoraLayer, LoraWeights, from_tensors, merge, read_lora, tensors_sha256, write_lora
from dco_core.merging import NPLora, Size, reduce

KEY = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"


def layer(seed, rank=3, alpha=None, factor=1.0):
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, 8, generator=generator), torch.randn(6, rank, generator=generator)
    return LoraLayer(factor * down, factor * up, alpha)


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    return printed


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("size", [Size(rank=2), Size(max_error=0.1), Size(max_error=0.0)])
def test_a_lora_that_was_never_trained_is_made_smaller_without_trouble(dtype, size):
    zero = LoraLayer(torch.randn(3, 8), torch.zeros(6, 3))
    small = reduce(LoraWeights({KEY: zero}), size, dtype).layers[KEY]
    assert not small.delta().any() and small.rank <= 3


@pytest.mark.parametrize("options", [[], ["--rank", "1"], ["--dtype", "bf16"], ["--method", "ties"]], ids=str)
@pytest.mark.parametrize("factor", [1e9, 1e19, 1e37])
def test_values_that_no_lora_has_are_refused(tmp_path, capsys, options, factor):
    path, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    write_lora(path, LoraWeights({KEY: layer(0, factor=factor)}))
    assert "no LoRA does" in refused(capsys, "merge", path, "--output", out, *options)
    assert "no LoRA does" in refused(capsys, "inspect", path)
    with pytest.raises(DCOError, match="use smaller weights"):
        merge([LoraWeights({KEY: layer(0)})], [1e30])
    assert not out.exists()


def test_small_parts_of_a_huge_module_are_refused_before_it_is_made(tmp_path, capsys):
    half = torch.ones(100_000, 1)
    save_file({f"{KEY}.lokr_w1": half, f"{KEY}.lokr_w2": half.clone()}, tmp_path / "a.safetensors")
    printed = refused(capsys, "merge", tmp_path / "a.safetensors", "--output", tmp_path / "out.safetensors")
    assert "37 GiB" in printed


def test_an_embedding_without_numbers_is_none():
    weights = from_tensors(
        {f"{KEY}.lora_down.weight": torch.ones(1, 8), f"{KEY}.lora_up.weight": torch.ones(6, 1),
         "bundle_emb.dog.clip_l": torch.ones(2**62, 0)}
    )  # fmt: skip
    assert list(weights.layers) == [KEY]
    with pytest.raises(DCOError, match="no LoRA"):
        from_tensors({"bundle_emb.dog.clip_l": torch.ones(2**62, 0)})


def test_names_do_not_steer_the_terminal(tmp_path, capsys):
    assert printable("a\nb\x1b[2J\u202e é 日") == "a\\nb\\x1b[2J\\u202e é 日"
    path = tmp_path / "a.safetensors"
    pair = {f"{KEY}.lora_down.weight": torch.ones(1, 8), f"{KEY}.lora_up.weight": torch.ones(6, 1)}
    save_file(pair | {"x\nerror: b.lora_down.weight": torch.ones(1, 1)}, path)
    assert "x\\nerror: b" in refused(capsys, "merge", path, "--output", tmp_path / "out.safetensors")
    save_file(pair | {"\x1b[2J": torch.ones(1)}, path, {"modelspec.title": "\x1b[2J\nall is well"})
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\\x1b[2J\\nall is well" in printed


def test_the_words_and_tokens_of_a_lora_of_weight_0_are_left_out_but_its_place_is_kept():
    used, unused = LoraWeights({KEY: layer(0)}, metadata={"modelspec.trigger_phrase": "a cat"}), LoraWeights(
        {KEY: layer(1)}, {"bundle_emb.dog.clip_l": torch.ones(1, 8)},
        {"modelspec.trigger_phrase": "a <dog>", "dco.tokens": '{"dog": "dog"}'},
    )  # fmt: skip
    merged = merge([used, unused], [1.0, 0.0])
    assert merged.metadata["modelspec.trigger_phrase"] == "a cat" and "dco.tokens" not in merged.metadata
    assert [entry["weight"] for entry in json.loads(merged.metadata["dco.merge"])] == [1.0, 0.0]


def test_inputs_of_a_merge_are_found_again_by_what_inspect_tells(tmp_path, capsys):
    for name, seed in (("a", 0), ("b", 1)):
        write_lora(tmp_path / f"{name}.safetensors", LoraWeights({KEY: layer(seed, alpha=1.0)}))
    files = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    assert main(["merge", f"{files[0]}=0.8", f"{files[1]}=-0.5", "--output", f"{tmp_path}/out.safetensors"]) == 0
    made_of = json.loads(read_lora(tmp_path / "out.safetensors").metadata["dco.merge"])
    capsys.readouterr()
    assert main(["inspect", *files]) == 0
    printed = capsys.readouterr().out
    assert [entry["weight"] for entry in made_of] == [0.8, -0.5]
    for entry, path in zip(made_of, files, strict=True):
        assert entry["sha256"] == tensors_sha256(read_lora(path)) and entry["sha256"] in printed


def test_a_lora_made_smaller_twice_tells_both_errors(tmp_path):
    write_lora(tmp_path / "a.safetensors", LoraWeights({KEY: layer(0, rank=5)}))
    a, b, c = (str(tmp_path / f"{name}.safetensors") for name in "abc")
    assert main(["merge", a, "--rank", "4", "--output", b]) == 0
    assert main(["resize", b, "--rank", "2", "--output", c]) == 0
    first, second = (read_lora(path).metadata for path in (b, c))
    assert 0 < float(first["dco.error"]) < float(second["dco.error"])
    assert second["dco.error_before"] == first["dco.error"] and "dco.error_before" not in first


def test_tensors_that_are_no_adapter_are_kept_and_told(tmp_path, capsys):
    path, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    pair = {f"{KEY}.lora_down.weight": torch.ones(1, 8), f"{KEY}.lora_up.weight": torch.ones(6, 1)}
    save_file(pair | {"conv_in.weight": torch.ones(2, 2), "conv_in.bias": torch.ones(2)}, path)
    assert main(["merge", f"{path}=0.5", "--output", str(out)]) == 0
    assert "kept as they are: conv_in.bias and 1 more" in capsys.readouterr().out
    assert torch.equal(load_file(out)["conv_in.weight"], torch.ones(2, 2))


@pytest.mark.parametrize("alpha", [1.0, 0.3, 2.0])
def test_conversion_to_diffusers_keys_is_exact_whatever_the_alpha(tmp_path, alpha):
    """alpha / rank goes into lora_B, which fp16 does not always hold: 1e-5 / 3 is two units of its last place."""
    half = LoraLayer(layer(0).down.half(), (1e-5 * layer(0).up).half(), alpha)
    write_lora(tmp_path / "a.safetensors", LoraWeights({KEY: half}))
    a, b = str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")
    assert main(["convert", a, "--to", "diffusers", "--output", b]) == 0
    assert main(["convert", b, "--to", "kohya", "--output", a]) == 0
    again = read_lora(a).layers[KEY].delta()
    assert (again - half.delta()).norm() <= 1e-6 * half.delta().norm()


def test_np_lora_of_no_number_is_refused():
    with pytest.raises(DCOError, match="mu nan"):
        NPLora(float("nan"))
