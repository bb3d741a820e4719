"""Starting from LoRA files of other programs in the real host: they go on, or are refused with the reason."""

from __future__ import annotations

import re

import pytest
import torch
from host_graph import Graph, saved_file
from safetensors.torch import load_file, save_file

from dco_core.lora import LoraWeights, read_lora, write_lora
from devtools.api import HostError

_ATTENTION = re.compile(
    r"lora_unet_(\w+?_block)(s?)_(?:(\d+)_)?(\d+)_transformer_blocks_(\d+)_(attn\d)_to_(q|k|v|out)(?:_(0))?"
)


def module_of(key):
    """`lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q` -> the checkpoint's own dotted name."""
    block, plural, first, second, depth, attention, part, zero = _ATTENTION.fullmatch(key).groups()
    places = [
        block + plural,
        *filter(None, (first, second)),
        "transformer_blocks",
        depth,
        attention,
        f"to_{part}",
    ]
    return ".".join([*places, *filter(None, (zero,))])


@pytest.fixture(scope="module")
def trained(host, sd15, photos):
    """(folder, LoRA by canonical key) of a short training on SD1.5."""
    g = Graph()
    data = g.add("LoadImageTextDataSetFromFolder", folder=photos)
    node = g.trainer(
        g.checkpoint(sd15), [data, 0], [data, 1], resolution=64, rank=2, alpha=1.0, batch_size=1, steps=3,
        name="origin",
    )  # fmt: skip
    path = host.base_dir / "output" / saved_file(host.client.run(g.prompt), node)
    return path.parent, read_lora(path)


def go_on(host, name, **changes):
    """A step at a rate of almost nothing from the file: the LoRA it leaves, by canonical key."""
    g = Graph()
    loaded = g.add("DCOLoadLoRA", lora_name=name)
    data = g.add("LoadImageTextDataSetFromFolder", folder="photos")
    values = {"resolution": 64, "steps": 1, "learning_rate": 1e-7, "batch_size": 1} | changes
    node = g.trainer(
        g.checkpoint("sd15"),
        [data, 0],
        [data, 1],
        start_from=[loaded, 0],
        name="gone_on",
        **values,
    )
    return read_lora(host.base_dir / "output" / saved_file(host.client.run(g.prompt), node))


def own_names(lora):
    return {
        f"diffusion_model.{module_of(key)}.{part}": tensor
        for key, layer in lora.layers.items()
        for part, tensor in (
            ("lora_A.weight", layer.down), ("lora_B.weight", layer.up * layer.scale),
        )
    }  # fmt: skip


def write(folder, lora, dialect):
    path = folder / f"from_{dialect}.safetensors"
    if dialect == "checkpoint names":
        save_file({k: t.contiguous() for k, t in own_names(lora).items()}, path)
    else:
        write_lora(path, LoraWeights(lora.layers, {}, {}), keys=dialect)
    return path.name


@pytest.mark.parametrize("dialect", ["kohya", "diffusers", "checkpoint names"])
def test_a_lora_in_any_dialect_goes_on(host, trained, dialect):
    folder, lora = trained
    found = go_on(host, write(folder, lora, dialect), rank=32, layers="all linear")
    assert found.layers.keys() == lora.layers.keys()
    for key, layer in lora.layers.items():
        torch.testing.assert_close(found.layers[key].delta(), layer.delta(), rtol=1e-3, atol=1e-5)


def test_a_loha_goes_on_as_the_plain_lora_that_it_is(host, trained):
    folder, lora = trained
    key = next(k for k in lora.layers if k.endswith("attn1_to_q"))
    g = torch.Generator().manual_seed(0)
    out, inner = lora.layers[key].shape
    a, c = (torch.randn(out, 2, generator=g) * 0.1 for _ in range(2))
    b, d = (torch.randn(2, inner, generator=g) * 0.1 for _ in range(2))
    parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(2.0)}
    save_file({f"{key}.{part}": t for part, t in parts.items()}, folder / "loha.safetensors")
    found = go_on(host, "loha.safetensors")
    assert set(found.layers) == {key}
    torch.testing.assert_close(found.layers[key].delta(), (a @ b) * (c @ d), rtol=1e-3, atol=1e-5)


def with_dora(tensors):
    key = next(k for k in tensors if k.endswith("lora_down.weight"))
    return tensors | {key.replace("lora_down.weight", "dora_scale"): torch.ones(320, 1)}


def with_text_encoder(tensors):
    name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    return tensors | {
        f"{name}.lora_down.weight": torch.ones(1, 768),
        f"{name}.lora_up.weight": torch.ones(768, 1),
    }


def of_another_shape(tensors):
    return {
        k: t[:, :-1].contiguous() if k.endswith("attn1_to_q.lora_down.weight") else t
        for k, t in tensors.items()
    }


def of_another_model(tensors):
    return {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(1, 8),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(24, 1)}  # fmt: skip


def with_biases(tensors):
    key = next(k for k in tensors if k.endswith("lora_down.weight"))
    return tensors | {key.replace("lora_down.weight", "diff_b"): torch.ones(320)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_dora, "is DoRA"),
        (with_text_encoder, "also changes the text encoder"),
        (of_another_shape, "was trained for another model"),
        (of_another_model, "does not belong to this model"),
        (with_biases, "bias"),
    ],
)
def test_what_cannot_go_on_is_refused_with_the_reason_and_nothing_is_written(host, trained, change, words):
    folder, lora = trained
    name = f"refused_{change.__name__}.safetensors"
    write(folder, lora, "kohya")
    save_file(change(load_file(folder / "from_kohya.safetensors")), folder / name)
    before = sorted(folder.iterdir())
    with pytest.raises(HostError, match=words):
        go_on(host, name)
    assert sorted(folder.iterdir()) == before
