"""Pipelines whose UNets have other than two layers per block, from the command line to diffusers' own loader."""

import diffusers
import pytest
import torch
from tiny_pipelines import sd15, sdxl

from dco_core.cli import commands
from dco_core.network.denoiser import NetworkDenoiser
from dco_core.toy_world.references import write_toy_references

FAMILIES = {"sd15": (sd15, diffusers.StableDiffusionPipeline), "sdxl": (sdxl, diffusers.StableDiffusionXLPipeline)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy_references(tmp_path_factory.mktemp("references") / "subject", "toy")


@pytest.fixture(scope="module", params=[(kind, n) for kind in FAMILIES for n in (1, 3)],
                ids=lambda p: f"{p[0]}, {p[1]}")
def written(request, tmp_path_factory):
    kind, layers = request.param
    folder = tmp_path_factory.mktemp(f"{kind}{layers}")
    FAMILIES[kind][0](folder, layers=layers)
    return folder / "pipeline", FAMILIES[kind][1]


@pytest.mark.parametrize("layers", ["attention", "all linear and convolution"])
def test_diffusers_applies_every_layer_that_was_trained(written, data, tmp_path, monkeypatch, layers):
    folder, kind = written
    original, trained = NetworkDenoiser.lora, {}

    def seen(denoiser):
        trained.update(original(denoiser))
        return original(denoiser)

    monkeypatch.setattr(NetworkDenoiser, "lora", seen)
    files = {name: tmp_path / f"{name}.safetensors" for name in ("trained", "resized")}
    asked = {"--model": f"diffusers:{folder}", "--data": data, "--output": files["trained"], "--steps": 1, "--rank": 2,
             "--alpha": 3, "--resolution": 64, "--layers": layers, "--learning-rate": 0.01, "--beta": 1}  # fmt: skip
    assert commands.main(["train", *(str(word) for pair in asked.items() for word in pair)]) == 0
    resized = ["--rank", "2", "--output", str(files["resized"])]
    assert commands.main(["resize", str(files["trained"]), *resized]) == 0
    pipeline = kind.from_pretrained(folder)
    for name, file in files.items():
        pipeline.load_lora_weights(file, adapter_name=name)
        loaded = {n: m for n, m in pipeline.unet.named_modules() if name in getattr(m, "lora_A", {})}
        assert loaded.keys() == trained.keys() and len(loaded) > 20
        for layer, module in loaded.items():
            expected = trained[layer].delta()
            assert expected.any()
            torch.testing.assert_close(module.get_delta_weight(name), expected, rtol=1e-4, atol=1e-6)
