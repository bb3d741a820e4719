"""From the trainer to a file and back on SD1.5 UNets with other numbers of blocks per level: the host's own loader,
guidance and start_from find the layers that were trained."""

import logging

import pytest
import torch
from guiding import Case, guided
from safetensors.torch import load_file
from small_models import FAMILIES, small_model, text
from two_models import merged

from devtools import in_process_host as host

UNETS = ["sd15-whole", "sdxs", "sd15", "sd15-uneven"]
CHOICES = ["attention", "all linear and convolution"]


def names():
    return host.pack("nodes.host.layer_names")


def trained(family, layers, folder, name_filter=""):
    """(file after two steps, {dotted name: dW})."""
    network, lora = host.pack("nodes.host.training.network"), host.pack("dco_core.lora")
    config = host.pack("dco_core.training.config").TrainingConfig(
        steps=2, batch_size=2, beta=1.0, learning_rate=0.03
    )
    adapter = host.pack("dco_core.network.lora_layers").AdapterConfig(
        rank=2, alpha=3.0, layers=layers, name_filter=name_filter
    )
    example = host.pack("dco_core.training.examples").Example
    model = small_model(family)
    latent = torch.randn(FAMILIES[family].latent, generator=torch.Generator().manual_seed(2))
    with network.training_session(model, adapter) as denoiser:
        conds = denoiser.model_conditions(text(family, 7, 1), latent)
        host.pack("dco_core.training.trainer").Training(denoiser, [example(latent, conds)], config).run()
        deltas = {name: layer.delta().clone() for name, layer in denoiser.lora().items()}
        lora.write_lora(folder / "a.safetensors", denoiser.weights(), keys=names().kohya_names(model))
    assert all(delta.any() for delta in deltas.values())
    return folder / "a.safetensors", deltas


@pytest.fixture(scope="module", params=[(u, c) for u in UNETS for c in CHOICES], ids=lambda p: f"{p[0]}, {p[1]}")
def run(request, tmp_path_factory):
    return request.param[0], *trained(*request.param, tmp_path_factory.mktemp("lora"))


def test_comfyuis_loader_changes_exactly_the_layers_that_were_trained(run, caplog):
    import comfy.model_management

    family, path, deltas = run[0], run[1], dict(run[2])
    with caplog.at_level(logging.WARNING):
        theta = merged(small_model(family), load_file(path))
    assert not [r for r in caplog.records if "not loaded" in r.getMessage().lower()]
    comfy.model_management.load_models_gpu([theta])
    base = small_model(family).model.diffusion_model.state_dict()
    for key, weight in theta.model.diffusion_model.state_dict().items():
        delta = deltas.pop(key.removesuffix(".weight"), None) if key.endswith(".weight") else None
        expected = base[key] if delta is None else base[key] + delta.reshape(base[key].shape)
        torch.testing.assert_close(weight, expected, rtol=0, atol=0 if delta is None else 1e-6)
    assert not deltas


def test_guidance_from_the_file_is_that_of_two_models(run):
    family, path, _ = run
    Case(family, lora=load_file(path)).check()


def test_training_starts_from_its_own_file(run):
    family, path, deltas = run
    tensors, lora = host.pack("dco_core.lora"), load_file(path)
    found = names().started_layers(small_model(family), tensors.from_tensors(lora))
    assert found.keys() == deltas.keys()
    assert all(torch.equal(found[name].delta(), delta) for name, delta in deltas.items())
    adapter = host.pack("dco_core.network.lora_layers").AdapterConfig(start=found)
    model = small_model(family)
    with host.pack("nodes.host.training.network").training_session(model, adapter) as denoiser:
        again = tensors.to_tensors(denoiser.weights(), keys=names().kohya_names(model))
    assert again.keys() == lora.keys() and all(torch.equal(again[key], lora[key]) for key in lora)


PARTS = {"sd15-whole": r"output_blocks\.2\.1\.conv|input_blocks\.0\.0",
         "sdxs": r"input_blocks\.1\.1\.|output_blocks\.5\.1\.",
         "sd15-uneven": r"input_blocks\.1\.1\.|output_blocks\.5\."}  # fmt: skip


@pytest.mark.parametrize("family", PARTS)
def test_a_few_layers_alone_are_found_again(family, tmp_path):
    """Names that only the others of a whole file tell apart."""
    path, deltas = trained(family, "all linear and convolution", tmp_path, PARTS[family])
    read = host.pack("dco_core.lora").read_lora(path)
    found = names().started_layers(small_model(family), read)
    assert found.keys() == deltas.keys()
    assert all(torch.equal(found[name].delta(), delta) for name, delta in deltas.items())
    theta = merged(small_model(family), load_file(path))
    assert theta.patches.keys() == {f"diffusion_model.{name}.weight" for name in deltas}
    second = tmp_path / "b.safetensors"  # what merging and converting write
    host.pack("dco_core.lora").write_lora(second, read)
    theta = merged(small_model(family), load_file(second))
    assert theta.patches.keys() == {f"diffusion_model.{name}.weight" for name in deltas}


def as_diffusers(name, width=32, seed=0):
    """A LoRA on one layer of that many columns, as diffusers names it."""
    generator = torch.Generator().manual_seed(seed)
    return {f"unet.{name}.lora_A.weight": torch.randn(2, width, generator=generator),
            f"unet.{name}.lora_B.weight": torch.randn(width, 2, generator=generator)}  # fmt: skip


FOREIGN = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def test_names_of_diffusers_mean_the_blocks_of_this_unet_or_are_refused():
    read = host.pack("dco_core.lora").from_tensors(as_diffusers(FOREIGN, 64))
    found = names().modules_of(small_model("sdxs"), read, "The LoRA")
    assert list(found.values()) == ["input_blocks.3.1.transformer_blocks.0.attn1.to_q"]
    found = names().modules_of(small_model("sd15-whole"), read, "The LoRA")
    assert list(found.values()) == ["input_blocks.4.1.transformer_blocks.0.attn1.to_q"]
    with pytest.raises(host.pack("dco_core.errors").DCOError, match=r"levels of this model have \[1, 2, 1, 2\]"):
        names().modules_of(small_model("sd15-uneven"), read, "The LoRA")
    both = as_diffusers(FOREIGN, 64) | as_comfyui("input_blocks.3.1.transformer_blocks.0.attn1.to_q")
    both = host.pack("dco_core.lora").from_tensors(both)
    with pytest.raises(host.pack("dco_core.errors").DCOError, match="two LoRAs for input_blocks.3.1"):
        names().modules_of(small_model("sdxs"), both, "The LoRA")
    with pytest.raises(host.pack("dco_core.errors").DCOError, match=r"levels of this model have \[1, 2, 1, 2\]"):
        guided(small_model("sd15-uneven"), as_diffusers(FOREIGN, 64))


def zipped(family, first, second):
    core, lora = host.pack("dco_core.training.zip_lora"), host.pack("dco_core.lora")
    latent = {"samples": torch.ones(1, *FAMILIES[family].latent)}
    return host.pack("nodes.host.merging").zip_mergers_of(
        small_model(family), [lora.from_tensors(first), lora.from_tensors(second)], (1.0, 1.0), [latent, latent],
        [text(family, 7, 1), text(family, 7, 2)], core.ZipSettings(steps=2),
    )  # fmt: skip


def as_comfyui(name, width=64):
    return {f"diffusion_model.{name}.lora_down.weight": torch.ones(1, width),
            f"diffusion_model.{name}.lora_up.weight": torch.ones(width, 1)}  # fmt: skip


def test_ziplora_pairs_layers_by_the_module_that_they_are_of():
    error = host.pack("dco_core.errors").DCOError
    found = zipped("sdxs", as_diffusers(FOREIGN, 64), as_diffusers(FOREIGN, 64, seed=1))
    assert len(found.mergers) == 1
    same = as_comfyui("input_blocks.3.1.transformer_blocks.0.attn1.to_q")
    with pytest.raises(error, match="name the blocks of this model in two ways"):
        zipped("sdxs", as_diffusers(FOREIGN, 64), same)
    other = as_comfyui("input_blocks.5.1.transformer_blocks.0.attn1.to_q")
    beyond = FOREIGN.replace("attentions.0", "attentions.1")  # of SD1.5 this is input_blocks.5
    with pytest.raises(error, match="LoRA 1 does not belong to this model: it has no layer .*attentions.1"):
        zipped("sdxs", as_diffusers(FOREIGN, 64) | as_diffusers(beyond, 64), other)
    with pytest.raises(error, match="as diffusers does"):
        zipped("sd15-uneven", as_diffusers(FOREIGN, 64), as_diffusers(FOREIGN, 64))
    whole = zipped("sd15-whole", as_diffusers(FOREIGN, 64),
                   as_comfyui("input_blocks.4.1.transformer_blocks.0.attn1.to_q"))  # fmt: skip
    assert list(whole.mergers) == ["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"]
