"""The trainer in the real host: what it learns, what it writes, and what it leaves alone."""

from __future__ import annotations

import json
import threading
import time

import pytest
from host_graph import Graph, facts, saved_file
from safetensors import safe_open
from safetensors.torch import load_file

from devtools.api import HostError, HostInterrupted


def log_since(host, mark):
    return host.log()[mark:]


def dataset_trainer(g, base, photos, **changes):
    images = g.add("LoadImageTextDataSetFromFolder", folder=photos)
    values = {"resolution": 64, "objective__beta": 0.01, "steps": 16, "learning_rate": 5e-4} | changes
    return g.trainer(base, [images, 0], [images, 1], **values)


def test_a_checkpoint_learns_from_a_dataset_folder_and_its_lora_loads_in_the_plain_loader(
    host, family, photos
):
    g = Graph()
    base = g.checkpoint(family)
    trainer = dataset_trainer(g, base, photos, name=f"{family}")
    picture = g.add("LoadImage", image="photos/00.jpg")
    validation_loss = g.add(
        "DCOTestValidationLoss", **base, image=[picture, 0], lora=[trainer, 0],
        caption="a photo of a dog in front of wall 0", rank=4, resolution=64, beta=0.01,
    )  # fmt: skip
    outputs = host.client.run(g.prompt)
    loss = facts(outputs, validation_loss)
    assert loss["before"] == pytest.approx(0.6931, abs=1e-3)
    assert loss["after"] < loss["before"] - 0.003

    name = saved_file(outputs, trainer).removeprefix("loras/")
    mark = len(host.log())
    g = Graph()
    base = g.checkpoint(family)
    loaded = g.add(
        "LoraLoader",
        model=base["model"],
        clip=base["clip"],
        lora_name=name,
        strength_model=1.0,
        strength_clip=1.0,
    )
    c, empty, start = g.text(base["clip"], "a dog"), g.text(base["clip"], ""), g.latent(64)
    changed = g.compare(
        g.ksample([loaded, 0], c, empty, start, 2.0, steps=2), g.ksample(base["model"], c, empty, start, 2.0, steps=2)
    )
    found = facts(host.client.run(g.prompt), changed)
    assert found["finite"]
    assert found["relative"] > 1e-4
    assert "lora key not loaded" not in log_since(host, mark)
    assert "NOT LOADED" not in log_since(host, mark)


@pytest.mark.parametrize("layers", ["attention and feed-forward", "all linear and convolution"])
def test_a_lora_on_more_than_attention_is_read_whole_by_the_plain_loader(host, family, photos, layers):
    """And the image with it is the one that reward guidance makes at w_rg = w_text = 1, from the fresh objects."""
    g = Graph()
    base = g.checkpoint(family)
    trainer = dataset_trainer(
        g, base, photos, steps=2, layers=layers, rank=2, name=f"more_{family}"
    )
    c, start = g.text(base["clip"], "a dog"), g.latent(64)
    fresh = g.guided(base["model"], [trainer, 0], c, c, start, 1.0, 1.0, steps=2)
    hashed = g.compare(fresh, fresh)
    mark = len(host.log())
    trained = host.client.run(g.prompt)
    name = saved_file(trained, trainer).removeprefix("loras/")
    g = Graph()
    base = g.checkpoint(family)
    loaded = g.add("LoraLoaderModelOnly", model=base["model"], lora_name=name, strength_model=1.0)
    read = g.add("DCOLoadLoRA", lora_name=name)
    c, start = g.text(base["clip"], "a dog"), g.latent(64)
    by_loader = g.ksample([loaded, 0], c, c, start, 1.0, steps=2)
    same = g.compare(g.guided(base["model"], [read, 0], c, c, start, 1.0, 1.0, steps=2), by_loader)
    changed = g.compare(by_loader, g.ksample(base["model"], c, c, start, 1.0, steps=2))
    outputs = host.client.run(g.prompt)
    assert facts(outputs, same)["sha256"] == facts(trained, hashed)["sha256"]
    assert facts(outputs, same)["relative"] < 1e-4
    assert facts(outputs, changed)["relative"] > 10 * facts(outputs, same)["relative"]
    assert "lora key not loaded" not in log_since(host, mark)
    assert "NOT LOADED" not in log_since(host, mark)


def test_the_file_is_the_lora_with_kohya_keys_and_its_whole_configuration(host, sdxl, photos):
    g = Graph()
    base = g.checkpoint(sdxl)
    trainer = dataset_trainer(g, base, photos, steps=2, name="header")
    core = g.add("SaveLoRA", lora=[trainer, 0], prefix="loras/core_saved")
    g.add("LossGraphNode", loss=[trainer, 1], filename_prefix="loss")
    outputs = host.client.run(g.prompt)
    path = host.base_dir / "output" / saved_file(outputs, trainer)
    ours = load_file(path)
    by_core = load_file(sorted((host.base_dir / "output" / "loras").glob("core_saved*"))[-1])
    assert core
    assert ours.keys() == by_core.keys()
    assert all((ours[key] == by_core[key]).all() for key in ours)
    assert all(key.startswith("lora_unet_") for key in ours)
    assert {key.split(".", 1)[1] for key in ours} == {"lora_down.weight", "lora_up.weight", "alpha"}
    with safe_open(path, "pt") as file:
        header = file.metadata()
    config = json.loads(header["dco.config"])
    assert (config["steps"], config["rank"], config["beta"], config["seed"]) == (2, 4, 0.01, 0)
    assert config["captions"][0] == "a photo of a <dog> in front of wall 0"
    assert header["ss_base_model_version"] == "sdxl_base_v1-0"
    assert header["ss_network_dim"] == "4"
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"


def test_the_same_seed_trains_the_same_file_twice(host):
    files = []
    for prefix in ("once", "twice"):
        g = Graph()
        trainer = g.toy_trainer(g.toy(), name=prefix)
        files.append(load_file(host.base_dir / "output" / saved_file(host.client.run(g.prompt), trainer)))
    assert files[0].keys() == files[1].keys()
    assert all((files[0][key] == files[1][key]).all() for key in files[0])


def test_training_leaves_the_model_bit_identical(host):
    g = Graph()
    base = g.toy()
    before = g.add("DCOTestWeightHash", model=base["model"], when=1)
    c, empty, start = g.text(base["clip"], "a large red star"), g.text(base["clip"], ""), g.latent(256)
    plain = g.ksample(base["model"], c, empty, start, 2.0)
    g.compare(plain, plain)
    at_start = facts(host.client.run(g.prompt), before)
    trainer = g.toy_trainer(base)
    after = g.add("DCOTestWeightHash", model=base["model"], when=2, after=[trainer, 0])
    assert facts(host.client.run(g.prompt), after) == at_start
    same = g.compare(g.ksample(base["model"], c, empty, start, 2.0, denoise=0.99999), plain)
    assert facts(host.client.run(g.prompt), same)["equal"]


def interrupted_run(host, prompt, trainer, at_step):
    """Run a prompt and press cancel when its trainer reports `at_step`; returns the last step that was reported."""
    steps = []

    def on_progress(kind, data):
        if kind == "progress" and data["node"] == trainer:
            steps.append((data["value"], data["max"]))
            if data["value"] >= at_step and len(steps) < 10**6 and not pressed.is_set():
                pressed.set()
                host.client.interrupt()

    pressed = threading.Event()
    with pytest.raises(HostInterrupted):
        host.client.run(prompt, on_progress)
    return steps


def test_cancel_stops_within_a_step_and_keeps_the_lora_trained_so_far(host):
    g = Graph()
    base = g.toy()
    before = g.add("DCOTestWeightHash", model=base["model"], when=1)
    at_start = facts(host.client.run(g.prompt), before)
    trainer = g.toy_trainer(base, steps=5000, name="cancelled")
    started = time.monotonic()
    steps = interrupted_run(host, g.prompt, trainer, at_step=3)
    assert time.monotonic() - started < 300
    (path,) = (host.base_dir / "output" / "loras").glob("cancelled_*")
    shown = host.client.object_info()["DCOLoadLoRA"]["input"]["required"]["lora_name"]
    names = shown[1].get("options") or shown[0]
    assert path.name in names and (names[0] != path.name or len(names) == 1)  # no loader begins with it
    with safe_open(path, "pt") as file:
        trained = int(file.metadata()["ss_steps"])
    assert steps[0][1] == 5000
    assert 3 <= trained < 500
    assert path.name == f"cancelled_00001_stopped_at_{trained}.safetensors"
    tensors = load_file(path)
    assert any(tensor.abs().max() > 0 for key, tensor in tensors.items() if "lora_up" in key)

    g = Graph()
    base = g.toy()
    after = g.add("DCOTestWeightHash", model=base["model"], when=2)
    loaded = g.add("LoraLoaderModelOnly", model=base["model"], lora_name=path.name, strength_model=1.0)
    c, empty, start = g.text(base["clip"], "a toy"), g.text(base["clip"], ""), g.latent(256)
    changed = g.compare(
        g.ksample([loaded, 0], c, empty, start, 2.0, steps=2), g.ksample(base["model"], c, empty, start, 2.0, steps=2)
    )
    outputs = host.client.run(g.prompt)
    assert facts(outputs, changed)["relative"] > 1e-5
    found = facts(outputs, after)
    assert (found["hash"], found["hooks"], found["grads"]) == (at_start["hash"], 0, at_start["grads"])


def test_progress_arrives_step_by_step(host):
    g = Graph()
    trainer = g.toy_trainer(g.toy(), steps=30, name="progress")
    seen = []
    host.client.run(g.prompt, lambda kind, data: seen.append((kind, data)))
    values = [d["value"] for k, d in seen if k == "progress" and d["node"] == trainer]
    assert values == sorted(values)
    assert values[-1] == 30
    assert len(values) > 3


def test_the_toy_world_is_an_epsilon_model_unless_asked_for_flow_with_the_papers_beta_on_both(host):
    g = Graph()
    loader = g.add("DCOToyWorldLoader")  # as templates of older versions have it, too
    base = {name: [loader, i] for i, name in enumerate(("model", "clip", "vae"))}
    trainers = [
        g.toy_trainer(world, steps=2, objective__beta=0.0, name=name)
        for name, world in (("epsilon", base), ("flow", g.toy("flow")))
    ]
    outputs = host.client.run(g.prompt)
    headers = []
    for trainer in trainers:
        with safe_open(host.base_dir / "output" / saved_file(outputs, trainer), "pt") as file:
            headers.append(file.metadata())
    assert [header["dco.prediction"] for header in headers] == ["epsilon", "flow"]
    assert [float(header["dco.beta"]) for header in headers] == [1.0, 1.0]
    assert {header["ss_base_model_version"] for header in headers} == {"ToyWorld"}


def test_dreambooth_is_the_plain_loss_and_needs_no_beta(host):
    g = Graph()
    base = g.toy()
    references = g.add("DCOToyWorldReferences", what="subject")
    trainer = g.trainer(base, [references, 0], [references, 1], name="db", objective="DreamBooth")
    outputs = host.client.run(g.prompt)
    with safe_open(host.base_dir / "output" / saved_file(outputs, trainer), "pt") as file:
        assert json.loads(file.metadata()["dco.config"])["objective"] == "dreambooth"
    summary = outputs[trainer]["text"][0].splitlines()[0]
    assert "loss" in summary and "gate" not in summary and "beta" not in summary  # it has neither


def test_an_error_in_training_names_the_step_writes_nothing_and_leaves_the_model_alone(host):
    g = Graph()
    base = g.toy()
    before = g.add("DCOTestWeightHash", model=base["model"], when=1)
    at_start = facts(host.client.run(g.prompt), before)
    g.toy_trainer(base | {"clip": [g.add("DCOTestBrokenClip"), 0]}, name="broken")
    with pytest.raises(HostError, match="not finite in 5 steps in a row, up to step 5 of 12"):
        host.client.run(g.prompt)
    assert not list((host.base_dir / "output" / "loras").glob("broken*"))
    g = Graph()
    after = g.add("DCOTestWeightHash", model=g.toy()["model"], when=3)
    found = facts(host.client.run(g.prompt), after)
    assert (found["hash"], found["grads"], found["hooks"]) == (at_start["hash"], at_start["grads"], 0)
