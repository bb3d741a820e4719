"""A study of one's own pictures on a pipeline on disk, scored with DINOv2 and SigLIP as the paper does."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_vision import write_dinov2, write_judge, write_siglip
from tiny_pipelines import sd15, sdxl

from dco_core.data.folders import load_folder
from dco_core.errors import DCOError
from dco_core.evidence.jobs import Job, jobs_of
from dco_core.evidence.pictures import draw, encoded_prompts, with_lora
from dco_core.evidence.runner import run
from dco_core.evidence.setting import setting_for
from dco_core.evidence.study import PLAIN, Study
from dco_core.evidence.tables import read_table
from dco_core.evidence.workspace import Workspace
from dco_core.lora import from_bundle, initializers_in, read_lora
from dco_core.metrics import image_similarity, load_image_encoder, load_judge, load_siglip


def write_pictures(folder, caption, seed):
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    for i in range(2):
        pixels = (torch.rand(40, 36, 3, generator=generator) * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption, encoding="utf-8")
    return str(folder)


def write_prompts(path):
    path.write_text("\ufeffa red star, in ink style\n\n  a cat, in ink style \na toy, in ink style\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def study(request, tmp_path_factory):
    room = tmp_path_factory.mktemp(request.param)
    {"sd15": sd15, "sdxl": sdxl}[request.param](room / "model", layers=1)
    return Study(
        model=f"diffusers:{room / 'model' / 'pipeline'}",
        subjects=(write_pictures(room / "dog", "a photo of a <dog> on grass", 1),),
        styles=(write_pictures(room / "ink", "a tree, in <ink> style", 2),),
        categories={str(room / "dog"): "live subject"},
        methods=("DreamBooth", "DCO, compact captions"),
        style_methods=("DreamBooth",),
        merges=("DreamBooth ZipLoRA",),
        seeds=(3,),
        training={"steps": 2, "learning_rate": 0.01},
        adapter={"rank": 2},
        w_text=7.5,
        w_rg=(3.0,),
        sampling_steps=2,
        prompts=2,
        pictures=2,
        zip_steps=2,
        distance_timesteps=2,
        distance_draws=2,
        resolution=32,
        likeness_model=str(write_dinov2(room / "dinov2")),
        text_model=str(write_siglip(room / "siglip")),
        judge_model=str(write_judge(room / "judge")),
        prompt_files={str(room / "ink"): str(write_prompts(room / "ink.txt"))},
    )


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    """The folder of the study, done."""
    folder = tmp_path_factory.mktemp("finished")
    study.check()
    assert run(study, folder, ["cpu"], lambda text: None) == []
    return folder


def test_a_study_of_folders(study, finished):
    setting = setting_for(study, finished / "references", "cpu")
    workspace = Workspace(study, setting, finished, "cpu")
    rows = read_table(workspace.path(Job("DreamBooth", study.subjects[0], None, 3)) / "scores.csv")
    assert len(rows) == 2 * 2 * 2 and all("dog" in row["prompt"] and "{}" not in row["prompt"] for row in rows)
    merged = read_table(
        workspace.path(Job("DreamBooth ZipLoRA", study.subjects[0], study.styles[0], 3)) / "scores.csv"
    )
    for row in merged:
        assert all(-1 <= row[name] <= 1 for name in ("likeness", "style_likeness"))
        assert all(0 <= row[name] <= 1 for name in ("judged_subject", "judged_style", "judged_alignment"))
        assert 0 <= row["alignment"] <= 1 and "dog" in row["prompt"] and "ink" in row["prompt"]


def test_changed_captions_and_changed_models_open_the_jobs_they_concern_again(study, finished, tmp_path):
    room, output = tmp_path / "room", tmp_path / "output"
    shutil.copytree(Path(study.subjects[0]).parent, room)
    shutil.copytree(finished, output)
    dog, ink = str(room / "dog"), str(room / "ink")
    study = dataclasses.replace(
        study, model=f"diffusers:{room / 'model' / 'pipeline'}", subjects=(dog,), styles=(ink,),
        categories={dog: "live subject"}, likeness_model=str(room / "dinov2"), text_model=str(room / "siglip"),
        judge_model=str(room / "judge"), prompt_files={ink: str(room / "ink.txt")},
    )  # fmt: skip
    workspace = Workspace(study, setting_for(study, output / "references", "cpu"), output, "cpu")
    jobs = [job for jobs in jobs_of(study) for job in jobs]

    def open_jobs():
        return {job for job in jobs if not workspace.done(job)}

    assert open_jobs() == set()
    (room / "dog" / "0.txt").write_text("a photo of a <dog> on snow", encoding="utf-8")
    assert open_jobs() == {job for job in jobs if job.subject}
    (room / "dog" / "0.txt").write_text("a photo of a <dog> on grass", encoding="utf-8")
    assert open_jobs() == set()
    (weights,) = (room / "model" / "pipeline" / "unet").glob("*.safetensors")
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert open_jobs() == set(jobs)


def test_scores_are_those_of_the_metrics(study, tmp_path):
    setting = setting_for(study, tmp_path, "cpu")
    images = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    prompts = ["a dog", "a tree", "a dog"]
    found = setting.scores(images, prompts, study.subjects[0], study.styles[0])
    subject, style = ([p.image for p in load_folder(f)] for f in (study.subjects[0], study.styles[0]))
    encoder, siglip = load_image_encoder(study.likeness_model), load_siglip(study.text_model)
    judge = load_judge(study.judge_model)
    expected = {
        "likeness": image_similarity(encoder, list(images), subject),
        "style_likeness": image_similarity(siglip, list(images), style),
        "alignment": siglip.score(list(images), prompts),
        "judged_alignment": judge.follows(list(images), prompts),
        "judged_subject": judge.resemblance(list(images), subject),
        "judged_style": judge.resemblance(list(images), style, "style"),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values.tolist(), abs=1e-5)


def test_prompts_are_those_of_the_category(study, tmp_path):
    live = setting_for(study, tmp_path, "cpu").prompts(study.subjects[0], None)
    plain = setting_for(dataclasses.replace(study, categories={}), tmp_path, "cpu").prompts(study.subjects[0], None)
    assert set(live).isdisjoint(plain) and all("dog" in text for text in live + plain)


def test_prompts_of_ones_own_are_taken_in_their_order(study, tmp_path):
    setting = setting_for(study, tmp_path, "cpu")
    assert setting.prompts(None, study.styles[0]) == ["a red star, in ink style", "a cat, in ink style"]
    assert all("ink" in text and "dog" in text for text in setting.prompts(study.subjects[0], study.styles[0]))
    empty = tmp_path / "none.txt"
    empty.write_text("\n \n")
    own = dataclasses.replace(study, prompt_files={study.subjects[0]: str(empty)})
    with pytest.raises(DCOError, match="none.txt has no prompts"):
        setting_for(own, tmp_path, "cpu").prompts(study.subjects[0], None)
    with pytest.raises(DCOError, match='prompt_files has "cat"'):
        dataclasses.replace(study, prompt_files={"cat": str(empty)}).check()


def test_subjects_learn_tokens_where_the_study_says_so(study, tmp_path):
    training = {**study.training, "token_learning_rate": 0.5}
    merges = ("DreamBooth merge",)
    study = dataclasses.replace(study, learned_tokens=True, training=training, merges=merges, methods=("DreamBooth",))
    assert run(study, tmp_path, ["cpu"], lambda text: None) == []
    setting = setting_for(study, tmp_path / "references", "cpu")
    workspace = Workspace(study, setting, tmp_path, "cpu")
    dog, ink = study.subjects[0], study.styles[0]
    files = {
        "dog": Job("DreamBooth", dog, None, 3), "ink": Job("DreamBooth", None, ink, 3),
        "both": Job("DreamBooth merge", dog, ink, 3),
    }  # fmt: skip
    loras = {name: read_lora(workspace.path(job) / "lora.safetensors") for name, job in files.items()}
    assert {name: list(from_bundle(lora.other)) for name, lora in loras.items()} == {
        "dog": ["dog"], "ink": [], "both": ["dog"]
    }  # fmt: skip
    assert initializers_in(loras["dog"].metadata, ["dog"]) == {"dog": "dog"}
    model = setting.model("cpu")
    prompts = ["A photo of dog on the beach", "a tree, in ink style"]
    own, base = encoded_prompts(model, prompts, loras["dog"])
    rows = from_bundle(loras["dog"].other)
    by_hand = model.learned_tokens.encode(["A photo of <dog> on the beach", prompts[1]], rows, {"dog": "dog"})
    texts = [[c["text"].tolist() for c in each] for each in (own, by_hand, base)]
    assert texts[0] == texts[1] and texts[0][0] != texts[2][0] and texts[0][1] == texts[2][1]
    settings = {"w_text": 7.5, "steps": 2, "pictures": 1, "seed": 3, "resolution": 32}
    trained = with_lora(model, loras["dog"].layers)
    with_rows, without = (draw(model, trained, prompts, PLAIN, **settings, lora=one) for one in (loras["dog"], None))
    assert not torch.equal(with_rows[0], without[0]) and torch.equal(with_rows[1], without[1])
    phi = (draw(model, trained, prompts, 0.0, **settings, lora=one) for one in (loras["dog"], None))
    assert torch.equal(*phi)


def test_references_without_a_marker_are_refused(study, tmp_path):
    folder = write_pictures(tmp_path / "plain", "a photo of a dog", 3)
    with pytest.raises(DCOError, match="<dog>"):
        setting_for(dataclasses.replace(study, subjects=(folder,)), tmp_path, "cpu")


def test_compact_captions_of_a_folder_leave_the_folder_as_it_is(study, tmp_path):
    setting = setting_for(study, tmp_path, "cpu")
    folder = setting.references(study.subjects[0], "compact")
    assert [p.caption for p in load_folder(folder)] == ["a photo of a <dog>"] * 2
    assert [p.caption for p in load_folder(study.subjects[0])] == ["a photo of a <dog> on grass"] * 2


def test_folders_of_one_name_have_jobs_and_copies_of_their_own(study, tmp_path):
    folders = []
    for place, seed in (("a", 4), ("b", 5)):
        (tmp_path / place).mkdir()
        folders.append(write_pictures(tmp_path / place / "dog", f"a photo of a <{place}dog> on grass", seed))
    study = dataclasses.replace(study, subjects=tuple(folders), styles=(), style_methods=(), merges=(), categories={})
    jobs = [job for jobs in jobs_of(study) for job in jobs]
    setting = setting_for(study, tmp_path / "references", "cpu")
    assert len({Workspace(study, setting, tmp_path).path(job) for job in jobs}) == len(jobs)
    first, second = (setting.references(folder, "compact") for folder in folders)
    for folder, copy, word in ((folders[0], first, "adog"), (folders[1], second, "bdog")):
        assert [p.caption for p in load_folder(copy)] == [f"a photo of a <{word}>"] * 2
        for original, copied in zip(load_folder(folder), load_folder(copy), strict=True):
            assert torch.equal(original.image, copied.image)


def test_a_compact_copy_follows_its_folder(study, tmp_path):
    folder = Path(write_pictures(tmp_path / "dog", "a photo of a <dog> on grass", 6))
    (folder / "5_more").mkdir()
    for name in ("0.png", "0.txt"):
        shutil.copy(folder / name, folder / "5_more")
    study = dataclasses.replace(study, subjects=(str(folder),), styles=(), style_methods=(), merges=(), categories={})

    def copy():
        made = setting_for(study, tmp_path / "references", "cpu").references(str(folder), "compact")
        return load_folder(made)

    before = copy()
    assert [(p.name, p.repeats) for p in before] == [(p.name, p.repeats) for p in load_folder(folder)]
    assert sorted(p.repeats for p in before) == [1, 1, 5]
    Image.new("RGB", (36, 40), (10, 20, 30)).save(folder / "1.png")
    (folder / "5_more" / "0.png").unlink()
    (folder / "masks").mkdir()
    Image.fromarray(np.arange(40 * 36, dtype=np.uint8).reshape(40, 36)).save(folder / "masks" / "1.png")
    after = copy()
    assert [p.mask is not None for p in after] == [False, True]
    assert torch.equal(after[1].mask, load_folder(folder)[1].mask)
    assert [p.name for p in after] == ["0.png", "1.png"]
    assert torch.equal(after[1].image, load_folder(folder)[1].image)
    for text in folder.glob("*.txt"):
        text.write_text("a photo of a <cat> on grass", encoding="utf-8")
    assert [p.caption for p in copy()] == ["a photo of a <cat>"] * 2
