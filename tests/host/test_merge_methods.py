"""Sizes, weights by block and methods of the merge node; files of the host's own trainer."""

from __future__ import annotations

import json

import pytest
import torch
from host_graph import Graph, facts, saved_file
from safetensors import safe_open
from safetensors.torch import load_file

from dco_core.lora import read_lora
from devtools.api import HostError

TRAINED = {
    "batch_size": 1, "grad_accumulation_steps": 1, "steps": 2, "learning_rate": 1e-3, "rank": 2, "optimizer": "AdamW",
    "loss_function": "MSE", "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32", "quantized_backward": False,
    "gradient_checkpointing": False, "checkpoint_depth": 1, "offloading": False, "existing_lora": "[None]",
    "bucket_mode": False, "bypass_mode": False,
}  # fmt: skip


def scene(g, base, size):
    """sample(model): a latent of MODEL on one prompt and noise."""
    c, empty, start = g.text(base["clip"], "a large toy on grass"), g.text(base["clip"], ""), g.latent(size)
    return lambda model: g.ksample([model, 0] if isinstance(model, str) else model, c, empty, start, 2.0)


def apply(g, model, lora, strength):
    return g.add("LoraModelLoader", model=model, lora=[lora, 0], strength_model=strength, bypass=False)


def test_what_the_hosts_own_trainer_writes_merges_into_the_picture_of_stacked_loaders(host, sd15):
    """LoRA, LoHa and LoKr with the biases and norms that the trainer changes beside them, as LORA_MODEL and as
    files."""
    g = Graph()
    base = g.checkpoint(sd15)
    c = g.text(base["clip"], "a toy")
    weights = {"LoRA": 0.8, "LoHa": -0.5, "LoKr": 1.2}
    trained = {
        name: g.add(
            "TrainLoraNode", model=base["model"], latents=g.latent(64), positive=c, algorithm=name, **TRAINED
        )
        for name in weights
    }
    for name, node in trained.items():
        g.add("SaveLoRA", lora=[node, 0], prefix=f"loras/native_{name}", steps=3)
    host.client.run(g.prompt)
    folder = host.base_dir / "output" / "loras"
    files = {name: next(folder.glob(f"native_{name}*.safetensors")) for name in weights}
    assert any(key.endswith(".lokr_w1") for key in load_file(files["LoKr"]))
    assert any(key.endswith(".hada_w1_a") for key in load_file(files["LoHa"]))
    assert any(key.endswith(".diff_b") for key in load_file(files["LoRA"]))

    g = Graph()
    base = g.checkpoint(sd15)
    sample = scene(g, base, 64)
    loaded = {name: g.add("DCOLoadLoRA", lora_name=path.name) for name, path in files.items()}
    merge = g.merge(
        [[node, 0] for node in loaded.values()], weights=", ".join(map(str, weights.values())),
        name="native_merge", compare=False,
    )  # fmt: skip
    stacked = base["model"]
    for name, weight in weights.items():
        stacked = [apply(g, stacked, loaded[name], weight), 0]
    merged = sample(apply(g, base["model"], merge, 1.0))
    same, other = g.compare(merged, sample(stacked)), g.compare(merged, sample(base["model"]))
    mark = len(host.log())
    outputs = host.client.run(g.prompt)
    assert facts(outputs, same)["relative"] < 1e-5
    assert facts(outputs, other)["relative"] > 1e-3
    assert "lora key not loaded" not in host.log()[mark:]
    name = saved_file(outputs, merge).removeprefix("loras/")
    g = Graph()
    base = g.checkpoint(sd15)
    sample = scene(g, base, 64)
    from_file = g.add("LoraLoaderModelOnly", model=base["model"], lora_name=name, strength_model=1.0)
    lora = g.add("DCOLoadLoRA", lora_name=name)
    compared = g.compare(sample(from_file), sample(apply(g, base["model"], lora, 1.0)))
    mark = len(host.log())
    assert facts(host.client.run(g.prompt), compared)["relative"] < 1e-6
    assert "lora key not loaded" not in host.log()[mark:]


@pytest.fixture(scope="module")
def two(host):
    """A subject and a style LoRA of the Toy World, as files."""
    g = Graph()
    base = g.toy()
    subject = g.toy_trainer(base, rank=4, layers="all linear", name="methods_subject")
    style = g.toy_trainer(
        base, "style", rank=6, alpha=3.0, batch_size=1, name="methods_style"
    )
    outputs = host.client.run(g.prompt)
    return [saved_file(outputs, node).removeprefix("loras/") for node in (subject, style)]


def merged(host, two, weights="1, 1", **changes):
    """Merge the two files; the node's text, and the file."""
    g = Graph()
    loaded = [g.add("DCOLoadLoRA", lora_name=name) for name in two]
    values = {"weights": weights, "name": "methods"} | changes
    node = g.merge([[one, 0] for one in loaded], **values)
    outputs = host.client.run(g.prompt)
    return outputs[node]["text"][0], host.base_dir / "output" / saved_file(outputs, node)


def read(host, name):
    return read_lora(host.base_dir / "output" / "loras" / name)


def deltas(lora):
    return {key: layer.delta() for key, layer in lora.layers.items()}


def assert_equal(a, b, tolerance=1e-6):
    assert set(a) == set(b)
    for key in a:
        assert (a[key] - b[key]).norm() <= tolerance * b[key].norm() + 1e-12, key


def test_a_smaller_merge_tells_its_error_and_the_file_too(host, two):
    text, path = merged(host, two, size="by rank", size__rank=3)
    small, (a, b) = read_lora(path), (deltas(read(host, name)) for name in two)
    exact = {key: sum(d[key] for d in (a, b) if key in d) for key in {*a, *b}}
    assert max(layer.rank for layer in small.layers.values()) == 3
    error = sum((layer.delta() - exact[key]).square().sum() for key, layer in small.layers.items()).sqrt()
    total = sum(d.square().sum() for d in exact.values()).sqrt()
    assert float(small.metadata["dco.error"]) == pytest.approx(float(error / total), rel=0.01)
    assert f"{float(error / total):.4f} in total" in text
    text, path = merged(host, two, size="by error", size__max_error=0.2, save_dtype="fp16")
    for key, layer in read_lora(path).layers.items():
        assert layer.up.dtype == torch.float16
        assert (layer.delta() - exact[key]).norm() <= 0.2 * exact[key].norm()


def test_block_weights_and_presets_reach_the_blocks_they_name(host, two):
    text, path = merged(host, two, "1, 2", block_weights="1: up = 0\n2: no text encoder\n2: middle = -1")
    a, b = (deltas(read(host, name)) for name in two)
    expected, found = {}, set()
    for key in {*a, *b}:
        first = a.get(key, 0) * (0 if "unet_up" in key else 1)
        second = b.get(key, 0) * (-2 if "unet_middle" in key else 2)
        total = first + second
        found |= {"unet_up" in key and key in a, "unet_middle" in key and key in b and 2}
        if torch.is_tensor(total) and total.norm():
            expected[key] = total
    assert {True, 2} <= found  # both rules had something to do
    assert_equal(deltas(read_lora(path)), expected, 1e-5)
    with pytest.raises(HostError, match="fits no layer; the blocks are"):
        merged(host, two, block_weights="upp = 0")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "TIES", "method__density": 0.5},
        {"method": "DARE", "method__drop": 0.3, "method__drop_seed": 1},
        {"method": "NP-LoRA", "method__projection": 1.0},
    ],
    ids=lambda o: o["method"],
)
def test_other_methods_say_so_in_text_and_header(host, two, options):
    text, path = merged(host, two, **options)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["dco.method"] == options["method"].lower()
    assert [entry["weight"] for entry in json.loads(header["dco.merge"])] == [1.0, 1.0]
    assert header["dco.method"] in text and "dco.error" in header


def test_ziplora_learns_mergers_on_the_model_and_leaves_it_alone(host, two):
    g = Graph()
    base = g.toy()
    before = g.add("DCOTestWeightHash", model=base["model"], when=0)
    first = [g.add("DCOToyWorldReferences", what=what) for what in ("subject", "style")]
    latents = [[g.add("VAEEncode", pixels=[node, 0], vae=base["vae"]), 0] for node in first]
    prompts = [g.text(base["clip"], text) for text in ("a large toy on grass", "a toy on sand")]
    loaded = [g.add("DCOLoadLoRA", lora_name=name) for name in two]
    merge = g.merge(
        [[one, 0] for one in loaded], weights="1, 1", name="zip", method="ZipLoRA", method__model=base["model"],
        method__subject_prompt=prompts[0], method__subject_latent=latents[0], method__style_prompt=prompts[1],
        method__style_latent=latents[1], method__steps=8, method__learning_rate=0.05, method__similarity=0.01,
        method__zip_seed=0,
    )  # fmt: skip
    after = g.add("DCOTestWeightHash", model=base["model"], when=1, after=[merge, 0])
    outputs = host.client.run(g.prompt)
    assert facts(outputs, before) == facts(outputs, after)
    assert "ZipLoRA, 8 steps: content loss" in outputs[merge]["text"][0]
    zipped = read_lora(host.base_dir / "output" / saved_file(outputs, merge))
    a, b = (read(host, name) for name in two)
    changed = 0
    for key in set(a.layers) & set(b.layers):
        # columns are scaled and nothing else: every column of dW lies in the plane of the two columns
        columns = torch.stack([a.layers[key].delta().flatten(1), b.layers[key].delta().flatten(1)], dim=-1)
        target = zipped.layers[key].delta().flatten(1)
        for j in range(target.shape[1]):
            if columns[:, j].norm(dim=0).min() > 1e-6:
                m = torch.linalg.lstsq(columns[:, j].double(), target[:, j : j + 1].double()).solution
                assert (columns[:, j].double() @ m - target[:, j : j + 1]).norm() <= 1e-4 * target[
                    :, j
                ].norm() + 1e-9
                changed += bool((m - 1).abs().max() > 0.01)
    assert changed > 100


def test_a_comparison_comes_as_table_and_picture(host, two):
    g = Graph()
    loaded = [g.add("DCOLoadLoRA", lora_name=name) for name in two]
    node = g.merge([[one, 0] for one in loaded], weights="1, -1", name="")
    picture = g.add("SaveImage", images=[node, 2], filename_prefix="compatibility")
    table = g.add("PreviewAny", source=[node, 3])
    outputs = host.client.run(g.prompt)
    text = outputs[table]["text"][0]
    assert "column cosine" in text and "cross-talk" in text and "in total" in text
    assert outputs[picture]["images"]


def test_wrong_choices_are_refused_in_words(host, two):
    for changes, words in (
        ({"block_weights": "up"}, "NAME = NUMBER"),
        ({"weights": "1, 1, 1"}, "2 LoRAs"),
        ({"save_keys": "diffusers"}, "write kohya keys"),
    ):
        with pytest.raises(HostError, match=words):
            merged(host, two, **changes)
