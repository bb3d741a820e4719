"""The small checkpoints, without the host: what it reads the model family from, and what the VAE promises."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import pytest
import torch

UNET = "model.diffusion_model."


def test_sd15_has_the_shapes_the_host_detects_it_by() -> None:
    tensors = checkpoints.sd15_tensors()
    assert tensors[f"{UNET}input_blocks.0.0.weight"].shape == (320, 4, 3, 3)
    attention = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    assert tensors[attention].shape == (320, 768)
    assert tensors[f"{UNET}input_blocks.1.1.proj_in.weight"].ndim == 4
    assert not any(".label_emb." in name for name in tensors)


def test_sdxl_has_the_shapes_the_host_detects_it_by() -> None:
    tensors = checkpoints.sdxl_tensors()
    assert tensors[f"{UNET}label_emb.0.0.weight"].shape == (1280, 2816)
    attention = f"{UNET}input_blocks.3.1.transformer_blocks.4.attn2.to_k.weight"
    assert tensors[attention].shape == (320, 2048)
    assert tensors[f"{UNET}input_blocks.2.1.proj_in.weight"].ndim == 2


@pytest.mark.parametrize("make", [checkpoints.sd15_tensors, checkpoints.sdxl_tensors])
def test_the_seed_decides_every_weight(make) -> None:
    first, again, other = make(1), make(1), make(2)
    assert all(torch.equal(first[name], again[name]) for name in first if name.startswith(UNET))
    query = f"{UNET}middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    assert not torch.equal(first[query], other[query])
    assert not torch.equal(first[query], first[query.replace("to_q", "to_k")])


def test_a_view_checkpoint_is_small_and_reads_back_with_weights_only(tmp_path: Path) -> None:
    path = checkpoints.write_sdxl(tmp_path / "small.ckpt")
    assert path.stat().st_size < 20e6
    read = torch.load(path, weights_only=True)["state_dict"]
    written = checkpoints.sdxl_tensors()
    assert read.keys() == written.keys()
    name = "conditioner.embedders.1.model.transformer.resblocks.31.mlp.c_fc.weight"
    assert torch.equal(read[name], written[name])


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"small\.pt.*use \.ckpt or \.safetensors"):
        checkpoints.write_sd15(tmp_path / "small.pt")
