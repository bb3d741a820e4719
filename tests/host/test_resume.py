"""Stopping the trainer in the real host, and going on."""

from __future__ import annotations

import shutil
import threading

import pytest
import torch
from host_graph import Graph, saved_file
from safetensors.torch import load_file, save_file

from dco_core.toy_world import model as toy_model
from devtools.api import HostInterrupted


def tensors(host, outputs, trainer):
    return load_file(host.base_dir / "output" / saved_file(outputs, trainer))


def toy(**changes):
    g = Graph()
    return g, g.toy_trainer(g.toy(), **{"steps": 24, "resume": True, **changes})


def interrupted(host, at_step, **changes):
    """Run the trainer and press cancel when it reports a step."""
    g, trainer = toy(**changes)
    pressed = threading.Event()

    def on_progress(kind, data):
        if (
            kind == "progress"
            and data["node"] == trainer
            and data["value"] >= at_step
            and not pressed.is_set()
        ):
            pressed.set()
            host.client.interrupt()

    with pytest.raises(HostInterrupted):
        host.client.run(g.prompt, on_progress)


def test_checkpoints_come_by_the_clock(host):
    def seen(minutes):
        g, trainer = toy(
            steps=12, checkpoint_every=0, checkpoint_minutes=minutes, name="clock"
        )
        counts = []

        def on_progress(kind, data):
            if kind == "progress" and data["node"] == trainer and data["value"] < 12:
                folder = host.base_dir / "output" / "dco_checkpoints"
                counts.append(len(list(folder.rglob("*.safetensors"))))

        host.client.run(g.prompt, on_progress)
        shutil.rmtree(host.base_dir / "output" / "dco_checkpoints", ignore_errors=True)
        return max(counts)

    assert seen(0.0) == 0
    assert seen(1e-4) > 0


@pytest.fixture(autouse=True)
def no_checkpoints(host):
    """Neither those of other files, as the host is theirs too, nor this one's afterwards."""
    folder = host.base_dir / "output" / "dco_checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"learned_tokens": "with the LoRA", "learned_tokens__token_learning_rate": 1e-3,
         "learned_tokens__initializers": "", "learned_tokens__vectors": 0},
    ],
    ids=["LoRA", "LoRA and tokens"],
)  # fmt: skip
def test_cancelled_and_run_again_it_ends_as_if_it_had_never_stopped(host, changes):
    g, trainer = toy(name="whole", resume=False, **changes)
    whole = tensors(host, host.client.run(g.prompt), trainer)
    loras, embeddings = host.base_dir / "output" / "loras", host.base_dir / "models" / "embeddings"

    def stopped_files():
        return [p.name for folder in (loras, embeddings) for p in folder.glob("stopped_*stopped_at_*")]

    interrupted(host, 5, name="stopped", checkpoint_every=3, **changes)
    assert len(stopped_files()) == (2 if changes else 1)
    other = loras / "stopped_00009_stopped_at_3.safetensors"  # of another run
    save_file({"empty": torch.zeros(1)}, other, metadata={"dco.config": '{"steps": 40}'})
    g, trainer = toy(name="stopped", checkpoint_every=3, **changes)
    outputs = host.client.run(g.prompt)
    assert stopped_files() == [other.name]
    other.unlink()
    assert "Found the checkpoint of step " in outputs[trainer]["text"][0]
    assert "going on from there" in outputs[trainer]["text"][0]
    found = tensors(host, outputs, trainer)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], whole[key]) for key in whole)


def test_a_run_that_was_finished_is_not_trained_again_but_goes_on_to_more_steps(host):
    g, trainer = toy(name="finished", steps=10, validation_steps=0)
    first = tensors(host, host.client.run(g.prompt), trainer)
    g, trainer = toy(name="finished", steps=10, validation_steps=0, look_ahead=0)  # what it is anyway
    outputs = host.client.run(g.prompt)
    assert "Found the checkpoint of step 10: finished" in outputs[trainer]["text"][0]
    again = tensors(host, outputs, trainer)
    assert all(torch.equal(first[key], again[key]) for key in first)
    g, trainer = toy(name="finished", steps=14, validation_steps=0)
    outputs = host.client.run(g.prompt)
    assert "Found the checkpoint of step 10: going on" in outputs[trainer]["text"][0]
    g, trainer = toy(name="straight", steps=14, validation_steps=0, resume=False)
    straight, longer = tensors(host, host.client.run(g.prompt), trainer), tensors(host, outputs, trainer)
    assert all(torch.equal(straight[key], longer[key]) for key in longer)


def test_other_settings_pictures_or_captions_start_anew_and_say_so(host):
    interrupted(host, 5, name="changed", checkpoint_every=2)
    for changes, words in (
        ({"learning_rate": 2e-3}, "learning_rate 0.001 (now 0.002)"),
        ({"what": "style"}, "other pictures"),
        ({"dropout": 0.2}, "settings of the LoRA"),
    ):
        g, trainer = toy(name="changed", steps=4, **changes)
        text = host.client.run(g.prompt)[trainer]["text"][0]
        assert "Starting anew: the earlier run had" in text, changes
        assert words in text


def patched(g, what):
    """The Toy World with something hung on one of its models."""
    base = g.toy()
    if what == "shift":
        base["model"] = [g.add("ModelSamplingSD3", model=base["model"], shift=2.0), 0]
    elif what == "CLIP's layer":
        base["clip"] = [g.add("CLIPSetLastLayer", clip=base["clip"], stop_at_clip_layer=-1), 0]
    elif what == "LoRA on CLIP":
        base["clip"] = [
            g.add("LoraLoader", model=base["model"], clip=base["clip"], lora_name="on_clip.safetensors",
                  strength_model=0.0, strength_clip=1.0), 1,
        ]  # fmt: skip
    return base


@pytest.fixture
def lora_on_clip(host):
    state = toy_model.load_text_encoder().state_dict()
    name = next(k for k, v in state.items() if k.endswith(".weight") and "layers" in k and v.dim() == 2)
    stem = f"text_encoders.toy_world.transformer.text_encoder.{name.removesuffix('.weight')}"
    path = host.base_dir / "models" / "loras" / "on_clip.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = state[name].shape
    save_file({f"{stem}.lora_down.weight": torch.ones(1, columns), f"{stem}.lora_up.weight": torch.ones(rows, 1)}, path)
    yield
    path.unlink()


def test_what_hangs_on_the_models_tells_runs_apart_and_is_found_again(host, lora_on_clip):
    for what in ("nothing", "shift", "CLIP's layer", "LoRA on CLIP"):
        for found in (False, True):
            g = Graph()
            # checkpoint_every is no part of a run: it is there so that the host does not keep the node's result
            trainer = g.toy_trainer(
                patched(g, what), steps=4, resume=True, name="hung", checkpoint_every=10 + found
            )
            text = host.client.run(g.prompt)[trainer]["text"][0]
            assert ("Found the checkpoint of step 4: finished" in text) == found, (what, text)
            assert ("Starting anew" in text) == (not found and what != "nothing"), (what, text)


def test_without_resume_no_checkpoint_is_written(host):
    g, _ = toy(name="no_checkpoints", steps=4, resume=False, checkpoint_every=1)
    host.client.run(g.prompt)
    assert not (host.base_dir / "output" / "dco_checkpoints").exists()


def test_a_checkpoint_folder_that_cannot_be_written_is_an_error_and_the_lora_is_saved(host):
    folder = host.base_dir / "output" / "dco_checkpoints"
    folder.write_text("a file in its place")
    try:
        g, _ = toy(name="no_room", steps=8, checkpoint_every=3)
        with pytest.raises(Exception, match="Cannot write .*dco_checkpoints.*check free space"):
            host.client.run(g.prompt)
        assert list((host.base_dir / "output" / "loras").glob("no_room_*"))
    finally:
        folder.unlink()


def test_the_report_says_how_it_scored(host):
    g, trainer = toy(name="scored", steps=4, validation_steps=2, keep="best", resume=False)
    text = host.client.run(g.prompt)[trainer]["text"][0]
    assert "Validation margin: best " in text
    assert "distance to the base " in text
