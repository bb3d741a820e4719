"""Bad input gets one clear sentence, and nothing is lost or half-written."""

from __future__ import annotations

import pytest
from host_graph import Graph

from devtools.api import HostError


def files(host):
    return sorted(p.name for p in (host.base_dir / "output").rglob("*") if p.is_file())


def refused(host, graph, *words):
    """Run the prompt: it must fail before any training step and write nothing; its message holds all words."""
    before, steps = files(host), []
    trainers = [n for n, c in graph.prompt.items() if c["class_type"] == "DCOLoRATrainer"]

    def on_progress(kind, data):
        if kind == "progress" and data["node"] in trainers:
            steps.append(data)

    with pytest.raises(HostError) as error:
        host.client.run(graph.prompt, on_progress)
    for word in words:
        assert word in str(error.value)
    assert steps == []
    assert files(host) == before


def test_captions_and_images_of_different_number(host):
    g = Graph()
    references = g.add("DCOToyWorldReferences", what="subject")
    g.trainer(g.toy(), [references, 0], "a toy\na second toy")
    refused(host, g, "4 images", "2 captions", "one caption per image")


def test_an_empty_caption(host, photos):
    folder = host.base_dir / "input" / "uncaptioned"
    folder.mkdir()
    (folder / "00.jpg").write_bytes((host.base_dir / "input" / photos / "00.jpg").read_bytes())
    (folder / "01.jpg").write_bytes((host.base_dir / "input" / photos / "01.jpg").read_bytes())
    (folder / "01.txt").write_text("a photo of a dog", encoding="utf-8")
    g = Graph()
    images = g.add("LoadImageTextDataSetFromFolder", folder="uncaptioned")
    g.trainer(g.toy(), [images, 0], [images, 1])
    refused(host, g, "caption of image", "is empty", "describe")


@pytest.mark.parametrize("objective", ["Output preservation", "DreamBooth + prior preservation"])
def test_no_class_prompt_and_no_marker_to_make_one_of(host, objective):
    g = Graph()
    references = g.add("DCOToyWorldReferences", what="style")
    g.trainer(g.toy(), [references, 0], "a star on the beach, in flat style", objective=objective)
    refused(host, g, "class_prompt is empty", "a photo of a dog")


@pytest.mark.parametrize(
    ("size", "count", "words"), [(1, 1, "Class image 1: "), (8, 2000, "2000 class images")]
)
def test_class_images_that_cannot_be_used(host, size, count, words):
    g = Graph()
    images = g.add("EmptyImage", width=size, height=size, batch_size=count, color=0)
    g.toy_trainer(g.toy(), objective="DreamBooth + prior preservation", class_images=[images, 0])
    refused(host, g, words)


def test_rank_zero(host):
    g = Graph()
    g.toy_trainer(g.toy(), rank=0)
    refused(host, g, "rank", "0", "1")


def test_a_picture_that_is_not_finite(host):
    g = Graph()
    g.trainer(g.toy(), [g.add("DCOTestBrokenImage"), 0], "a toy")
    refused(host, g, "Image 1", "NaN")


def test_an_unknown_objective_from_an_old_workflow(host):
    g = Graph()
    trainer = g.toy_trainer(g.toy())
    g.prompt[trainer]["inputs"]["objective"] = "Nope"
    refused(host, g, "objective 'Nope' is unknown", "DCO, DreamBooth")


def test_a_choice_of_more_loras_that_is_none(host):
    """The host drops such a choice without a word, and the LoRAs that belong to it with it."""
    g = Graph()
    base = g.toy()
    trainer = g.toy_trainer(base, name="more", steps=2)
    c = g.text(base["clip"], "a toy")
    sampled = g.guided(base["model"], [trainer, 0], c, c, g.latent(256), 3.0, 7.5, more_loras="7 more")
    g.compare(sampled, sampled)
    with pytest.raises(HostError, match="more_loras '7 more' is unknown: choose this one alone, 1 more"):
        host.client.run(g.prompt)


def test_a_resolution_that_the_toy_world_cannot_draw(host):
    g = Graph()
    g.toy_trainer(g.toy(), resolution=1024)
    refused(host, g, "256 x 256", "set resolution to 256")


def test_an_error_has_no_path_of_modules_in_its_name(host):
    g = Graph()
    g.toy_trainer(g.toy(), resolution=1024)
    with pytest.raises(HostError) as error:
        host.client.run(g.prompt)
    assert error.value.exception_type == "DCOError"
    assert error.value.details["exception_message"].count("256 x 256") == 1


def test_no_folder_of_pictures(host):
    info = host.client.object_info()["DCOLoadDataset"]["input"]["required"]["folder"]
    options = info[1].get("options") or info[0]
    assert "3d" not in options and options


@pytest.mark.parametrize("prefix", ["../../escaped", "../escaped", "loras/../../escaped", "loras/", "  "])
def test_a_file_name_that_leads_out_of_the_output_folder_or_nowhere(host, prefix):
    g = Graph()
    g.toy_trainer(g.toy(), name=prefix)
    refused(host, g, "name \"", "my_subject")
    assert not list(host.base_dir.parent.glob("escaped*"))


def test_a_lora_of_another_model(host, sd15):
    g = Graph()
    toy, other = g.toy(), g.checkpoint(sd15)
    trainer = g.toy_trainer(toy, name="of_toy")
    host.client.run(g.prompt)
    c = g.text(other["clip"], "a dog")
    sampled = g.guided(other["model"], [trainer, 0], c, c, g.latent(64), 3.0, 7.5)
    g.compare(sampled, sampled)
    with pytest.raises(HostError, match="does not belong to this model"):
        host.client.run(g.prompt)


@pytest.mark.parametrize(
    ("weights", "words"), [("1", "2 LoRAs"), ("1, one", "not numbers"), ("0, 0", "all 0"), ("1, nan", "nan")]
)
def test_weights_that_do_not_fit(host, weights, words):
    g = Graph()
    base = g.toy()
    trainer = g.toy_trainer(base, name="weights", steps=2)
    host.client.run(g.prompt)
    before = files(host)
    g.merge([[trainer, 0], [trainer, 0]], weights=weights, name="never")
    with pytest.raises(HostError, match=words):
        host.client.run(g.prompt)
    assert [f for f in files(host) if "never" in f] == []
    assert len(files(host)) - len(before) <= 1  # the trainer may have run again


def test_a_damaged_lora_file(host):
    folder = host.base_dir / "output" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "damaged.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all")
    g = Graph()
    loaded = g.add("DCOLoadLoRA", lora_name="damaged.safetensors")
    g.add("SaveLoRA", lora=[loaded, 0], prefix="loras/never")
    refused(host, g, "damaged.safetensors", "no complete safetensors file")


def test_a_canvas_that_the_toy_world_cannot_draw(host):
    g = Graph()
    base = g.toy()
    c = g.text(base["clip"], "a toy")
    sampled = g.ksample(base["model"], c, c, g.latent(512), 2.0)
    g.compare(sampled, sampled)
    refused(host, g, "256 x 256", "512 x 512")


def test_weights_of_an_unknown_kind_are_refused_by_name(host):
    """Seen without a host run: a tensor subclass as a weight, as GGUF loaders make them."""
    g = Graph()
    node = g.add("DCOTestRefusesQuantised")
    assert "which cannot be trained: load the model in" in host.client.run(g.prompt)[node]["text"][0]
