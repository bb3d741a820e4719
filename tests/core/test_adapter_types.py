"""Adapters that are no plain pair: sizes as pairs, biases, configurations of peft, and what is refused and why."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dco_core.errors import DCOError
from dco_core.lora import from_tensors, merge, open_lora, read_lora, write_lora

KEY = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_input_blocks_4_0_in_layers_2"


def r(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kron(m, n, p, q, rank=None):
    if rank is None:
        return {f"{KEY}.lokr_w1": r(m, n), f"{KEY}.lokr_w2": r(p, q)}
    return {f"{KEY}.lokr_w1": r(m, n), f"{KEY}.lokr_w2_a": r(p, rank), f"{KEY}.lokr_w2_b": r(rank, q)}


@pytest.mark.parametrize(
    ("tensors", "rank"),
    [
        (kron(4, 2, 8, 16, rank=3), 2 * 3),
        (kron(2, 4, 8, 16), 2 * 8),
        ({f"{KEY}.lokr_w1_a": r(4, 1), f"{KEY}.lokr_w1_b": r(1, 4), f"{KEY}.lokr_w2": r(8, 16)}, 1 * 8),
        ({f"{KEY}.hada_w{i}_{x}": r(*((32, 2) if x == "a" else (2, 24))) for i in "12" for x in "ab"}, 4),
        ({f"{KEY}.hada_w{i}_{x}": r(*((32, 9) if x == "a" else (9, 24))) for i in "12" for x in "ab"}, 24),
        ({f"{KEY}.diff": r(32, 24)}, 24),
    ],
    ids=["lokr", "whole lokr", "lokr of a low w1", "loha", "loha of full rank", "difference"],
)
def test_pairs_are_as_small_as_is_plain_to_see(tensors, rank):
    assert from_tensors(tensors).layers[KEY].rank == rank


def test_alpha_of_a_whole_lokr_does_not_count_as_in_the_host():
    tensors = kron(2, 2, 4, 4)
    plain = from_tensors(tensors).layers[KEY].delta()
    torch.testing.assert_close(plain, torch.kron(*tensors.values()))
    with_alpha = from_tensors(tensors | {f"{KEY}.alpha": torch.tensor(7.0)}).layers[KEY].delta()
    torch.testing.assert_close(with_alpha, plain)


def test_flattened_kernels_get_their_shape_back_where_the_name_tells_it():
    tensors = {f"{CONV}.hada_w{i}_{x}": r(*((8, 2) if x == "a" else (2, 36))) for i in "12" for x in "ab"}
    lora = from_tensors(tensors)
    assert lora.layers[CONV].shape == (8, 4, 3, 3)
    locon = from_tensors({f"{CONV}.lora_down.weight": r(2, 4, 3, 3), f"{CONV}.lora_up.weight": r(8, 2, 1, 1)})
    total = merge([lora, locon], [1.0, 1.0]).layers[CONV].delta()
    torch.testing.assert_close(
        total, lora.layers[CONV].delta() + locon.layers[CONV].delta(), rtol=1e-5, atol=1e-5
    )


def test_biases_and_norms_add_up_and_keep_their_names(tmp_path):
    norm = "lora_unet_input_blocks_4_1_norm"
    tensors = {
        f"{KEY}.lora_down.weight": r(2, 8), f"{KEY}.lora_up.weight": r(6, 2), f"{KEY}.diff_b": r(6),
        f"{norm}.diff": r(5), f"{norm}.b_norm": r(5, seed=1),
    }  # fmt: skip
    lora = from_tensors(tensors)
    assert set(lora.vectors) == {f"{KEY}.diff_b", f"{norm}.diff", f"{norm}.diff_b"} and list(lora.layers) == [
        KEY
    ]
    write_lora(tmp_path / "a.safetensors", merge([lora, lora], [1.0, -0.25]))
    saved = load_file(tmp_path / "a.safetensors")
    torch.testing.assert_close(saved[f"{KEY}.diff_b"], 0.75 * r(6))
    torch.testing.assert_close(saved[f"{norm}.diff_b"], 0.75 * r(5, seed=1))
    assert set(read_lora(tmp_path / "a.safetensors").vectors) == set(lora.vectors)
    with pytest.raises(DCOError, match="write kohya keys"):
        write_lora(tmp_path / "b.safetensors", lora, keys="diffusers")


def test_biases_of_peft_are_scaled_with_their_pair():
    base = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {
        f"{base}.lora_A.weight": r(2, 8),
        f"{base}.lora_B.weight": r(6, 2),
        f"{base}.lora_B.bias": r(6),
    }
    header = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 6, "unet.r": 2})}
    lora = from_tensors(tensors, metadata=header)
    assert lora.layers[KEY].scale == 3.0
    torch.testing.assert_close(lora.vectors[f"{KEY}.diff_b"], 3 * r(6))


def test_an_alpha_in_the_tensors_goes_before_the_configuration():
    base = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {
        f"{base}.lora_A.weight": r(2, 8),
        f"{base}.lora_B.weight": r(6, 2),
        f"{base}.alpha": torch.tensor(1.0),
    }
    header = {"lora_adapter_metadata": json.dumps({"lora_alpha": 6, "r": 2})}
    assert from_tensors(tensors, metadata=header).layers[KEY].scale == 0.5
    del tensors[f"{base}.alpha"]
    assert from_tensors(tensors, metadata=header).layers[KEY].scale == 3.0
    patterns = {"lora_alpha": 6, "r": 2, "alpha_pattern": {"attn1.to_q": 4}, "use_rslora": True}
    rank_stabilised = from_tensors(tensors, metadata={"lora_adapter_metadata": json.dumps(patterns)})
    assert rank_stabilised.layers[KEY].scale == pytest.approx(4 / 2**0.5)
    with pytest.raises(DCOError, match="no number"):
        from_tensors(tensors, metadata={"lora_adapter_metadata": '{"lora_alpha": NaN}'})


@pytest.mark.parametrize(
    ("suffix", "why"),
    [
        ("dora_scale", "depends on the weights of the base model"),
        ("oft_blocks", "turns the base model's weights"),
        ("a1.weight", "depends on the weights of the base model"),
        ("on_input", "scales the base model's weights"),
        ("set_weight", "replaces weights"),
    ],
)
def test_types_without_a_change_of_their_own_are_refused_with_the_reason(tmp_path, suffix, why):
    tensors = {
        f"{KEY}.lora_down.weight": r(2, 8),
        f"{KEY}.lora_up.weight": r(6, 2),
        f"{KEY}.{suffix}": r(6, 1),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    for read in (read_lora, open_lora):
        with pytest.raises(DCOError, match=why):
            read(tmp_path / "a.safetensors")


def test_an_opened_file_reads_layers_when_they_are_asked_for(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {f"{KEY}.lora_down.weight": r(2, 8), f"{KEY}.lora_up.weight": r(6, 2)}
    broken = {
        f"{CONV}.lora_down.weight": torch.full((2, 4, 3, 3), torch.nan),
        f"{CONV}.lora_up.weight": r(8, 2, 1, 1),
    }
    save_file(tensors | broken, path)
    lora = open_lora(path)
    torch.testing.assert_close(lora.layers[KEY].delta(), r(6, 2) @ r(2, 8))
    with pytest.raises(DCOError, match="NaN"):
        lora.layers[CONV]
    with pytest.raises(KeyError):
        lora.layers["none"]
    with pytest.raises(DCOError, match="NaN"):
        read_lora(path)
    save_file({f"{KEY}.lokr_w1": r(2, 2), f"{KEY}.lokr_w2_a": r(3, 1), f"{KEY}.lokr_w2_b": r(2, 4)}, path)
    with pytest.raises(DCOError, match="LoKr parts that do not fit together"):
        open_lora(path)
