"""Training on weights that are stored smaller than they compute, as the host itself loads them."""

from __future__ import annotations

import json

import checkpoints
import pytest
import torch
from host_graph import Graph
from safetensors.torch import save_file

UNET = "model.diffusion_model."


def _unet() -> dict[str, torch.Tensor]:
    return {
        name: tensor.half().clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoints.sd15_tensors().items()
        if name.startswith(UNET)
    }


def _quantised(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Attention and feed-forward in scaled fp8 (some with int8 instead), the rest as it is: the form of
    `*_fp8_scaled` and mixed precision files."""
    made = {}
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if layer == name or tensor.dim() != 2 or ".transformer_blocks." not in name:
            made[name] = tensor
            continue
        kind, dtype, most = "float8_e4m3fn", torch.float8_e4m3fn, 448.0
        if ".attn1." in name:
            kind, dtype, most = "int8_tensorwise", torch.int8, 127.0
        scale = tensor.float().abs().max() / most
        scaled = tensor.float() / scale
        made[name] = (scaled.round() if dtype == torch.int8 else scaled).to(dtype)
        made[f"{layer}.weight_scale"] = scale
        conf = json.dumps({"format": kind}).encode()
        made[f"{layer}.comfy_quant"] = torch.tensor(list(conf), dtype=torch.uint8)
    return made


@pytest.fixture(scope="module")
def folder(host):
    folder = host.base_dir / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_unet(), folder / "tiny_half.safetensors")
    save_file(_quantised(_unet()), folder / "tiny_quantised.safetensors")
    return folder


@pytest.mark.parametrize(
    ("file", "dtype"),
    [
        ("tiny_half.safetensors", "float16"),
        ("tiny_half.safetensors", "float8_e4m3fn"),  # UNETLoader's weight_dtype
        ("tiny_quantised.safetensors", ""),
    ],
)
def test_training_layers_keep_no_cast_weight_and_compute_as_the_host_does(host, folder, file, dtype):
    graph = Graph()
    node = graph.add("DCOTestFrozenLayers", file=file, dtype=dtype)
    facts = json.loads(host.client.run(graph.prompt)[node]["text"][0])
    assert facts["untouched"] and facts["shared"]
    if dtype:
        assert facts["mixed"] == 0 and f"torch.{dtype}" in facts["stored"]
        # layers before the first input with a gradient save nothing either way
        assert facts["saved"] - facts["saved_frozen"] > 0.7 * facts["cast_weights"]
    else:
        assert facts["mixed"] > facts["quantised"] > 20
        assert {"torch.float8_e4m3fn", "torch.int8"} <= set(facts["stored"])
    assert facts["from_sampled"] < (1e-6 if dtype else 0.1)
    assert facts["same_output"] and facts["gradient_error"] < 1e-4
    assert facts["saved_frozen"] < 0.3 * facts["cast_weights"]  # activations
    assert facts["lora_dtypes"] == ["torch.float32"]
    assert facts["losses"][0] > facts["losses"][1] > facts["losses"][2]
    assert facts["blocks"] == 8
    assert facts["saved_checkpointed"] < facts["saved_lora"] / 2
    assert facts["largest_gradient"] > 0 and facts["checkpoint_error"] < 1e-4 * facts["largest_gradient"]


def test_flux_trains_with_checkpointing_although_its_blocks_sum_in_place(host):
    graph = Graph()
    node = graph.add("DCOTestTrainsFlux")
    facts = json.loads(host.client.run(graph.prompt)[node]["text"][0])
    assert facts["blocks"] >= 4
    assert facts["found"] == pytest.approx(facts["expected"], rel=2e-2)
