"""Reading and writing LoRA files: every spelling, every bad file, and nothing half-written."""

import datetime
import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dco_core.files.atomic as atomic_module
from dco_core.errors import DCOError
from dco_core.lora import (
    LoraLayer,
    LoraWeights,
    from_tensors,
    merge,
    read_lora,
    tensors_sha256,
    to_tensors,
    training_metadata,
    write_lora,
)

UNET = "unet.down_blocks.2.attentions.0.transformer_blocks.9.attn1.to_q"
UNET_KEY = "lora_unet_input_blocks_7_1_transformer_blocks_9_attn1_to_q"
CLIP = "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj"
CLIP_KEY = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
CONV_KEY = "lora_unet_output_blocks_2_2_conv"


def pair(rank=4, out=24, inner=16, kernel=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, inner, *kernel, generator=generator)
    return down, torch.randn(out, rank, *(1 for _ in kernel), generator=generator)


def sdxl_lora():
    return LoraWeights(
        {
            UNET_KEY: LoraLayer(*pair(4), 1.0),
            CONV_KEY: LoraLayer(*pair(9, kernel=(3, 3), seed=1), 9.0),
            CLIP_KEY: LoraLayer(*pair(2, seed=2), None),
        },
        {"bundle_emb.cat.clip_l": torch.ones(2, 8)},
        {"modelspec.title": "cat"},
    )


def save_pair(path, down_key, up_key, extra=None, metadata=None):
    down, up = pair()
    save_file({down_key: down, up_key: up} | (extra or {}), path, metadata)
    return LoraLayer(down, up)


@pytest.mark.parametrize("keys", ["kohya", "diffusers"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-6), ("fp16", 2e-3), (torch.bfloat16, 2e-2)])
def test_what_is_written_is_read_again(tmp_path, keys, dtype, tolerance):
    lora = sdxl_lora()
    write_lora(tmp_path / "new" / "a.safetensors", lora, keys=keys, dtype=dtype)
    again = read_lora(tmp_path / "new" / "a.safetensors")
    assert set(again.layers) == set(lora.layers)
    for key, layer in lora.layers.items():
        delta = layer.delta()
        assert (again.layers[key].delta() - delta).norm() <= tolerance * delta.norm()
    assert again.metadata == lora.metadata
    torch.testing.assert_close(again.other["bundle_emb.cat.clip_l"], torch.ones(2, 8))
    if dtype is not None:
        assert again.layers[UNET_KEY].down.dtype == {"fp16": torch.float16}.get(dtype, dtype)


def test_kohya_files_hold_kohya_keys(tmp_path):
    write_lora(tmp_path / "a.safetensors", sdxl_lora())
    tensors = load_file(tmp_path / "a.safetensors")
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    expected = {f"{key}.{part}" for key in (UNET_KEY, CONV_KEY, CLIP_KEY) for part in parts}
    assert set(tensors) == expected | {"bundle_emb.cat.clip_l"}
    assert tensors[f"{UNET_KEY}.alpha"] == 1.0
    assert tensors[f"{CLIP_KEY}.alpha"] == 2.0  # no alpha means alpha = rank


def test_a_table_of_names_is_followed_and_the_rest_is_canonical(tmp_path):
    write_lora(
        tmp_path / "a.safetensors", sdxl_lora(), keys={CONV_KEY: "lora_unet_up_blocks_0_upsamplers_0_conv"}
    )
    tensors = load_file(tmp_path / "a.safetensors")
    assert "lora_unet_up_blocks_0_upsamplers_0_conv.lora_up.weight" in tensors
    assert f"{UNET_KEY}.alpha" in tensors and f"{CONV_KEY}.alpha" not in tensors


def test_diffusers_files_need_no_alpha_and_have_one_rank_per_network(tmp_path):
    """diffusers without a PEFT header gives every layer of a network one alpha, that of some layer's rank."""
    lora = sdxl_lora()
    write_lora(tmp_path / "a.safetensors", lora, keys="diffusers")
    tensors = load_file(tmp_path / "a.safetensors")
    assert not [key for key in tensors if key.endswith(".alpha")]
    conv = "unet.up_blocks.0.upsamplers.0.conv"
    assert tensors[f"{UNET}.lora_A.weight"].shape == (9, 16)
    assert tensors[f"{conv}.lora_A.weight"].shape == (9, 16, 3, 3)
    assert tensors[f"{CLIP}.lora_B.weight"].shape == (24, 2)
    product = tensors[f"{UNET}.lora_B.weight"] @ tensors[f"{UNET}.lora_A.weight"]
    torch.testing.assert_close(product, lora.layers[UNET_KEY].delta())


@pytest.mark.parametrize(
    ("down_key", "up_key"),
    [
        (f"{UNET_KEY}.lora_down.weight", f"{UNET_KEY}.lora_up.weight"),
        (f"{UNET}.lora_A.weight", f"{UNET}.lora_B.weight"),
        (f"{UNET}.lora.down.weight", f"{UNET}.lora.up.weight"),
        (
            f"{UNET.replace('.to_q', '.processor.to_q')}_lora.down.weight",
            f"{UNET.replace('.to_q', '.processor.to_q')}_lora.up.weight",
        ),
        (
            f"base_model.model.{UNET.removeprefix('unet.')}.lora_A.default.weight",
            f"base_model.model.{UNET.removeprefix('unet.')}.lora_B.default.weight",
        ),
        (
            "diffusion_model.input_blocks.7.1.transformer_blocks.9.attn1.to_q.lora_down.weight",
            "diffusion_model.input_blocks.7.1.transformer_blocks.9.attn1.to_q.lora_up.weight",
        ),
    ],
)
def test_every_spelling_is_the_same_module(tmp_path, down_key, up_key):
    layer = save_pair(tmp_path / "a.safetensors", down_key, up_key)
    lora = read_lora(tmp_path / "a.safetensors")
    assert list(lora.layers) == [UNET_KEY] and not lora.other
    torch.testing.assert_close(lora.layers[UNET_KEY].delta(), layer.delta())


def test_loras_of_two_tools_merge_by_module(tmp_path):
    a = save_pair(tmp_path / "a.safetensors", f"{UNET_KEY}.lora_down.weight", f"{UNET_KEY}.lora_up.weight")
    b = save_pair(tmp_path / "b.safetensors", f"{UNET}.lora_A.weight", f"{UNET}.lora_B.weight")
    merged = merge(
        [read_lora(tmp_path / "a.safetensors"), read_lora(tmp_path / "b.safetensors")], [1.0, -0.25]
    )
    torch.testing.assert_close(
        merged.layers[UNET_KEY].delta(), a.delta() - 0.25 * b.delta(), rtol=1e-5, atol=1e-5
    )


def test_a_module_outside_the_grammars_keeps_its_dotted_name(tmp_path):
    base = "transformer.transformer_blocks.0.attn.to_q"
    save_pair(tmp_path / "a.safetensors", f"{base}.lora_A.weight", f"{base}.lora_B.weight")
    lora = read_lora(tmp_path / "a.safetensors")
    write_lora(tmp_path / "kohya.safetensors", lora)
    assert f"{base}.lora_down.weight" in load_file(tmp_path / "kohya.safetensors")
    write_lora(tmp_path / "diffusers.safetensors", merge([lora, lora], [1.0, 1.0]), keys="diffusers")
    assert f"{base}.lora_A.weight" in load_file(tmp_path / "diffusers.safetensors")


def test_the_up_of_a_convolution_may_come_without_its_kernel(tmp_path):
    down, up = pair(kernel=(3, 3))
    tensors = {f"{CONV_KEY}.lora_down.weight": down, f"{CONV_KEY}.lora_up.weight": up.flatten(1)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.testing.assert_close(
        read_lora(tmp_path / "a.safetensors").layers[CONV_KEY].delta(), LoraLayer(down, up).delta()
    )


def test_files_of_peft_are_read(tmp_path):
    peft = pytest.importorskip("peft")

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q = torch.nn.Linear(16, 24, bias=False)

    net = torch.nn.Module()
    net.down_blocks = torch.nn.ModuleList([torch.nn.Module() for _ in range(2)])
    block = torch.nn.Module()
    block.attn1 = Attention()
    attention = torch.nn.Module()
    attention.transformer_blocks = torch.nn.ModuleList([block])
    net.down_blocks[1].attentions = torch.nn.ModuleList([attention])
    model = peft.get_peft_model(net, peft.LoraConfig(r=3, lora_alpha=3, target_modules=["to_q"]))
    module = net.down_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q
    torch.nn.init.normal_(module.lora_B["default"].weight)
    save_file(peft.get_peft_model_state_dict(model), tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors")
    key = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    assert list(lora.layers) == [key]
    torch.testing.assert_close(lora.layers[key].delta(), module.get_delta_weight("default"))


def refusal(path):
    with pytest.raises(DCOError) as caught:
        read_lora(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_files_that_are_no_safetensors_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    assert "no LoRA file" in refusal(path)
    torch.save({"lora_unet_a.lora_down.weight": torch.ones(1)}, path)
    assert "pickle" in refusal(path)
    path.write_bytes(b"")
    refusal(path)
    path.write_bytes(b"<!DOCTYPE html><html></html>")
    refusal(path)
    refusal(tmp_path)


def test_a_truncated_or_damaged_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write_lora(path, sdxl_lora())
    whole = path.read_bytes()
    chance = random.Random(0)
    for length in [1, 7, 8, 9, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(20))]:
        path.write_bytes(whole[:length])
        assert "download or save it again" in refusal(path)
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(200):  # any damage to the header either does not matter or is refused in words
        damaged = bytearray(whole)
        damaged[chance.randrange(header)] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read_lora(path)
        except DCOError:
            pass


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("lokr_w2_a", "LoKr"),
        ("oft_blocks", "OFT"),
        ("oft_R.weight", "OFT"),
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector", "DoRA"),
        ("a1.weight", "GLoRA"),
        ("lora_mid.weight", "Tucker"),
        ("diff", "difference"),
        ("diff_b", "difference"),
        ("set_weight", "difference"),
        ("lora_embedding_A", "embeddings"),
        ("lora_B.bias", "biases"),
    ],
)
def test_other_adapter_types_are_named(tmp_path, key, kind):
    path = tmp_path / "a.safetensors"
    extra = {f"{UNET_KEY}.{key}": torch.ones(2, 2)}
    save_pair(path, f"{UNET_KEY}.lora_down.weight", f"{UNET_KEY}.lora_up.weight", extra)
    message = refusal(path)
    assert kind in message and key in message


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"model.diffusion_model.out.2.weight": torch.ones(2, 2)}, "no LoRA"),
        ({f"{UNET_KEY}.alpha": torch.tensor(1.0)}, "no LoRA"),
        ({f"{UNET_KEY}.lora_down.weight": torch.ones(2, 4)}, "no up"),
        ({f"{UNET_KEY}.lora_up.weight": torch.ones(4, 2)}, "no down"),
        (
            {
                f"{UNET_KEY}.lora_down.weight": torch.ones(2, 4),
                f"{UNET_KEY}.lora_up.weight": torch.ones(4, 3),
            },
            "[4, 3]",
        ),
        (
            {
                f"{UNET_KEY}.lora_down.weight": torch.full((2, 4), torch.nan),
                f"{UNET_KEY}.lora_up.weight": torch.ones(4, 2),
            },
            "NaN",
        ),
        (
            {
                f"{UNET_KEY}.lora_down.weight": torch.ones(2, 4),
                f"{UNET_KEY}.lora_up.weight": torch.full((4, 2), torch.inf),
            },
            "infinity",
        ),
        (
            {
                f"{UNET_KEY}.lora_down.weight": torch.ones(2, 4, dtype=torch.int8),
                f"{UNET_KEY}.lora_up.weight": torch.ones(4, 2),
            },
            "quantised",
        ),
        (
            {
                f"{UNET_KEY}.lora_down.weight": torch.ones(2, 4),
                f"{UNET_KEY}.lora_up.weight": torch.ones(4, 2),
                f"{UNET_KEY}.alpha": torch.ones(2),
            },
            "one number",
        ),
        (
            {
                f"{base}.{part}.weight": torch.ones(2, 2)
                for base, part in (
                    (UNET_KEY, "lora_down"),
                    (UNET_KEY, "lora_up"),
                    (UNET, "lora_A"),
                    (UNET, "lora_B"),
                )
            },
            "two LoRAs",
        ),
    ],
)
def test_unusable_contents_are_refused(tmp_path, tensors, words):
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    assert words in refusal(path)


class Interrupt(BaseException):
    """Like the interrupt of the host and KeyboardInterrupt: no Exception."""


@pytest.mark.parametrize("step", ["save", "replace"])
@pytest.mark.parametrize("error", [Interrupt, OSError("disk full")])
def test_a_failed_save_leaves_the_earlier_file_and_no_other(tmp_path, monkeypatch, step, error):
    path = tmp_path / "a.safetensors"
    write_lora(path, sdxl_lora())
    before = path.read_bytes()

    def half_saved(tensors, target, metadata):
        target.write_bytes(before[:100])
        raise error

    def fail(*_):
        raise error

    if step == "save":
        monkeypatch.setattr(atomic_module, "save_file", half_saved)
    else:
        monkeypatch.setattr(atomic_module.os, "replace", fail)
    with pytest.raises(Interrupt if error is Interrupt else DCOError):
        write_lora(path, sdxl_lora(), dtype="fp16")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_cannot_be_saved_is_refused_before_a_file_appears(tmp_path):
    path = tmp_path / "a.safetensors"
    huge = LoraWeights({UNET_KEY: LoraLayer(torch.full((1, 4), 1e6), torch.ones(4, 1))})
    flux = LoraWeights({"lora_unet_double_blocks_0_img_attn_qkv": LoraLayer(*pair())})
    for weights, options, words in (
        (huge, {"dtype": "fp16"}, "1e\\+06"),
        (flux, {"keys": "diffusers"}, "double_blocks"),
        (LoraWeights({}), {}, "no layers"),
        (huge, {"dtype": "int8"}, "int8"),
        (huge, {"keys": "a1111"}, "a1111"),
    ):
        with pytest.raises(DCOError, match=words):
            write_lora(path, weights, **options)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(DCOError, match="Cannot write"):
        write_lora(tmp_path / "file" / "a.safetensors", huge)


def test_factors_that_are_views_of_one_tensor_can_be_saved(tmp_path):
    both = torch.randn(8, 16)
    key = UNET_KEY
    write_lora(tmp_path / "a.safetensors", LoraWeights({key: LoraLayer(both[:4], both[4:].T)}))
    torch.testing.assert_close(load_file(tmp_path / "a.safetensors")[f"{key}.lora_up.weight"], both[4:].T)


def test_training_metadata_is_text_and_repeats_the_run(tmp_path):
    config = {"beta": 1000.0, "steps": 500, "images": ["a.png"]}
    metadata = training_metadata(
        title="dog",
        rank=32,
        alpha=32.0,
        steps=500,
        learning_rate=5e-5,
        seed=7,
        config=config,
        base_model_version="sdxl_base_v1-0",
        date=datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc),
        extra={"modelspec.trigger_phrase": "sks dog"},
    )
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("32", "32.0")
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["modelspec.date"] == "2026-01-02T03:04:05+00:00"
    assert "modelspec.hash_sha256" not in metadata and "ss_training_comment" not in metadata
    assert json.loads(metadata["dco.config"]) == config
    stale = {"modelspec.hash_sha256": "0x1", "lora_adapter_metadata": "{}"}
    lora = LoraWeights({UNET_KEY: LoraLayer(*pair())}, metadata=metadata | stale)
    write_lora(tmp_path / "a.safetensors", lora)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == metadata


def test_tensors_go_through_a_socket_and_back():
    lora = sdxl_lora()
    again = from_tensors(to_tensors(lora), "lora_1")
    assert tensors_sha256(again) == tensors_sha256(lora)
    with pytest.raises(DCOError, match=f"^lora_1: {UNET_KEY} has down but no up"):
        from_tensors({f"{UNET_KEY}.lora_down.weight": torch.ones(2, 4)}, "lora_1")
    trained = {key: t.requires_grad_() for key, t in to_tensors(lora).items() if "bundle" not in key}
    merged = merge([from_tensors(trained, "lora_1")], [1.0])
    assert not any(layer.down.requires_grad for layer in merged.layers.values())
