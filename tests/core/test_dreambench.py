"""Subjects of DreamBench++ as a study: a data folder as its authors lay it out, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dco_core.cli.commands import main
from dco_core.data.folders import load_folder
from dco_core.evidence.setting import setting_for
from dco_core.evidence.study import load_study


@pytest.fixture
def data(tmp_path):
    texts = {
        "live_subject/animal/00": ("Kitten", ["a photo of a kitten", "a kitten on the moon", "a kitten in oil"]),
        "object/03": ("red bag", ["a red bag on snow", "a photo of a red bag"]),
        "style/01": ("ink", ["a tree"]),
    }
    for i, (name, (word, prompts)) in enumerate(texts.items()):
        for kind in ("images", "captions"):
            (tmp_path / "data" / kind / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30 + i, 40), (i, 90, 5)).save(tmp_path / "data" / "images" / f"{name}.jpg")
        lines = "\n".join([word, *prompts]) + "\n"
        (tmp_path / "data" / "captions" / f"{name}.txt").write_text(lines, encoding="utf-8")
    return tmp_path / "data"


def prepare(data, output, *subjects):
    arguments = ["--dreambench-plus", str(data), "--model", "diffusers:/models/sdxl", "--output", str(output)]
    return main(["evidence", *arguments, "--subjects", *subjects])


def test_its_subjects_become_a_study(data, tmp_path, capsys):
    output = tmp_path / "made"
    assert prepare(data, output, "object/03", "live_subject/animal/00") == 0
    said = capsys.readouterr().out
    study = load_study(str(output / "study.json"))
    bag, kitten = study.subjects
    assert study.model == "diffusers:/models/sdxl" and study.categories == {bag: "object", kitten: "live subject"}
    ((picture,), (other,)) = load_folder(bag), load_folder(kitten)
    assert (picture.caption, other.caption) == ("a photo of a <red bag>", "a photo of a <Kitten>")
    assert tuple(picture.image.shape[:2]) == (40, 31) and tuple(other.image.shape[:2]) == (40, 30)
    setting = setting_for(study, tmp_path / "references", "cpu")
    assert setting.prompts(bag, None) == ["a red bag on snow", "a photo of a red bag"]
    assert len(setting.prompts(kitten, None)) == 3
    for text in Path(bag).glob("*.txt"):
        assert str(text) in said


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("style/01", "is a style"), ("object/04", "no subject 'object/04': it has live_subject/animal/00, object/03"),
        ("../data/object/03", "no subject of DreamBench"), ("/object/03", "no subject of DreamBench"),
    ],
)  # fmt: skip
def test_what_is_no_subject_leaves_nothing_behind(data, tmp_path, capsys, subject, message):
    before = sorted(tmp_path.rglob("*"))
    assert prepare(data, tmp_path / "made", "object/03", subject) == 1
    assert message in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_there_and_what_is_no_data(data, tmp_path, capsys):
    (tmp_path / "made").mkdir()
    assert prepare(data, tmp_path / "made", "object/03") == 1
    assert "give a new folder" in capsys.readouterr().err
    assert prepare(tmp_path, tmp_path / "new", "object/03") == 1
    assert "no folders images and captions" in capsys.readouterr().err


def test_a_study_of_real_models_takes_model_and_folders_from_the_command_line(data, tmp_path, capsys):
    prepare(data, tmp_path / "made", "object/03", "live_subject/animal/00")
    folders = sorted(str(p) for p in (tmp_path / "made" / "subjects").iterdir())
    output = ["--output", str(tmp_path / "results"), "--report-only"]
    assert main(["evidence", "--study", "sdxl", *output]) == 1
    assert "names no model" in capsys.readouterr().err
    assert main(["evidence", "--study", "sdxl", "--model", "diffusers:/models/sdxl", *output]) == 1
    assert "--subjects" in capsys.readouterr().err
    study = load_study("sdxl", {"model": "unet:x", "subjects": folders, "categories": {folders[0]: "live subject"}})
    assert study.subjects == tuple(folders) and study.training["beta"] == 1.0
    assert json.loads(json.dumps(study.categories)) == {folders[0]: "live subject"}
