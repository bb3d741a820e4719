"""`python -m dco_core train --model checkpoint:... | unet:...`: the host's loaders and families without its server."""

import gc
import hashlib
import importlib
from pathlib import Path

import checkpoints
import pytest
import torch
from prepared import OneText, PictureVAE
from safetensors.torch import load_file
from small_models import FAMILIES, small_model, text
from small_vision import write_dinov2, write_siglip

from dco_core.cli import commands
from dco_core.cli import train as train_command
from dco_core.data.folders import load_folder
from dco_core.evidence.jobs import Job
from dco_core.evidence.runner import run
from dco_core.evidence.setting import setting_for
from dco_core.evidence.study import Study
from dco_core.evidence.tables import read_table
from dco_core.evidence.workspace import Workspace
from dco_core.models import host_model
from dco_core.models.loading import load_model
from dco_core.network.lora_layers import AdapterConfig
from dco_core.pipeline.pictures import FolderPictures
from dco_core.pipeline.run import FolderTraining
from dco_core.toy_world.references import write_toy_references
from dco_core.training.config import TrainingConfig
from devtools import in_process_host as host
from devtools.environment import comfyui_path


@pytest.fixture(scope="module", autouse=True)
def named():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMFYUI_PATH", str(comfyui_path()))
        yield
    import comfy.model_management

    comfy.model_management.in_training = False  # which the command line leaves on, as its program ends with it


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy_references(tmp_path_factory.mktemp("references") / "subject", "toy")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One small SD1.5 as a checkpoint, and its parts as files of their own."""
    folder = tmp_path_factory.mktemp("models")
    tensors = checkpoints.sd15_tensors()
    parts = {
        "unet": ("model.diffusion_model.", ""), "clip": ("cond_stage_model.transformer.", ""),
        "vae": ("first_stage_model.", ""),
    }  # fmt: skip
    for name, (prefix, other) in parts.items():
        part = {other + k[len(prefix) :]: t for k, t in tensors.items() if k.startswith(prefix)}
        torch.save(part, folder / f"{name}.ckpt")
    torch.save({"state_dict": tensors}, folder / "whole.ckpt")
    (folder / "broken.safetensors").write_bytes(b"no tensors")
    return folder


def train(data, output, *arguments):
    return commands.main([
        "train", "--data", str(data), "--output", str(output), "--steps", "2", "--rank", "2", "--resolution", "64",
        "--beta", "0.1", "--learning-rate", "1e-2", "--device", "cpu", "--checkpoint-every", "1", *arguments,
    ])  # fmt: skip


class Stopped(BaseException):
    pass


@pytest.fixture(scope="module")
def whole(data, files, tmp_path_factory):
    """What the checkpoint trains to, with a learned token."""
    output = tmp_path_factory.mktemp("whole") / "a.safetensors"
    assert train(data, output, "--model", f"checkpoint:{files / 'whole.ckpt'}", "--learned-tokens", "with-lora") == 0
    return output


def test_a_checkpoint_trains_with_a_token_stops_and_goes_on(data, files, whole, tmp_path, monkeypatch, capsys):
    model, output = ["--model", f"checkpoint:{files / 'whole.ckpt'}", "--learned-tokens", "with-lora"], whole.name

    def stop(self, report):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(train_command._Progress, "__call__", stop)
        with pytest.raises(Stopped):
            train(data, tmp_path / output, *model)
    assert train(data, tmp_path / output, *model) == 0
    assert "Found the checkpoint of step 1: going on" in capsys.readouterr().out
    assert hashlib.sha256((tmp_path / output).read_bytes()).digest() == hashlib.sha256(whole.read_bytes()).digest()
    found = load_file(whole)
    assert tuple(found["bundle_emb.toy.clip_l"].shape) == (1, 768)
    assert any(tensor.abs().max() > 0 for key, tensor in found.items() if key.endswith("up.weight"))


def test_the_node_makes_the_same_lora_and_token(data, files, whole, tmp_path):
    """The trainer node's own execute, in this process."""
    import comfy.sd
    import folder_paths

    trainer = host.pack("nodes.training.trainer").DCOLoRATrainer
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    tokens = {"token_learning_rate": TrainingConfig.token_learning_rate, "initializers": "", "vectors": 0}
    pictures = load_folder(data, require_captions=True)
    try:
        with torch.inference_mode():  # as the host runs nodes
            model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(files / "whole.ckpt"))[:3]
            trainer.execute(
                images=[picture.image[None] for picture in pictures], captions=[p.caption for p in pictures],
                model=[model], clip=[clip], vae=[vae], steps=[2], rank=[2], resolution=[64], name=["node"],
                recipe={"recipe": ["custom"], "learning_rate": [1e-2], "offset_noise": [0.0]},
                objective={"objective": ["DCO"], "beta": {"beta": ["own value"], "value": [0.1]}},
                options=[{
                    "resume": False, "reference_cache": False, "previews": {"previews": "off"},
                    "learned_tokens": {"learned_tokens": "with the LoRA", **tokens},
                }],
            )  # fmt: skip
    finally:
        folder_paths.set_output_directory(before)
    (path,) = (tmp_path / "loras").iterdir()
    expected, found = load_file(path), load_file(whole)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_its_parts_in_files_of_their_own_are_the_same_model(data, files, whole, tmp_path):
    parts = ["--model", f"unet:{files / 'unet.ckpt'}", "--clip", str(files / "clip.ckpt"), "--vae",
             str(files / "vae.ckpt"), "--learned-tokens", "with-lora"]  # fmt: skip
    assert train(data, tmp_path / "a.safetensors", *parts) == 0
    expected, found = load_file(whole), load_file(tmp_path / "a.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_it_goes_on_from_a_lora_and_asks_for_streamed_weights(data, files, whole, tmp_path, monkeypatch, capsys):
    """On the CPU nothing is streamed, and the LoRA is the same."""
    host_model._pack_module("nodes.host", Path(comfyui_path()))
    module = importlib.import_module("dco_pack.nodes.host.training.command_line_model")
    asked, real = [], module.load_for_training

    def load(*arguments, stream_weights, **options):
        asked.append(stream_weights)
        return real(*arguments, stream_weights=stream_weights, **options)

    monkeypatch.setattr(module, "load_for_training", load)
    model = ["--model", f"checkpoint:{files / 'whole.ckpt'}", "--start-from", str(whole), "--rank", "7"]
    for name, choice in (("a", "on"), ("b", "off")):
        assert train(data, tmp_path / f"{name}.safetensors", *model, "--stream-weights", choice) == 0
    assert asked == ["on", "off"]
    assert capsys.readouterr().out.count("No weights are streamed: the model trains in main memory.") == 1
    started, one, other = (load_file(p) for p in (whole, tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    assert one.keys() == other.keys() == started.keys()
    assert all(torch.equal(one[key], other[key]) and one[key].shape == started[key].shape for key in one)
    assert torch.equal(one["bundle_emb.toy.clip_l"], started["bundle_emb.toy.clip_l"])
    ups = [key for key in one if key.endswith("up.weight")]
    assert any(not torch.equal(one[key], started[key]) for key in ups)
    moved = sum(((one[key] - started[key]) ** 2).sum() for key in ups)
    assert moved < 4 * sum((started[key] ** 2).sum() for key in ups)  # two steps on, and not from nothing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "checkpoint:nothing.safetensors"], "checkpoint:nothing.safetensors is not there, and not in"),
        (["--model", "checkpoint:{files}/broken.safetensors"], "ComfyUI cannot load"),
        (["--model", "checkpoint:{files}/vae.ckpt"], "ComfyUI cannot load"),
        (["--model", "unet:{files}/unet.ckpt", "--clip", "{files}/clip.ckpt", "--vae", "no.pt"], "--vae no.pt is not"),
        (
            ["--model", "unet:{files}/unet.ckpt", "--clip", "{files}/clip.ckpt", "--vae", "{files}/broken.safetensors"],
            "broken.safetensors as VAE",
        ),
        (
            ["--model", "unet:{files}/unet.ckpt", "--clip", "{files}/clip.ckpt", "--clip-type", "fluxx", "--vae", "x"],
            "--clip-type fluxx is unknown: use one of ",
        ),
    ],
)
def test_files_that_are_no_models_are_one_sentence(arguments, words, data, files, tmp_path, capsys):
    given = [argument.format(files=files) for argument in arguments]
    assert train(data, tmp_path / "a.safetensors", *given) == 1
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("error: ") and words in printed
    assert list(tmp_path.iterdir()) == []


class EnlargingVAE(PictureVAE):
    """Decodes its own latents to grey pictures, one pixel of a latent to 8 x 8."""

    def decode(self, latents):
        grey = torch.nn.functional.interpolate(latents.float().mean(1, keepdim=True).sigmoid(), scale_factor=8.0)
        return grey.repeat(1, 3, 1, 1).movedim(1, -1)


@pytest.mark.parametrize("name", ["sdxl", "flux", "sd3", "lumina2", "sd15-inpaint"])
def test_families_train_as_folders_do_and_again_with_kept_errors(name, data, tmp_path):
    host_model._pack_module("nodes.host", Path(comfyui_path()))
    command_line_model = importlib.import_module("dco_pack.nodes.host.training.command_line_model")
    channels = FAMILIES[name].latent[0]

    def run(output):
        clip, vae = OneText(text(name, 7, 3)), EnlargingVAE(channels)
        model = command_line_model.CommandLineModel(small_model(name), clip, vae)
        model.content = lambda: name  # the CLIP of a few lines has no weights to tell it by
        training = FolderTraining(
            model, FolderPictures(data, TrainingConfig(steps=2, beta=0.1, learning_rate=1e-2)), output,
            AdapterConfig(rank=1), resolution=64, square=True, reference_folder=tmp_path / "errors",
            preview_every=2 if name == "sdxl" and output.stem == "a" else 0,
        )  # fmt: skip
        training.run(lambda report: None)
        training.save()
        return training, load_file(output)

    _, first = run(tmp_path / "a.safetensors")
    again, second = run(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors.previews").exists() == (name == "sdxl")
    assert any("are there from an earlier run" in note for note in again.notes)
    assert all(torch.equal(second[key], tensor) for key, tensor in first.items())
    assert again.training.denoiser.family == again._model.family != ""


def test_a_model_that_goes_away_changes_no_mode_of_those_that_stay(data, files):
    """Inference mode and the host's in_training are the program's, not a model's: a study has one after the other."""
    import comfy.model_management

    def model():
        found = load_model(f"checkpoint:{files / 'whole.ckpt'}", "cpu")
        found.denoiser(None)
        return found

    before = comfy.model_management.in_training
    first = model()
    try:
        with torch.inference_mode(), torch.no_grad():
            del first
            gc.collect()
            assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        second = model()
        third = model()
        del second
        gc.collect()
        assert comfy.model_management.in_training and third is not None
    finally:
        comfy.model_management.in_training = before


def test_a_study_runs_on_a_checkpoint(data, files, tmp_path):
    """What FolderSetting does with a diffusers folder: tests/core/test_evidence_folders.py."""
    study = Study(
        model=f"checkpoint:{files / 'whole.ckpt'}", subjects=(str(data),), methods=("DreamBooth", "DCO"), seeds=(2,),
        training={"steps": 1, "learning_rate": 0.01}, adapter={"rank": 2}, w_text=7.5, w_rg=(3.0,), sampling_steps=1,
        prompts=2, pictures=1, others=1, distance_timesteps=1, distance_draws=1, resolution=64,
        likeness_model=str(write_dinov2(tmp_path / "dinov2")), text_model=str(write_siglip(tmp_path / "siglip")),
    )  # fmt: skip
    study.check()
    assert run(study, tmp_path / "done", ["cpu"], lambda text: None) == []
    workspace = Workspace(study, setting_for(study, tmp_path / "done" / "references", "cpu"), tmp_path / "done", "cpu")
    likeness = {}
    for method in ("base model", "DreamBooth", "DCO"):
        rows = read_table(workspace.path(Job(method, str(data), None, 2)) / "scores.csv")
        likeness[method] = [row["likeness"] for row in rows if row["prompts"] != "others"]
        assert any(row["prompts"] == "others" and row["rmse"] is not None for row in rows)
    assert len(likeness["DCO"]) == 2 * 2 and likeness["DCO"][:2] != likeness["base model"][:2]
