"""A study with bases, checkpoints of one run, contrasts and units trained side by side."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from test_evidence_study import SMALL

from dco_core.captions.preservation import preservation_lines
from dco_core.cli.commands import main
from dco_core.data.folders import load_folder
from dco_core.errors import DCOError
from dco_core.evidence import pictures, snapshots, toy_prompts
from dco_core.evidence.claims import FAILS, FEW, HOLDS, OPEN, Evidence
from dco_core.evidence.contrasts import contrasts_from, findings
from dco_core.evidence.job_scores import Scorer
from dco_core.evidence.jobs import DISTANCES, SCORES, Job, groups_of, jobs_of
from dco_core.evidence.setting import setting_for
from dco_core.evidence.study import BASE, BUILT_IN, CEILING, study_from
from dco_core.evidence.tables import read_table
from dco_core.evidence.workspace import Workspace
from dco_core.lora import read_lora
from dco_core.toy_world.references import toy_references
from dco_core.toy_world.renderer import render

A, B = ["e", "A", 10], ["e", "B", 10]
STUDY = SMALL | {
    "bases": {"one": "toy-world", "two": "toy-world"}, "subjects": ["toy", "toy-4"], "styles": [], "style_methods": [],
    "merges": [], "seeds": [3, 4], "one_seed_each": True, "checkpoints": [1, 2], "checkpoint": 2, "others": 2,
    "prompts": 2, "pictures": 1, "ceiling": True, "pictures_at_once": 3, "distance_prompts": 2, "side_by_side": 2,
    "w_rg_at": [2, "stopped"], "w_rg_methods": ["DreamBooth"],
    "own_methods": {
        "DreamBooth": {"training": {"objective": "dreambooth", "validation_steps": 2}},
        "DCO": {"training": {"weighting": "epsilon"}, "bases": ["two"]},
    },
    "contrasts": [{"claim": "sooner or later", "family": "primary", "tests": [
        {"kind": "difference", "a": ["two", "DCO", 2], "b": ["two", "DreamBooth", 2], "expect": "above"}]}],
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protocol")
    (folder / "study.json").write_text(json.dumps(STUDY), encoding="utf-8")
    arguments = [
        "evidence",
        "--study",
        str(folder / "study.json"),
        "--output",
        str(folder / "out"),
        "--workers",
        "1",
    ]
    assert main(arguments) == 0
    return folder / "out"


def test_one_training_gives_every_checkpoint_and_its_tables(finished):
    study = study_from(STUDY, "")
    workspace = Workspace(study, setting_for(study, finished / "references", None), finished)
    jobs = jobs_of(study)[0]
    assert (
        len(jobs) == 2 * (2 * 2 + 1 + 2)
        and all(map(workspace.done, jobs))
        and all(map(workspace.done, groups_of(study)))
    )
    assert {job.seed for job in jobs if job.subject == "toy-4"} == {4}
    job = Job("DreamBooth", "toy", None, 3, "two")
    rows = read_table(workspace.path(job) / "scores.csv")
    assert {r["checkpoint"] for r in rows} == {1, 2, 3, "stopped"}
    assert {r["checkpoint"] for r in rows if r["guidance"] == 1.0} == {2, "stopped"}
    others = [r for r in rows if r["prompts"] == "others"]
    assert len(others) == 4 * 2 and all(r["likeness"] is None and r["rmse"] > 0 for r in others)
    first, last = (read_lora(workspace.path(job) / f).layers for f in ("lora-1.safetensors", "lora.safetensors"))
    assert any((first[k].up - last[k].up).abs().max() > 1e-4 for k in first)
    assert {r["on"] for r in read_table(workspace.path(job) / "distances.csv")} == {"references", "prompts"}
    ceiling = read_table(workspace.path(Job(CEILING, "toy", None, 3, "one")) / "scores.csv")
    assert np.mean([r["alignment"] for r in ceiling]) > 0.9
    base = read_table(workspace.path(Job(BASE, "toy", None, 3, "one")) / "scores.csv")
    assert {r["rmse"] for r in base if r["prompts"] == "others"} == {0}
    page = (finished / "evidence.md").read_text(encoding="utf-8")
    assert "Primary contrasts" in page and "sooner or later" in page and FEW in page


def test_a_study_copied_from_another_machine_is_done(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    study = study_from(STUDY, "")
    workspace = Workspace(study, setting_for(study, tmp_path / "copy" / "references", None), tmp_path / "copy")
    assert all(map(workspace.done, jobs_of(study)[0]))


def rows(method, likeness, rmse, checkpoint=10, alignment=1.0, guidance="plain"):
    return [
        {"base": "e", "method": method, "subject": f"toy-{i}", "style": None, "seed": i, "checkpoint": checkpoint,
         "guidance": guidance, "likeness": likeness + noise, "alignment": alignment, "others_rmse": rmse}
        for i, noise in enumerate((0.01, -0.02, 0.0, 0.02, -0.01, 0.03))
    ]  # fmt: skip


def verdict(means, family="primary", **test):
    test = {"kind": "difference", "a": A, "b": B, "score": "likeness"} | test
    (found,) = findings(
        contrasts_from([{"claim": "", "family": family, "tests": [test]}]), Evidence(means, [], [])
    )
    return found.verdict


@pytest.mark.parametrize(
    ("lead", "expect", "margin", "message"),
    [(0.2, "above", None, HOLDS), (0.2, "below", None, FAILS), (0.0, "equal", 0.05, HOLDS), (0.2, "equal", 0.05, FAILS),
     (-0.01, "no worse", 0.05, HOLDS), (-0.2, "no worse", 0.05, FAILS), (0.0, "above", 0.05, FAILS),
     (0.0, "above", None, OPEN)],
)  # fmt: skip
def test_verdicts_of_differences(lead, expect, margin, message):
    b = rows("B", 0.5, 0.1)
    a = [r | {"method": "A", "likeness": r["likeness"] + lead + (0.001, -0.001)[r["seed"] % 2]} for r in b]
    assert verdict(a + b, expect=expect, margin=margin) == message
    assert verdict([r for r in a + b if r["seed"] < 4], expect=expect, margin=margin) == FEW


def test_collateral_damage_at_equal_likeness_counts_units_without_any():
    """Curves by hand: from the base (0, 0), A has 0.02 and B 0.04 at likeness 0.4; half as much at 0.2."""
    means = rows(BASE, 0.0, 0.0, 0, guidance=0.0) + rows("A", 0.4, 0.02) + rows("B", 0.4, 0.04)
    for row in means:
        row["likeness"] = round(row["likeness"], 1)
    means = [r | {"likeness": 0.1} if (r["method"], r["seed"]) == ("B", 5) else r for r in means]
    contrast = {"claim": "", "tests": [{"kind": "at equal likeness", "a": A[:2], "b": B[:2], "score": "others_rmse",
                                        "expect": "below", "lowest": 0.2}]}  # fmt: skip
    (found,) = findings(contrasts_from([contrast]), Evidence(means, [], []))
    (result,) = found.results
    # the mean over 0.2 to 0.4 of 0.05 x - 0.1 x
    assert (
        result.difference.mean == pytest.approx(-0.015) and result.left_out == 1 and result.difference.n == 5
    )
    assert found.verdict == HOLDS


def test_primary_contrasts_are_corrected_together():
    b = rows("B", 0.5, 0.1)
    a = [
        r | {"method": "A", "likeness": r["likeness"] + (0.02, 0.0, 0.05, 0.03, 0.02, 0.02)[r["seed"]]}
        for r in b
    ]
    test = {"kind": "difference", "a": A, "b": B, "score": "likeness", "expect": "above"}
    none = test | {"score": "others_rmse"}
    values = [{"claim": str(i), "family": "primary", "tests": [t]} for i, t in enumerate((test, none, none))]
    found = findings(contrasts_from(values), Evidence(a + b, [], []))
    assert found[0].corrected == pytest.approx(3 * found[0].p) and found[1].corrected == 1
    alone = findings(contrasts_from(values[:1]), Evidence(a + b, [], []))
    assert alone[0].corrected == alone[0].p


@pytest.mark.parametrize(
    ("test", "message"),
    [({"expect": "equal"}, "margin"), ({"expect": "up"}, "up"), ({"kind": "ratio"}, "ratio"), ({"a": ["e"]}, "e"),
     ({"colour": 1}, "colour")],
)  # fmt: skip
def test_contrasts_that_cannot_be_are_refused(test, message):
    values = {"kind": "difference", "a": A, "b": B, "expect": "above"} | test
    with pytest.raises(DCOError, match=message):
        contrasts_from([{"claim": "", "tests": [values]}])


def test_half_of_the_prompts_change_everything_and_others_are_no_toys():
    prompts = toy_prompts.subject_prompts(16)
    far = [text for kind, text in prompts if kind == "far"]
    assert len(far) == 8 and len(set(prompts)) == 16
    assert all(
        "small toy" in t and "on the beach" not in t and "flat" not in t and "print" not in t for t in far
    )
    assert all(
        "large toy" in t and "flat" in t and "on the beach" not in t for k, t in prompts if k == "near"
    )
    assert not any("toy" in t or "print" in t for t in toy_prompts.other_prompts(12))


def test_subjects_are_the_first_whose_true_renders_are_read():
    found = toy_prompts.eligible_subjects("toy-1", 2, 0.7)
    numbers = [int(name.partition("-")[2]) for name in found]
    for i in range(1, max(numbers) + 1):
        assert (toy_prompts.own_likeness(f"toy-{i}") >= 0.7) == (i in numbers)
    with pytest.raises(DCOError, match="toy-101"):
        toy_prompts.eligible_subjects("toy", 2, 0.7)


def test_the_protocols_are_studies_that_can_be_run():
    for name in ("protocol", "protocol-merges", "protocol-merges-sketch", "holding"):
        values = json.loads((BUILT_IN / f"{name}.json").read_text(encoding="utf-8"))
        study = study_from(values | {"subjects": [f"toy-{i}" for i in range(len(values["seeds"]))]}, name)
        known = {("", BASE)} | {(base, m) for base in study.models() for m in study.methods_on(base)}
        known |= {(base, m) for base in study.models() for m in study.merges}
        for contrast in contrasts_from(study.contrasts):
            assert {point[:2] for test in contrast.tests for point in (test.a, test.b)} <= known, (
                contrast.claim
            )


def test_what_is_preserved_is_not_what_is_measured():
    study = study_from(json.loads((BUILT_IN / "holding.json").read_text(encoding="utf-8")), "")
    for method in ("DreamBooth, prompts preserved", "DCO, prompts preserved"):
        kept = set(preservation_lines(study.config(method, 1).preservation_prompts))
        assert len(kept) == 8
        assert not kept & set(toy_prompts.other_prompts(study.others))


def test_masks_are_the_toy_worlds_alone():
    values = SMALL | {"own_methods": {"masked": {"masks": True}}, "methods": ["masked"], "model": "diffusers:none"}
    with pytest.raises(DCOError, match='"masked" asks for masks, .* Toy World can make, not diffusers:none'):
        study_from(values | {"subjects": ["folder"], "styles": [], "style_methods": [], "merges": []}, "")


def test_references_with_masks_of_what_is_taught(tmp_path):
    """The masks are white where the object is and nowhere else; the pictures are the same ones."""
    study = study_from(STUDY, "")
    setting = setting_for(study, tmp_path, None)
    plain = load_folder(setting.references("toy-4", "compact"))
    masked = load_folder(setting.references("toy-4", "compact", masks=True))
    scenes, _ = toy_references("toy-4")
    for i, (a, b) in enumerate(zip(plain, masked, strict=True)):
        assert a.mask is None and a.caption == b.caption and (a.image == b.image).all()
        assert 0.02 < float(b.mask.mean()) < 0.6
        bare = render(scenes[i : i + 1].with_(centre=(-1000.0, -1000.0)))[0]
        ground = (bare.movedim(0, -1) + 1) / 2
        scale = b.image.shape[0] // ground.shape[0]
        ground = ground.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        away = (b.image - ground).abs().amax(-1)
        assert away[b.mask == 0].max() < 0.02 and away[b.mask == 1].min() > 0.005


@pytest.mark.parametrize("together", [1, 2])
def test_a_method_that_holds_is_trained_and_measured(tmp_path, together):
    held = {"objective": "dreambooth", "mask_prior": 2.0, "preservation_prompts": "blank; class; a large star on grass"}
    values = STUDY | {
        "bases": {}, "methods": ["held"],
        "own_methods": {"held": {"training": held, "captions": "compact", "masks": True}},
        "w_rg": [], "w_rg_at": [], "w_rg_methods": [], "contrasts": [], "ceiling": False, "side_by_side": together,
    }  # fmt: skip
    study = study_from(values, "")
    workspace = Workspace(study, setting_for(study, tmp_path / "references", None), tmp_path)
    for group in groups_of(study):
        workspace.do(group)
    jobs = [job for job in jobs_of(study)[0] if job.method == "held"]
    assert len(jobs) == 2
    for job in jobs:
        workspace.do(job)
        assert workspace.done(job)
        rows = read_table(workspace.path(job) / "scores.csv")
        assert {r["checkpoint"] for r in rows} == {1, 2, 3} and all(np.isfinite(r["alignment"]) for r in rows)
        assert read_table(workspace.path(job) / "distances.csv")
    assert (tmp_path / "references" / "toy-4-compact-masks" / "masks" / "0.png").is_file()


def test_jobs_of_one_unit_share_what_the_base_model_draws(finished, tmp_path, monkeypatch):
    drawn = []

    def counted(model, denoiser, prompts, guidance, **settings):
        drawn.append(guidance)
        return pictures.draw_latents(model, denoiser, prompts, guidance, **settings)

    monkeypatch.setattr(snapshots, "draw_latents", counted)
    study = study_from(STUDY, "")
    setting = setting_for(study, finished / "references", None)
    jobs = [job for job in jobs_of(study)[0] if job.base == "two" and job.trains][:2]
    shared = Scorer(study, setting)
    for job in jobs:
        tables = []
        for scorer in (shared, Scorer(study, setting)):
            folder = tmp_path / f"{job.method} {len(tables)}"
            shutil.copytree(Workspace(study, setting, finished).path(job), folder)
            scorer.score(job, folder, setting.model("cpu", job.base), lambda: None)
            tables.append([(folder / name).read_bytes() for name in (SCORES, DISTANCES)])
        assert tables[0] == tables[1]
    assert len(drawn) == 3  # once for both, and once for each by itself


def test_side_by_side_each_has_the_beta_that_it_finds_alone(tmp_path):
    found = {"training": {"beta": None, "automatic_beta": "images"}}
    values = STUDY | {"bases": {}, "methods": ["found"], "own_methods": {"found": found}, "contrasts": []}
    betas = []
    for together in (1, 2):
        study = study_from(values | {"w_rg_at": [], "w_rg_methods": [], "side_by_side": together}, "")
        folder = tmp_path / str(together)
        workspace = Workspace(study, setting_for(study, folder / "references", None), folder)
        jobs = [job for job in jobs_of(study)[0] if job.trains]
        assert len(groups_of(study)) == together - 1
        for one in groups_of(study) or jobs:
            workspace.do(one)
        betas.append([read_table(workspace.path(job) / "training.csv")[0]["beta"] for job in jobs])
    assert betas[0] == pytest.approx(betas[1], rel=1e-4)
    assert abs(betas[0][0] / betas[0][1] - 1) > 0.01
