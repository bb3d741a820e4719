"""Module names: known answers, and the whole UNets of SD1.5 and SDXL there and back."""

import re

import pytest

from dco_core.errors import DCOError
from dco_core.lora.keys import (
    canonical_keys,
    diffusers_names,
    diffusers_to_ldm,
    dotted_path,
    kohya_names,
    ldm_to_diffusers,
    split_key,
    unet_family,
)

# Attention depth of each resnet position, as in the checkpoints' configurations.
DEPTHS = {
    "sd1": {"down": [[1, 1], [1, 1], [1, 1], [0, 0]], "mid": 1, "up": [[0] * 3, [1] * 3, [1] * 3, [1] * 3]},
    "sdxl": {"down": [[0, 0], [2, 2], [10, 10]], "mid": 10, "up": [[10] * 3, [2] * 3, [0] * 3]},
}


def unet_modules(family: str) -> dict[str, str]:
    """{dotted diffusers path: dotted LDM path} of every linear and convolution, written out the way the
    host's unet_to_diffusers counts blocks (comfy/utils.py), independently of keys.py."""
    resnet = {
        "conv1": "in_layers.2",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    modules = {
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
    }
    if family == "sdxl":
        modules |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}

    def attention(diffusers: str, ldm: str, depth: int) -> None:
        inner = ["proj_in", "proj_out"] if depth else []
        for t in range(depth):
            for layer in ("attn1", "attn2"):
                inner += [f"transformer_blocks.{t}.{layer}.{p}" for p in ("to_q", "to_k", "to_v", "to_out.0")]
            inner += [f"transformer_blocks.{t}.ff.net.0.proj", f"transformer_blocks.{t}.ff.net.2"]
        modules.update({f"{diffusers}.{name}": f"{ldm}.{name}" for name in inner})

    def residual(diffusers: str, ldm: str) -> None:
        modules.update({f"{diffusers}.{a}": f"{ldm}.{b}" for a, b in resnet.items()})

    depths = DEPTHS[family]
    n = 1
    for x, block in enumerate(depths["down"]):
        for i, depth in enumerate(block):
            residual(f"down_blocks.{x}.resnets.{i}", f"input_blocks.{n}.0")
            attention(f"down_blocks.{x}.attentions.{i}", f"input_blocks.{n}.1", depth)
            n += 1
        if x < len(depths["down"]) - 1:
            modules[f"down_blocks.{x}.downsamplers.0.conv"] = f"input_blocks.{n}.0.op"
            n += 1
    residual("mid_block.resnets.0", "middle_block.0")
    attention("mid_block.attentions.0", "middle_block.1", depths["mid"])
    residual("mid_block.resnets.1", "middle_block.2")
    n = 0
    for x, block in enumerate(depths["up"]):
        for i, depth in enumerate(block):
            residual(f"up_blocks.{x}.resnets.{i}", f"output_blocks.{n}.0")
            attention(f"up_blocks.{x}.attentions.{i}", f"output_blocks.{n}.1", depth)
            if i == 2 and x < len(depths["up"]) - 1:
                modules[f"up_blocks.{x}.upsamplers.0.conv"] = f"output_blocks.{n}.{2 if depth else 1}.conv"
            n += 1
    return modules


def kohya(path: str) -> str:
    return "lora_unet_" + path.replace(".", "_")


def test_the_generated_names_are_the_known_number_of_attention_projections():
    """kohya's SDXL LoRA has 722 UNet modules, its SD1.5 LoRA 192: all linears inside the attention blocks and
    their proj_in and proj_out."""
    for family, count in (("sdxl", 722), ("sd1", 192)):
        assert sum(".attentions." in name for name in unet_modules(family)) == count


@pytest.mark.parametrize("family", DEPTHS)
def test_every_module_of_the_unet_has_one_canonical_key_in_all_spellings(family):
    modules = unet_modules(family)
    expected = [kohya(ldm) for ldm in modules.values()]
    assert len(set(expected)) == len(expected)
    for spell in (
        lambda d, m: f"unet.{d}",
        lambda d, m: f"base_model.model.{d}",
        lambda d, m: f"unet.base_model.model.{d}",
        lambda d, m: d,
        lambda d, m: f"diffusion_model.{m}",
        lambda d, m: kohya(d),
        lambda d, m: kohya(m),
    ):
        spelled = [spell(d, m) for d, m in modules.items()]
        assert list(canonical_keys(spelled).values()) == expected


@pytest.mark.parametrize("family", DEPTHS)
def test_names_go_to_diffusers_and_back(family):
    modules = unet_modules(family)
    assert unet_family(map(kohya, modules)) == unet_family(map(kohya, modules.values())) == family
    for diffusers, ldm in modules.items():
        diffusers_, ldm_ = diffusers.replace(".", "_"), ldm.replace(".", "_")
        assert diffusers_to_ldm(diffusers_, family) == ldm_
        assert ldm_to_diffusers(ldm_) == diffusers_
        assert dotted_path(kohya(ldm)) == f"unet.{diffusers}"
        assert dotted_path(kohya(diffusers)) == f"unet.{diffusers}"


def test_kohya_names_are_those_of_kohyas_scripts():
    """sd-scripts names the modules of SD1.5 after diffusers and those of SDXL after the checkpoint."""
    for family, side in (("sd1", 0), ("sdxl", 1)):
        modules = unet_modules(family)
        keys = [kohya(ldm) for ldm in modules.values()]
        assert list(kohya_names(keys, {}).values()) == [kohya(names[side]) for names in modules.items()]


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        ),
        (
            "unet.mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
            "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj",
        ),
        (
            "unet.up_blocks.0.attentions.2.transformer_blocks.3.attn2.to_out.0",
            "lora_unet_output_blocks_2_1_transformer_blocks_3_attn2_to_out_0",
        ),
        (
            "unet.up_blocks.1.attentions.1.transformer_blocks.0.attn1.processor.to_out",
            "lora_unet_output_blocks_4_1_transformer_blocks_0_attn1_to_out_0",
        ),
        ("lora_unet_up_blocks_1_upsamplers_0_conv", "lora_unet_output_blocks_5_2_conv"),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", "lora_unet_input_blocks_3_0_op"),
        ("lora_unet_mid_block_resnets_1_time_emb_proj", "lora_unet_middle_block_2_emb_layers_1"),
        (
            "text_encoder_2.text_model.encoder.layers.31.mlp.fc2",
            "lora_te2_text_model_encoder_layers_31_mlp_fc2",
        ),
        (
            "base_model.model.text_model.encoder.layers.0.self_attn.q_proj",
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        ),
        ("diffusion_model.double_blocks.0.img_attn.qkv", "lora_unet_double_blocks_0_img_attn_qkv"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_double_blocks_0_img_attn_qkv"),
        ("transformer.transformer_blocks.0.attn.to_q", "lora_transformer_transformer_blocks_0_attn_to_q"),
        ("single_blocks.0.linear1", "single_blocks.0.linear1"),
        ("diffusion_model.conv_in", "lora_unet_conv_in"),  # no SD block beside it: any network's
    ],
)
def test_known_names(path, key):
    assert canonical_keys([path]) == {path: key}
    assert canonical_keys([key]) == {key: key}


def test_the_first_text_encoder_is_numbered_when_there_are_two():
    clip = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    second = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
    assert canonical_keys([clip])[clip] == "lora_te_text_model_encoder_layers_0_mlp_fc1"
    assert canonical_keys([clip, second])[clip] == "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    deep = "unet.down_blocks.2.attentions.0.transformer_blocks.9.attn1.to_q"
    assert canonical_keys([clip, deep])[clip] == "lora_te1_text_model_encoder_layers_0_mlp_fc1"


def test_the_first_upsampler_waits_until_the_family_is_known():
    upsampler = "lora_unet_up_blocks_0_upsamplers_0_conv"
    assert canonical_keys([upsampler]) == {upsampler: upsampler}
    sdxl = "lora_unet_middle_block_1_transformer_blocks_9_attn1_to_q"
    sd1 = "lora_unet_input_blocks_1_1_proj_in"
    assert canonical_keys([upsampler, sdxl])[upsampler] == "lora_unet_output_blocks_2_2_conv"
    assert canonical_keys([upsampler, sd1])[upsampler] == "lora_unet_output_blocks_2_1_conv"


@pytest.mark.parametrize(
    ("key", "parsed"),
    [
        ("lora_unet_a.lora_down.weight", ("lora_unet_a", "down")),
        ("lora_unet_a.alpha", ("lora_unet_a", "alpha")),
        ("unet.a.lora_B.weight", ("unet.a", "up")),
        ("base_model.model.a.lora_A.default.weight", ("base_model.model.a", "down")),
        ("unet.attn1.processor.to_q_lora.down.weight", ("unet.attn1.processor.to_q", "down")),
        ("unet.a.lora.up.weight", ("unet.a", "up")),
        ("text_encoder.a.lora_linear_layer.up.weight", ("text_encoder.a", "up")),
        ("blocks.0.lora_A", ("blocks.0", "down")),
        ("bundle_emb.x.string_to_param.*", None),
    ],
)
def test_suffixes(key, parsed):
    assert split_key(key) == parsed


def test_diffusers_names_refuse_a_module_whose_dots_are_unknown():
    with pytest.raises(DCOError, match="lora_unet_double_blocks_0_img_attn_qkv"):
        diffusers_names(["lora_unet_double_blocks_0_img_attn_qkv"], {})
    key, path = "lora_transformer_blocks_0_to_q", "transformer.blocks.0.to_q"
    assert diffusers_names([key], {key: path}) == {key: path}
    with pytest.raises(DCOError, match=re.escape(key)):
        diffusers_names([key], {})


@pytest.mark.parametrize(
    "name",
    [
        "input_blocks_0_1_proj_in",
        "input_blocks_3_0_in_layers_2",
        "input_blocks_2_0_op",
        "output_blocks_4_2_conv",
    ],
)
def test_names_that_no_sd_unet_has_are_not_translated(name):
    assert ldm_to_diffusers(name) is None
