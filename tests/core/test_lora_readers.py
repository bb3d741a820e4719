"""Files of ours in other programs' real readers: diffusers, and LyCORIS for those that follow kohya."""

import pytest
import torch

from dco_core.lora import LoraLayer, LoraWeights, bundled, canonical_keys, write_lora

diffusers = pytest.importorskip("diffusers")
lycoris_kohya = pytest.importorskip("lycoris.kohya")

TOKENS = bundled({"dog": {"clip_l": torch.ones(2, 8)}})


def pair(rank, out, inner, kernel, seed):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, inner, *kernel, generator=generator)
    return down, torch.randn(out, rank, *(1 for _ in kernel), generator=generator)


def tiny_sdxl_unet():
    """diffusers' own UNet with SDXL's blocks (depths 2 and 3 for 2 and 10) at a width of 8."""
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8, 8),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        use_linear_projection=True,
    )


def tiny_sd15_unet():
    torch.manual_seed(0)
    down, up = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=(*down, "DownBlock2D"),
        up_block_types=("UpBlock2D", *up),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def modules_of(unet):
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and "block" in name
    }


def layers_for(modules, names, alphas):
    """A LoRA of mixed ranks on these modules; alphas are taken in turn."""
    layers = {}
    for i, (name, module) in enumerate(modules.items()):
        out, inner, *kernel = module.weight.shape
        layers[names[f"unet.{name}"]] = LoraLayer(
            *pair(1 + i % 4, out, inner, kernel, seed=i), alphas[i % len(alphas)]
        )
    return layers


@pytest.mark.parametrize(
    ("keys", "tokens"), [("kohya", {}), ("diffusers", {}), ("diffusers", TOKENS)], ids=str
)
def test_diffusers_loads_every_layer_with_the_right_strength(tmp_path, keys, tokens):
    """The pipeline's reader on a LoRA of mixed ranks and alphas (one alpha with kohya keys: diffusers 0.42
    loses the alphas of attention layers that differ) on the linears and convolutions of all blocks; what it
    adds to each module must be dW."""
    unet = tiny_sdxl_unet()
    modules = modules_of(unet)
    names = canonical_keys(f"unet.{name}" for name in modules)
    layers = layers_for(modules, names, (3.0,) if keys == "kohya" else (None, 1.0, 3.0))
    if keys == "kohya":  # diffusers has no names for kohya's samplers
        layers = {key: layer for key, layer in layers.items() if not key.endswith(("_op", "_conv"))}
    write_lora(tmp_path / "a.safetensors", LoraWeights(layers, tokens), keys=keys)
    state, alphas = diffusers.StableDiffusionXLPipeline.lora_state_dict(
        tmp_path, weight_name="a.safetensors", unet_config=unet.config
    )
    unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas, adapter_name="a")
    loaded = {
        name: m.get_delta_weight("a") for name, m in unet.named_modules() if "a" in getattr(m, "lora_A", {})
    }
    assert {names[f"unet.{name}"] for name in loaded} == set(layers)
    for name, delta in loaded.items():
        torch.testing.assert_close(delta, layers[names[f"unet.{name}"]].delta(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [{}, TOKENS], ids=["plain", "with tokens"])
def test_a_kohya_style_reader_loads_every_layer_with_the_right_strength(tmp_path, tokens, monkeypatch):
    """LyCORIS matches kohya keys to modules by name, as kohya's own loader does, and reads mixed alphas."""
    for targets in ("UNET_TARGET_REPLACE_MODULE", "UNET_TARGET_REPLACE_NAME"):  # layers of its own first
        monkeypatch.setattr(lycoris_kohya.LycorisNetworkKohya, targets, [])
    unet = tiny_sd15_unet()
    modules = modules_of(unet)
    names = canonical_keys(f"unet.{name}" for name in modules)
    layers = layers_for(modules, names, (None, 1.0, 3.0))
    paths = {
        key: f"lora_unet_{name.replace('.', '_')}" for name in modules for key in [names[f"unet.{name}"]]
    }
    write_lora(tmp_path / "a.safetensors", LoraWeights(layers, tokens), keys=paths)
    network, _ = lycoris_kohya.create_network_from_weights(
        1.0, str(tmp_path / "a.safetensors"), None, None, unet, for_inference=True
    )
    loaded = {module.lora_name: module.get_diff_weight(1.0)[0] for module in network.unet_loras}
    assert set(loaded) == set(paths.values())
    for key, path in paths.items():
        torch.testing.assert_close(loaded[path], layers[key].delta(), rtol=1e-5, atol=1e-5)
