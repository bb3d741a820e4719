"""What goes into training in the real host: folders, files, VAE posteriors, caching, captions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from host_graph import Graph, facts
from PIL import Image
from safetensors.torch import save_file

from devtools.api import HostError


@pytest.fixture(scope="module")
def folder(host):
    """Pictures as phones and artists make them: a turned one, a transparent one, a repeated one."""
    path = host.base_dir / "input" / "dogs"
    (path / "3_repeated").mkdir(parents=True)
    ramp = np.zeros((48, 80, 3), np.uint8)
    ramp[:, :40, 0] = 255  # red on the left
    picture = Image.fromarray(ramp)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to look at it
    picture.save(path / "a.jpg", exif=exif)
    picture.save(path / "3_repeated" / "c.png")
    rgba = np.dstack([ramp, np.zeros((48, 80), np.uint8)])
    rgba[:, :40, 3] = 255
    Image.fromarray(rgba, "RGBA").save(path / "b.png")
    (path / "a.txt").write_bytes("\ufeffa photo of a <dog> in a garden".encode())
    (path / "b.txt").write_text("a photo of a <dog> on a couch", encoding="utf-8")
    (path / "3_repeated" / "c.txt").write_text("a side-view photo of a <dog> on a street", encoding="utf-8")
    return "dogs"


def test_a_folder_comes_upright_with_captions_masks_and_repeats(host, folder):
    g = Graph()
    data = g.add("DCOLoadDataset", folder=folder)
    shown = g.add("DCOTestShowDataset", images=[data, 0], captions=[data, 1], masks=[data, 2])
    found = facts(host.client.run(g.prompt), shown)
    assert found["captions"] == [
        *["a side-view photo of a <dog> on a street"] * 3, "a photo of a <dog> in a garden",
        "a photo of a <dog> on a couch",
    ]  # fmt: skip
    assert found["sizes"] == [[48, 80]] * 3 + [[80, 48], [48, 80]]
    assert found["means"][3][0] == pytest.approx(1.0, abs=0.05)  # turned: red on top
    assert found["means"][4][2] == pytest.approx(1.0, abs=0.02)  # transparent parts are white
    assert found["masks"] == [1.0, 1.0, 1.0, 1.0, 0.5]


def test_a_folder_trains_with_its_masks(host, folder, sd15):
    g = Graph()
    data = g.add("DCOLoadDataset", folder=folder)
    trainer = g.trainer(
        g.checkpoint(sd15),
        [data, 0],
        [data, 1],
        masks=[data, 2],
        resolution=64,
        steps=2,
        batch_size=1,
        rank=2,
    )
    text = host.client.run(g.prompt)[trainer]["text"][0]
    assert "duplicate" not in text and "same caption" not in text  # repeats of a picture are no duplicates


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jpg", b"", ("x.jpg", "empty")),
        ("x.png", b"no picture at all", ("x.png",)),
        ("x.txt", "a caf\u00e9".encode("latin-1"), ("x.txt", "UTF-8")),
    ],
)
def test_a_broken_file_is_named(host, name, content, words):
    path = host.base_dir / "input" / f"broken_{name.replace('.', '_')}_{len(content)}"
    path.mkdir()
    Image.new("RGB", (64, 64)).save(path / "x.bmp")
    (path / name).write_bytes(content)
    g = Graph()
    data = g.add("DCOLoadDataset", folder=path.name)
    g.add("PreviewAny", source=[data, 1])
    with pytest.raises(HostError) as error:
        host.client.run(g.prompt)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_folder_outside_the_input_folder_is_refused(host):
    g = Graph()
    g.add("PreviewAny", source=[g.add("DCOLoadDataset", folder="../output"), 1])
    with pytest.raises(HostError):
        host.client.run(g.prompt)


def test_twenty_thousand_pictures_are_refused_unread(host):
    path = host.base_dir / "input" / "too_many"
    path.mkdir()
    for i in range(20000):
        (path / f"{i}.png").touch()
    g = Graph()
    g.add("PreviewAny", source=[g.add("DCOLoadDataset", folder="too_many"), 1])
    with pytest.raises(HostError, match="20000"):
        host.client.run(g.prompt)
    g = Graph()
    images = g.add("EmptyImage", width=16, height=16, batch_size=4000, color=0)
    g.trainer(g.toy(), [images, 0], "a toy")
    with pytest.raises(HostError, match="4000 images"):
        host.client.run(g.prompt)


def test_a_picture_of_one_pixel_is_refused(host):
    g = Graph()
    g.trainer(g.toy(), [g.add("EmptyImage", width=1, height=1, batch_size=1, color=0), 0], "a <toy> on white")
    with pytest.raises(HostError, match="Image 1: .*1 x 1"):
        host.client.run(g.prompt)


def test_masks_of_another_number_and_empty_ones_are_refused(host):
    g = Graph()
    references = g.add("DCOToyWorldReferences", what="subject")
    masks = g.add("EmptyImage", width=64, height=64, batch_size=3, color=0)
    g.trainer(g.toy(), [references, 0], [references, 1], masks=[masks, 0])
    with pytest.raises(HostError, match="4 images and 3 masks"):
        host.client.run(g.prompt)
    g = Graph()
    references = g.add("DCOToyWorldReferences", what="subject")
    masks = g.add("SolidMask", value=0.0, width=64, height=64)
    g.trainer(g.toy(), [references, 0], [references, 1], masks=[masks, 0])
    with pytest.raises(HostError, match="mask of image 1 is empty"):
        host.client.run(g.prompt)


def test_the_vae_posterior_is_kept_and_scaled_and_equal_pictures_are_encoded_once(host):
    g = Graph()
    node = g.add("DCOTestPosterior")
    found = facts(host.client.run(g.prompt), node)
    assert found["encoded"] == 2  # of three pictures, two of them equal
    assert found["mean"] < 1e-5 and found["std"] < 1e-5
    assert found["native_std"] < 1e-5
    assert found["spread"] > 0
    assert found["hooks"] == 0


def test_text_and_vae_work_once_however_long_training_lasts(host):
    def counts(steps, **changes):
        g = Graph()
        base = g.toy()
        counted = g.add("DCOTestCounting", clip=base["clip"], vae=base["vae"], run=steps)
        base |= {"clip": [counted, 0], "vae": [counted, 1]}
        trainer = g.toy_trainer(base, steps=steps, batch_size=2, name="counted", **changes)
        shown = g.add("DCOTestCounts", clip=[counted, 0], vae=[counted, 1], after=[trainer, 0])
        return facts(host.client.run(g.prompt), shown)

    assert counts(2) == counts(12) == {"text": 4, "vae": 4}
    assert counts(3, caption_dropout=0.5) == {"text": 5, "vae": 4}


def test_other_models_leave_the_device_while_training(host, sd15):
    g = Graph()
    base = g.checkpoint(sd15)
    node = g.add("DCOTestOffload", **base)
    found = facts(host.client.run(g.prompt), node)
    assert found["before"] >= 2
    assert found["during"] == ["SD15"] or found["during"] == ["BaseModel"]
    assert len(found["with_tokens"]) == 2


def test_the_caption_check_comes_before_training_and_in_the_report(host):
    g = Graph()
    references = g.add("DCOToyWorldReferences", what="style")
    trainer = g.trainer(
        g.toy(), [references, 0], "a photo of sks toy", steps=2, name="checked"
    )
    text = host.client.run(g.prompt)[trainer]["text"][0]
    assert "sks" in text and "try:" in text and "<toy>" in text


def test_the_check_node_finds_what_is_too_long_for_the_encoder(host, sd15):
    def caption_report(base, captions):
        g = Graph()
        node = g.add("DCOCheckCaptions", captions=captions, kind="subject", clip=base(g)["clip"])
        return host.client.run(g.prompt)[node]["text"][0]

    long = "a photo of a <dog> on a couch, " + "very " * 100 + "close-up"
    short = "a close-up photo of a <dog> on a couch"
    assert "tokens" in caption_report(lambda g: g.checkpoint(sd15), long)
    assert "no complaints" in caption_report(lambda g: g.checkpoint(sd15), short)
    eighteen = "a large <toy> on the left, on the beach, in flat style with a red star and a blue heart"
    assert "tokens" in caption_report(lambda g: g.toy(), eighteen)


@pytest.mark.parametrize("node", ["DCOCheckCaptions", "DCOComprehensiveCaption"])
def test_the_notes_on_captions_are_shown_again_when_the_node_is_cached(host, node):
    g = Graph()
    captions = "a photo of sks toy\na large <toy> on the left, on the beach, in flat style"
    if node == "DCOCheckCaptions":
        checked = g.add(node, captions=captions, kind="subject")
    else:
        pictures = g.add("ImageFromBatch", image=[g.add("EmptyImage", width=64, height=64, batch_size=2, color=0), 0],
                         batch_index=0, length=2)  # fmt: skip
        checked = g.add(node, images=[pictures, 0], kind="subject", name="toy", captions=captions)
    first = host.client.run(g.prompt)[checked]
    assert 'Image 1: "a photo of sks toy"' in first["text"][0] and "Image 2" not in first["text"][0]
    (entry,) = first["dco_captions"]
    assert (entry["image"], entry["caption"]) == (0, "a photo of sks toy")
    assert [note["rule"] for note in entry["notes"]] == ["rare-token", "compact"]
    assert entry["suggestion"] == "a photo of a <toy>, [where is it?], [view]"
    assert host.client.run(g.prompt)[checked] == first


def test_captions_are_drafted_by_a_model_by_hand_or_as_a_form(host):
    def run(**inputs):
        g = Graph()
        references = g.add("DCOToyWorldReferences", what="subject")
        if inputs.pop("model", False):
            inputs["clip"] = [g.add("DCOTestVisionLanguage"), 0]
        values = {"kind": "subject", "name": "dog", "captions": ""} | inputs
        node = g.add("DCOComprehensiveCaption", images=[references, 0], **values)
        listed = g.add("DCOTestShowDataset", images=[references, 0], captions=[node, 0])
        outputs = host.client.run(g.prompt)
        return facts(outputs, listed)["captions"], outputs[node]["text"][0]

    form, text = run()
    assert len(form) == 4 and all("<dog>" in c and "[" in c for c in form)
    assert "[" in text and "Image 1" in text  # the check says that the form is to be filled in
    drafted, text = run(model=True)
    assert drafted == [f"A close-up photo of a <dog> on the beach, brightness {b}" for b in brightness(host)]
    styled, _ = run(model=True, kind="style", name="flat cartoon")
    assert all(c.endswith("in flat cartoon style") for c in styled)
    edited, text = run(model=True, captions="one <dog>\ntwo <dog>\nthree <dog>\nfour <dog>")
    assert edited == ["one <dog>", "two <dog>", "three <dog>", "four <dog>"]
    asked, _ = run(model=True, instruction="ECHO what is this?")
    assert "what is this?" in asked[0]


def brightness(host):
    g = Graph()
    references = g.add("DCOToyWorldReferences", what="subject")
    listed = g.add("DCOTestShowDataset", images=[references, 0], captions="x")
    return [f"{m:.2f}" for m in facts(host.client.run(g.prompt), listed)["mean"]]


def test_a_text_encoder_that_writes_no_text_says_so(host, sd15):
    g = Graph()
    references = g.add("DCOToyWorldReferences", what="subject")
    g.add(
        "DCOComprehensiveCaption", images=[references, 0], kind="subject", name="dog", captions="",
        clip=g.checkpoint(sd15)["clip"],
    )  # fmt: skip
    with pytest.raises(HostError, match="cannot describe pictures"):
        host.client.run(g.prompt)


def test_a_loaded_lora_tells_its_trigger_words_and_scales(host):
    g = Graph()
    trainer = g.toy_trainer(g.toy(), steps=1, name="told")
    host.client.run(g.prompt)
    (path,) = (host.base_dir / "output" / "loras").glob("told_*")
    g = Graph()
    loaded = g.add("DCOLoadLoRA", lora_name=path.name)
    shown = [g.add("PreviewAny", source=[loaded, i]) for i in (1, 2, 3)]
    outputs = host.client.run(g.prompt)
    assert [outputs[node]["text"][0] for node in shown] == ["toy", "1.4", "2.0"]
    assert trainer


def test_unknown_numbers_in_a_header_are_the_papers(host):
    key = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    pair = {f"{key}.lora_down.weight": torch.ones(1, 4), f"{key}.lora_up.weight": torch.ones(4, 1)}
    path = host.base_dir / "output" / "loras" / "strange.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(pair, path, {"dco.w_rg": "nan", "dco.w_text": "a lot", "dco.tokens": json.dumps([1])})
    g = Graph()
    loaded = g.add("DCOLoadLoRA", lora_name=path.name)
    shown = [g.add("PreviewAny", source=[loaded, i]) for i in (2, 3)]
    outputs = host.client.run(g.prompt)
    assert [outputs[node]["text"][0] for node in shown] == ["3.0", "7.5"]
