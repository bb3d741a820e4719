"""Studies: run, stopped, gone on with, changed; on the Toy World with a few steps a job."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dco_core.cli.commands import main
from dco_core.errors import DCOError
from dco_core.evidence import runner as runner_module
from dco_core.evidence import setting as setting_module
from dco_core.evidence import workspace as workspace_module
from dco_core.evidence.job_scores import Scorer
from dco_core.evidence.jobs import Job, folder_names, jobs_of
from dco_core.evidence.pictures import draw, with_lora
from dco_core.evidence.runner import devices, run
from dco_core.evidence.setting import setting_for
from dco_core.evidence.snapshots import LORA
from dco_core.evidence.study import BASE, METHODS, PLAIN, load_study, study_from
from dco_core.evidence.tables import read_table
from dco_core.evidence.workspace import Workspace
from dco_core.lora import LoraLayer, read_lora
from dco_core.network.lora_layers import AdapterConfig
from dco_core.toy_world.image_model import ToyWorldModel

SMALL = {
    "model": "toy-world",
    "subjects": ["toy"],
    "styles": ["print"],
    "methods": ["DreamBooth", "DCO"],
    "style_methods": ["DreamBooth", "DCO"],
    "merges": ["DreamBooth merge", "DreamBooth ZipLoRA", "DCO merge"],
    "seeds": [0],
    "training": {"steps": 3, "learning_rate": 0.01, "beta": 0.04},
    "adapter": {"rank": 2, "layers": "attention"},
    "w_text": 2.0,
    "w_rg": [1.0],
    "sampling_steps": 2,
    "prompts": 2,
    "pictures": 2,
    "zip_steps": 2,
    "distance_timesteps": 2,
    "distance_draws": 2,
}


def small(**changes):
    return study_from(SMALL | changes, "the study")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    file = folder / "small.json"
    file.write_text(json.dumps(SMALL), encoding="utf-8")
    arguments = ["evidence", "--study", str(file), "--output", str(folder / "out"), "--workers", "2"]
    return main(arguments), folder / "out", file


def test_the_command_does_every_job_and_writes_tables_figures_and_verdicts(finished):
    status, output, _ = finished
    assert status == 0
    done = [job for jobs in jobs_of(small()) for job in jobs]
    workspace = Workspace(small(), setting_for(small(), output / "references", None), output)
    assert len(done) == 10 and all((workspace.path(job) / "scores.csv").is_file() for job in done)
    page = (output / "evidence.md").read_text(encoding="utf-8")
    for text in (
        "## Claims of the paper",
        "Table 1",
        "DCO merge",
        "fewer than 5 units",
        "python -m dco_core evidence --study",
    ):
        assert text in page
    units = read_table(output / "tables" / "units.csv")
    merged = [r for r in units if r["method"] == "DCO merge"]
    assert {r["guidance"] for r in merged} == {PLAIN, 1.0}
    assert all(0 <= r[s] <= 1 for r in merged for s in ("likeness", "style_likeness", "alignment"))
    with Image.open(output / "figures" / "sheet_subject.jpg") as sheet:
        assert min(sheet.size) > 200
    figures = sorted((output / "figures").glob("*.png"))
    # two methods make one picture of frontiers: that of beta, of captions and of steps would be the same
    assert [figure.stem for figure in figures] == ["frontier", "noise_distance", "style"]
    for figure in figures:
        assert np.asarray(Image.open(figure).convert("L")).std() > 1


def test_a_finished_study_is_not_run_again(finished, monkeypatch):
    _, output, file = finished
    monkeypatch.setattr(Scorer, "score", lambda *args: pytest.fail("a finished job was done again"))
    assert main(["evidence", "--study", str(file), "--output", str(output), "--workers", "1"]) == 0


def test_a_changed_setting_does_its_jobs_again_and_no_others(finished):
    _, output, _ = finished
    study = small()
    setting = setting_for(study, output / "references", None)

    def open_jobs(changed):
        workspace = Workspace(changed, setting, output)
        return {job.method for jobs in jobs_of(changed) for job in jobs if not workspace.done(job)}

    assert open_jobs(study) == set()
    assert open_jobs(dataclasses.replace(study, w_rg=(1.0, 2.0))) == {*study.methods, *study.merges}
    assert open_jobs(dataclasses.replace(study, training={**study.training, "beta": 0.5})) == {
        "DCO",
        "DCO merge",
    }
    assert open_jobs(dataclasses.replace(study, zip_steps=3)) == {"DreamBooth ZipLoRA"}
    more = dataclasses.replace(study, methods=(*study.methods, "MaPO"))
    assert open_jobs(more) == {"MaPO"}
    assert open_jobs(dataclasses.replace(study, seeds=(0, 1))) == {
        "base model",
        *study.methods,
        *study.merges,
    }


def test_other_weights_of_the_base_model_do_every_job_again(finished, tmp_path, monkeypatch):
    _, output, _ = finished
    study = small()
    workspace = Workspace(study, setting_for(study, output / "references", None), output)
    jobs = [job for jobs in jobs_of(study) for job in jobs]
    assert all(map(workspace.done, jobs))
    for file in setting_module.TOY_FILES.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    changed = tmp_path / file.name
    changed.write_bytes(changed.read_bytes()[:-1] + bytes([changed.read_bytes()[-1] ^ 1]))
    monkeypatch.setattr(setting_module, "TOY_FILES", tmp_path)
    assert not any(map(workspace.done, jobs))


@pytest.fixture
def one_thread():
    """As each of two workers on two cores has: the order of sums, and so the last bits, depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_stopped_job_goes_on_and_ends_as_if_it_had_not_been(finished, one_thread, tmp_path):
    _, output, _ = finished
    job = Job("DCO", "toy", None, 0)
    workspace = Workspace(small(), setting_for(small(), tmp_path / "references", None), tmp_path)
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workspace.do(job, stop)
    assert not workspace.done(job) and list(workspace.path(job).glob("*.checkpoints/*.safetensors"))
    workspace.do(job)
    assert workspace.done(job)
    whole = output / "jobs" / workspace.path(job).name
    for name in (LORA, "scores.csv", "distances.csv"):
        assert (workspace.path(job) / name).read_bytes() == (whole / name).read_bytes()


def test_other_checkpoints_of_a_finished_training_are_made(finished, tmp_path):
    """The run itself is the same and is done already: asked again, it takes no step."""
    study = small(checkpoints=[1], others=2)
    job = Job("DreamBooth", "toy", None, 0)
    Workspace(study, setting_for(study, tmp_path / "references", None), tmp_path).do(job)
    more = small(checkpoints=[1, 2], others=2)
    workspace = Workspace(more, setting_for(more, tmp_path / "references", None), tmp_path)
    workspace.do(job)
    assert workspace.done(job)
    rows = read_table(workspace.path(job) / "scores.csv")
    assert {row["checkpoint"] for row in rows} == {1, 2, 3}
    assert (workspace.path(job) / LORA).read_bytes() != (workspace.path(job) / "lora-2.safetensors").read_bytes()


def test_the_end_of_a_training_with_a_moving_average_is_the_average(tmp_path):
    training = {"steps": 3, "learning_rate": 0.01, "beta": 0.04}
    ups = {}
    for ema in (0.0, 0.9):
        study = small(training=training | {"ema_decay": ema})
        workspace = Workspace(study, setting_for(study, tmp_path / "references", None), tmp_path / str(ema))
        job = Job("DreamBooth", "toy", None, 0)
        workspace.do(job)
        ups[ema] = [layer.up for layer in read_lora(workspace.main_lora(job)).layers.values()]
    plain, averaged = (sum(float(up.norm()) for up in ups[ema]) for ema in (0.0, 0.9))
    assert 0 < averaged < 0.5 * plain


def test_folders_of_one_name_are_told_apart_wherever_they_lie():
    def names(*subjects):
        study = dataclasses.replace(small(merges=[]), subjects=subjects, styles=("/x/ink",))
        return list(folder_names(study).values())[: len(subjects)]

    first = names("/home/a/dog", "/home/b/Dog", "/home/a/cat")
    assert len({name.casefold() for name in first}) == 3 and first[2] == "cat"
    assert names("/elsewhere/a/dog", "/elsewhere/b/Dog", "/elsewhere/cat") == first
    assert len(set(names("/1/dog/train", "/2/dog/train", "train"))) == 3
    assert names("toy", "toy-1") == ["toy", "toy-1"]
    same = dataclasses.replace(small(merges=[]), subjects=("toy", "./toy"))
    with pytest.raises(DCOError, match="of toy and .* of ./toy would share the folder"):
        jobs_of(same)


def test_one_job_that_fails_does_not_end_the_others(tmp_path, monkeypatch):
    study = small(merges=[], styles=[], style_methods=[])
    real = workspace_module.FolderTraining

    def failing(model, folder, *args, **kwargs):
        if folder.config.objective == "dreambooth":
            raise DCOError("the disk is full")
        return real(model, folder, *args, **kwargs)

    monkeypatch.setattr(workspace_module, "FolderTraining", failing)
    failed = run(study, tmp_path, [None], lambda text: None)
    assert len(failed) == 1 and "dreambooth" in failed[0] and "the disk is full" in failed[0]
    workspace = Workspace(study, setting_for(study, tmp_path / "references", None), tmp_path)
    assert workspace.done(Job("DCO", "toy", None, 0)) and not workspace.done(Job("DreamBooth", "toy", None, 0))


def test_every_method_trains_with_what_it_names():
    study = small(methods=list(METHODS), merges=[], style_methods=[])
    configs = {name: study.config(name, 7) for name in METHODS}
    assert {c.seed for c in configs.values()} == {7}
    assert [configs[n].beta for n in ("DCO, half beta", "DCO", "DCO, double beta")] == [0.02, 0.04, 0.08]
    assert configs["DCO, half the steps"].steps == 2 and configs["DCO"].steps == 3
    assert configs["DreamBooth + prior 0.5"].prior_weight == 0.5
    assert {c.objective for c in configs.values()} == {
        "dco", "dreambooth", "dreambooth-prior", "mapo", "output-preservation",
    }  # fmt: skip


def test_compact_captions_name_the_subject_alone(tmp_path):
    setting = setting_for(small(), tmp_path, None)
    for what, text in (("toy", "a <toy>"), ("print", "in <print> style")):
        folder = setting.references(what, METHODS["DCO, compact captions"].captions)
        assert {file.read_text(encoding="utf-8") for file in folder.glob("*.txt")} == {text}
    full = setting.references("toy", "comprehensive")
    assert all("beach" in file.read_text(encoding="utf-8") for file in full.glob("*.txt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["DPO"]}, "DPO"),
        ({"seeds": []}, "seed"),
        ({"seeds": [1, 1]}, "twice"),
        ({"styles": ["print", "print-1"]}, "1 subjects and 2 styles"),
        ({"methods": ["DCO"]}, "DreamBooth merge"),
        ({"training": {"stepz": 3}}, "stepz"),
        ({"training": {"steps": 0}}, "steps is 0"),
        ({"pictures": 0}, "pictures is 0"),
        ({"colour": "red"}, "colour"),
        (
            {"methods": ["DreamBooth", "DCO", "DCO, double beta"], "training": {"steps": 3, "beta": None}},
            "automatic",
        ),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_before_anything_is_done(changes, message):
    with pytest.raises(DCOError, match=message):
        small(**changes)


def test_an_unknown_study_names_the_known_ones(capsys, tmp_path):
    assert main(["evidence", "--study", "no-such", "--output", str(tmp_path)]) == 1
    assert "toy-world" in capsys.readouterr().err
    assert load_study("toy-world").seeds and len(load_study("toy-world").seeds) >= 5


def test_an_unknown_reference_of_the_toy_world_is_refused(tmp_path):
    with pytest.raises(DCOError, match="teapot"):
        setting_for(small(subjects=["teapot"]), tmp_path, None)


def test_workers_are_cores_or_gpus(monkeypatch):
    assert devices("cpu", 3) == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices("cuda:1", None) == ["cuda:1"] and devices("cuda:1", 4) == ["cuda:1"] * 4
    assert devices("cuda", None) == devices(None, None) == ["cuda:0", "cuda:1"]
    assert devices(None, 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices("cuda", 1) == ["cuda:0"]
    with pytest.raises(DCOError, match="--device cuda:2 is not there: use cuda:0 to cuda:1"):
        devices("cuda:2", None)


def test_devices_that_are_not_there_and_no_workers_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for asked, workers, words in [
        ("cuda", None, "finds no GPU: use --device cpu"), ("cuda:1", 2, "finds no GPU"),
        ("foo", None, "--device foo is unknown"), ("cpu", 0, "--workers is 0"), (None, -1, "--workers is -1"),
    ]:  # fmt: skip
        with pytest.raises(DCOError, match=words):
            devices(asked, workers)


def test_memory_that_runs_out_ends_one_job_and_not_the_study(monkeypatch, tmp_path):
    study = dataclasses.replace(
        load_study("toy-world-quick"), subjects=("toy",), seeds=(0, 1), one_seed_each=False, side_by_side=1
    )
    done = []

    def do(self, job, callback=lambda: None):
        if job.method == "DCO" and job.seed == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        done.append(job)
        return 1.0

    monkeypatch.setattr(Workspace, "do", do)
    failed = run(study, tmp_path, ["cpu"], lambda text: None)
    lost = [job for jobs in jobs_of(study) for job in jobs if job.method == "DCO" and job.seed == 0]
    assert len(failed) == len(lost) and all("the memory ran out: lower resolution" in message for message in failed)
    assert len(done) == sum(map(len, jobs_of(study))) - len(lost)


def test_methods_that_would_share_a_folder_are_refused():
    study = load_study("toy-world-quick")
    study = dataclasses.replace(
        study, own_methods={"DCO, 2 x": {}, "dco 2+x": {}}, methods=("DCO, 2 x", "dco 2+x"), style_methods=(), merges=()
    )
    with pytest.raises(DCOError, match="share the folder .*rename"):
        jobs_of(study)


def test_guidance_of_the_pictures():
    """Plain guidance is that of the fine-tuned model, w_rg = 0 the base model, and the noise is the same for all."""
    model = ToyWorldModel()
    denoiser = model.denoiser(AdapterConfig(rank=2, layers="attention"))
    generator = torch.Generator().manual_seed(1)
    layers = {
        model.canonical(name): LoraLayer(x.down, 0.1 * torch.randn(x.up.shape, generator=generator), x.alpha)
        for name, x in denoiser.lora().items()
    }
    settings = {"w_text": 2.0, "steps": 3, "pictures": 2, "seed": 4}
    prompts = ["a large toy on the left, at night, in flat style"]
    pictures = {g: draw(model, with_lora(model, layers), prompts, g, **settings) for g in (PLAIN, 0.0, 1.0)}
    base = draw(model, model.denoiser(None), prompts, 0.0, **settings)
    assert (
        pictures[PLAIN].shape == (2, 256, 256, 3) and 0 <= pictures[PLAIN].min() <= pictures[PLAIN].max() <= 1
    )
    torch.testing.assert_close(pictures[0.0], base)
    merged = model.denoiser(None)
    for name, module in merged.network.named_modules():
        layer = layers.get(model.canonical(name)) if name else None
        if layer is not None:
            module.weight.data = module.weight.data + layer.delta()
    torch.testing.assert_close(
        pictures[PLAIN], draw(model, merged, prompts, 0.0, **settings), atol=1e-4, rtol=1e-4
    )
    assert (pictures[1.0] - pictures[0.0]).abs().max() > 0.05
    assert (pictures[PLAIN] - pictures[1.0]).abs().max() > 0.05


def test_a_lora_of_another_model_is_refused():
    layer = LoraLayer(torch.zeros(1, 4), torch.zeros(4, 1), 1.0)
    with pytest.raises(DCOError, match="lora_unet_elsewhere"):
        with_lora(ToyWorldModel(), {"lora_unet_elsewhere": layer})


def test_a_study_may_have_methods_of_its_own():
    own = {"DCO, rank 4": {"adapter": {"rank": 4}, "training": {"learning_rate": 0.5}, "beta_factor": 3}}
    study = small(methods=["DreamBooth", "DCO", "DCO, rank 4"], own_methods=own)
    config, adapter = study.config("DCO, rank 4", 1), study.adapter_config("DCO, rank 4", 1)
    assert (config.learning_rate, config.beta, adapter.rank, adapter.seed) == (0.5, pytest.approx(0.12), 4, 1)
    assert study.adapter_config("DCO", 1).rank == 2
    for wrong, message in (
        ({"colour": 1}, "colour"),
        ({"captions": "long"}, "long"),
        ({"adapter": {"ranks": 1}}, "ranks"),
    ):
        with pytest.raises(DCOError, match=message):
            small(methods=["DreamBooth", "DCO", "mine"], own_methods={"mine": wrong})


def test_references_that_another_job_has_written_are_taken_as_they_are(tmp_path):
    """Jobs start side by side: none may see, or leave, half a folder."""
    setting = setting_for(small(), tmp_path, None)
    folder = setting.references("toy", "comprehensive")
    (folder / "0.txt").write_text("a <toy>, by the other job", encoding="utf-8")
    assert setting.references("toy", "comprehensive") == folder
    assert (folder / "0.txt").read_text(encoding="utf-8") == "a <toy>, by the other job"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_jobs_of_a_study_that_one_process_does_share_what_a_unit_has(tmp_path, monkeypatch):
    scorers = []

    def noted(self, job, *rest):
        scorers.append(self)

    monkeypatch.setattr(Scorer, "score", noted)
    study, (one, two) = small(), [job for job in jobs_of(small())[0] if job.method == BASE][:2]
    for job in (one, two):
        runner_module._one(study, tmp_path, job, None)
    runner_module._one(small(w_text=3.0), tmp_path, one, None)
    assert scorers[0] is scorers[1] is not scorers[2]
