"""Pictures that the base model makes for the objectives that need them."""

import dataclasses
import functools
import hashlib
import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import sd15, sdxl

from dco_core.cli.commands import main
from dco_core.errors import DCOError
from dco_core.lora import read_lora
from dco_core.models.diffusers_model import load
from dco_core.network.lora_layers import AdapterConfig
from dco_core.pipeline import examples as folder_examples
from dco_core.pipeline.examples import Preparation, PreparedPictures
from dco_core.pipeline.generation import GenerationConfig, generate
from dco_core.pipeline.output_files import checkpoint_folder
from dco_core.pipeline.pictures import FolderPictures
from dco_core.pipeline.run import GENERATED
from dco_core.toy_world.image_model import ToyWorldModel
from dco_core.toy_world.model import ToyDenoiser, encode, load_text_encoder, load_unet
from dco_core.toy_world.references import write_toy_references
from dco_core.training.config import TrainingConfig
from dco_core.training.previews import Previews
from tests.toy_sampler import toy_sample

FEW = GenerationConfig(class_images=6, rejected_images=2, generation_steps=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy_references(tmp_path_factory.mktemp("toy") / "subject", "toy")


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Folders of pipelines, written once: a run reads them alone."""
    folders = {write: tmp_path_factory.mktemp(write.__name__) for write in (sd15, sdxl)}
    for write, folder in folders.items():
        write(folder, layers=1)
    return {write: folder / "pipeline" for write, folder in folders.items()}


def of(objective):
    return TrainingConfig(objective=objective, seed=5)


def folder_examples_of(data, config, generation=FEW, class_data=None):
    pictures = FolderPictures(data, config, generation, class_data)
    return PreparedPictures(ToyWorldModel(), pictures, Preparation(256, square=True))


def by_hand(seed, caption, steps, w_text=2.0):
    text, empty = encode(load_text_encoder(), [caption, ""])
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return toy_sample(load_unet(), text[None], empty[None], noise, 0.0, w_text, steps=steps)[0]


def test_pictures_are_the_base_models_whatever_the_adapter_has_learned():
    denoiser = ToyDenoiser(AdapterConfig(rank=2))
    for p in denoiser.trainable().values():
        p.data = torch.randn_like(p)
    text, empty = encode(load_text_encoder(), ["a photo of a toy", ""])
    seeds = [7, 2**64 + 1, 9, 10, 11]  # more than at once
    made = generate(denoiser, text, empty, (3, 32, 32), seeds, w_text=2.0, steps=2)
    assert len(made) == 5
    for seed, latent in zip(seeds, made, strict=True):
        expected = by_hand(seed % 2**64, "a photo of a toy", 2)
        torch.testing.assert_close(latent, expected, rtol=1e-3, atol=1e-3)
    again = generate(denoiser, text, empty, (3, 32, 32), seeds, w_text=2.0, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))


def test_a_base_model_that_overflows_is_named():
    denoiser = ToyDenoiser(AdapterConfig(rank=2))
    text, empty = encode(load_text_encoder(), ["a photo of a toy", ""])
    with pytest.raises(DCOError, match="not finite.*bf16 or fp32"):
        generate(denoiser, text * math.nan, empty, (3, 32, 32), [0], w_text=2.0, steps=2)


def test_class_images_are_of_the_class_prompt(data):
    made = folder_examples_of(data, of("dreambooth-prior"))
    examples = made.examples(ToyDenoiser(AdapterConfig(rank=2)))
    assert [e.prior for e in examples] == [False] * 4 + [True] * 6
    torch.testing.assert_close(examples[5].latent, by_hand(5 + 7919 + 1, "a photo of a toy", 2), rtol=1e-3, atol=1e-3)
    assert torch.equal(examples[5].conditioning, encode(load_text_encoder(), ["a photo of a toy"])[0])
    other = dataclasses.replace(FEW, class_prompt="a photo of a <cat>")
    named = folder_examples_of(data, of("dreambooth-prior"), other)
    assert named.settings["class_prompt"] == "a photo of a cat"
    assert named.content != made.content


def test_rejected_images_are_of_each_caption_without_marker(data):
    made = folder_examples_of(data, of("mapo"))
    examples = made.examples(ToyDenoiser(AdapterConfig(rank=2)))
    assert [len(e.rejected) for e in examples] == [2] * 4
    caption = made.captions[3].replace("<", "").replace(">", "")
    expected = by_hand(5 + 4 * 7919 + 1, caption, 2)
    torch.testing.assert_close(examples[3].rejected[1], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("objective", ["dco", "dreambooth", "output-preservation"])
def test_other_objectives_make_nothing(data, objective, monkeypatch):
    monkeypatch.setattr(folder_examples, "generate", None)
    examples = folder_examples_of(data, of(objective)).examples(ToyDenoiser(AdapterConfig(rank=2)))
    assert not any(e.prior or e.rejected for e in examples)
    assert (examples[0].class_conditioning is not None) == (objective == "output-preservation")


def test_what_was_made_is_kept_until_it_would_be_other_pictures(data, tmp_path, monkeypatch):
    messages, kept = [], tmp_path / "kept.safetensors"

    def latents(seed=5, **changes):
        config, generation = TrainingConfig(objective="mapo", seed=seed), dataclasses.replace(FEW, **changes)
        examples = folder_examples_of(data, config, generation).examples(
            ToyDenoiser(AdapterConfig(rank=2)), kept, messages.append
        )
        return [latent for e in examples for latent in e.rejected]

    first, again = latents(), latents()
    assert messages == ["The base model makes 8 rejected images first."]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for change in ({"seed": 6}, {"generation_steps": 3}, {"generation_w_text": 1.5}, {"rejected_images": 1}):
        assert not torch.equal(latents(**change)[0], first[0]) or "rejected_images" in change
    assert len(messages) == 5
    kept.write_bytes(kept.read_bytes()[:-3])
    assert len(latents(rejected_images=1)) == 4
    assert len(messages) == 6


GIVEN_BETA = ("--beta", "0.04")  # where none needs to be found on the pictures


def command(data, output, *more, model="toy-world"):
    return main([
        "train", "--model", model, "--data", str(data), "--output", str(output), "--steps", "4", "--seed", "3",
        "--rank", "2", "--learning-rate", "1e-2", "--checkpoint-every", "1", "--generation-steps", "2",
        "--class-images", "3", *map(str, more),
    ])  # fmt: skip


@pytest.mark.parametrize("objective", ["dreambooth-prior", "mapo", "dco-prior"])
def test_from_the_command_line_stopped_and_resumed_the_file_is_the_same(data, tmp_path, capsys, objective):
    whole, split = tmp_path / "whole" / "lora.safetensors", tmp_path / "split" / "lora.safetensors"
    assert command(data, whole, "--objective", objective) == 0
    assert command(data, split, "--objective", objective, "--steps", 2) == 0
    capsys.readouterr()
    assert command(data, split, "--objective", objective) == 0
    printed = capsys.readouterr().out
    assert "Found the checkpoint of step 2: going on" in printed
    assert "makes" not in printed
    assert (checkpoint_folder(split) / GENERATED).exists()
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (whole, split)}
    assert len(digests) == 1
    assert '"generation_steps": 2' in read_lora(whole).metadata["dco.config"]


def test_class_images_come_from_a_folder_and_count_as_content(data, tmp_path, capsys):
    folder, output = tmp_path / "class", tmp_path / "lora.safetensors"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(np.full((300, 256, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    options = ("--objective", "dreambooth-prior", "--class-data", folder)
    assert command(data, output, *options) == 0
    assert "makes" not in capsys.readouterr().out
    assert not (checkpoint_folder(output) / GENERATED).exists()
    assert '"class_images": 2' in read_lora(output).metadata["dco.config"]
    examples = folder_examples_of(data, of("dreambooth-prior"), class_data=folder).examples(
        ToyDenoiser(AdapterConfig(rank=2))
    )
    torch.testing.assert_close(examples[-1].latent, torch.full((3, 32, 32), 40 / 127.5 - 1), atol=1e-5, rtol=0)
    Image.fromarray(np.full((300, 256, 3), 200, np.uint8)).save(folder / "1.png")
    assert command(data, output, *options) == 1
    assert "is of another run" in capsys.readouterr().err
    assert command(data, output, *options, "--overwrite") == 0
    assert "Starting anew" in capsys.readouterr().out


@pytest.mark.parametrize("write", [sd15, sdxl])
@pytest.mark.parametrize("objective", ["dreambooth-prior", "mapo", "output-preservation", "dco-prior"])
def test_pipelines_train_every_baseline(data, tmp_path, pipelines, write, objective):
    model, output = f"diffusers:{pipelines[write]}", tmp_path / "lora.safetensors"
    assert command(data, output, "--objective", objective, "--steps", 2, model=model) == 0
    assert read_lora(output).layers


def test_sdxl_is_told_that_nothing_of_a_generated_picture_is_cut_off(data, tmp_path, pipelines, monkeypatch):
    told = []

    def spy(_denoiser, text, empty, shape, seeds, **_):
        told.append((text["time_ids"].tolist(), empty["time_ids"].tolist(), list(shape)))
        return [torch.zeros(*shape) for _ in seeds]

    monkeypatch.setattr(folder_examples, "generate", spy)
    (tmp_path / "one").mkdir()
    Image.fromarray(np.zeros((100, 70, 3), np.uint8)).save(tmp_path / "one" / "0.png")
    (tmp_path / "one" / "0.txt").write_text("a photo of a <toy>")
    model = load(pipelines[sdxl], "cpu", torch.float32)
    for objective in ("mapo", "dreambooth-prior"):
        pictures = FolderPictures(tmp_path / "one", of(objective), FEW)
        made = PreparedPictures(model, pictures, Preparation(32))
        made.examples(model.denoiser(AdapterConfig(rank=2)))
        height, width = made._encoded[0].size.target_size if objective == "mapo" else (32, 32)
        assert told[-1][0] == told[-1][1] == [height, width, 0, 0, height, width]
        assert told[-1][2] == [4, height // 2, width // 2]
    assert made._encoded[0].size.target_size != (32, 32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--objective", "dreambooth-prior", "--class-images", 0), "class_images is 0"),
        (("--objective", "mapo", "--rejected-images", 0), "rejected_images is 0"),
        (("--objective", "mapo", "--generation-steps", 5000), "in 5000 steps"),
        (("--objective", "mapo", "--generation-w-text", -1), "generation_w_text is -1"),
        (("--objective", "dreambooth-prior", "--class-data", "/nowhere"), "/nowhere"),
        (("--class-data", "/nowhere"), "leave --class-data out"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(data, tmp_path, capsys, options, words):
    assert command(data, tmp_path / "lora.safetensors", *options) == 1
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("objective", ["dreambooth-prior", "output-preservation", "dco-prior"])
def test_captions_without_marker_need_a_class_prompt(data, tmp_path, capsys, objective):
    plain = write_toy_references(tmp_path / "plain", "toy")
    for path in plain.glob("*.txt"):
        path.write_text(path.read_text().replace("<", "").replace(">", ""))
    output = tmp_path / "lora.safetensors"
    assert command(plain, output, "--objective", objective) == 1
    assert "--class-prompt" in capsys.readouterr().err
    assert command(plain, output, "--objective", objective, "--class-prompt", "a photo of a toy", *GIVEN_BETA) == 0


@pytest.mark.parametrize("objective", ["dreambooth-prior", "output-preservation"])
def test_sdxl_is_told_the_authors_fixed_sizes_where_that_is_asked_for(
    data, tmp_path, pipelines, monkeypatch, objective
):
    model, told = f"diffusers:{pipelines[sdxl]}", {}
    for sizes in ("real", "fixed"):
        output = tmp_path / f"{sizes}.safetensors"
        made, examples = [], PreparedPictures.examples

        def kept(self, *args, made=made, examples=examples):
            made += examples(self, *args)
            return made

        with monkeypatch.context() as patched:
            patched.setattr(PreparedPictures, "examples", kept)
            options = ("--objective", objective, "--size-conditioning", sizes, "--resolution", 40, "--steps", 1)
            assert command(data, output, *options, model=model) == 0
        texts = [c for e in made for c in (e.conditioning, e.empty_conditioning, e.class_conditioning) if c]
        told[sizes] = {tuple(c["time_ids"].tolist()) for c in texts}
        assert f'"size_conditioning": "{sizes}"' in read_lora(output).metadata["dco.config"]
    assert told["fixed"] == {(40, 40, 0, 0, 40, 40)}
    assert told["real"] != told["fixed"]
    assert (tmp_path / "fixed.safetensors").read_bytes() != (tmp_path / "real.safetensors").read_bytes()


def test_a_model_that_reads_no_sizes_refuses_fixed_ones(data, tmp_path, capsys):
    output = tmp_path / "lora.safetensors"
    assert command(data, output, "--size-conditioning", "fixed") == 1
    assert "reads no sizes, as SDXL does: leave --size-conditioning out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_class_images_know_the_empty_prompt_where_captions_are_dropped(data, tmp_path):
    output = tmp_path / "lora.safetensors"
    assert command(data, output, "--objective", "dreambooth-prior", "--caption-dropout", "0.9") == 0


def test_a_mask_beside_the_pictures_changes_what_is_learned(tmp_path):
    files = []
    for masked in (False, True):
        folder = write_toy_references(tmp_path / str(masked), "toy")
        if masked:
            (folder / "masks").mkdir()
            pixels = np.zeros((256, 256), np.uint8)
            pixels[:, :100] = 255
            for picture in folder.glob("*.png"):
                Image.fromarray(pixels).save(folder / "masks" / picture.name)
        made = folder_examples_of(folder, of("dco")).examples(ToyDenoiser(AdapterConfig(rank=2)))
        assert (made[0].mask is not None) == masked
        if masked:
            assert made[0].mask.shape == (32, 32) and made[0].mask[:, :12].min() == 1 and not made[0].mask[:, 13:].any()
        assert command(folder, tmp_path / f"{masked}.safetensors", *GIVEN_BETA) == 0
        files.append((tmp_path / f"{masked}.safetensors").read_bytes())
    assert files[0] != files[1]


@pytest.mark.parametrize("write", [None, sdxl])
def test_previews_are_written_and_leave_the_training_alone(data, tmp_path, pipelines, monkeypatch, write):
    monkeypatch.setattr(folder_examples, "Previews", functools.partial(Previews, steps=2))
    model = "toy-world" if write is None else f"diffusers:{pipelines[write]}"
    plain, shown = tmp_path / "plain" / "lora.safetensors", tmp_path / "shown" / "lora.safetensors"
    assert command(data, plain, *GIVEN_BETA, model=model) == 0
    prompts = ("--preview-prompt", "a <toy> on a beach", "--preview-prompt", "a star")
    assert command(data, shown, *GIVEN_BETA, "--preview-every", "2", *prompts, model=model) == 0
    assert plain.read_bytes() == shown.read_bytes()
    sheets = sorted((tmp_path / "shown" / "lora.safetensors.previews").iterdir())
    assert [path.name for path in sheets] == ["step-00000002.png", "step-00000004.png"]
    early, late = (np.asarray(Image.open(path)) for path in sheets)
    assert early.shape == late.shape and (early != late).any()
    assert not (tmp_path / "plain" / "lora.safetensors.previews").exists()


def test_previews_after_a_negative_number_of_steps_are_refused(data, tmp_path, capsys):
    assert command(data, tmp_path / "lora.safetensors", "--preview-every", "-1") == 1
    assert "preview_every is -1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
