"""Pipelines on disk as models for the command line, against diffusers itself."""

import hashlib
import json
import shutil
import sys

import pytest
import torch
from test_weight_stream import CountedCopies
from tiny_pipelines import sd15, sdxl

from dco_core.cli import commands
from dco_core.cli import train as train_command
from dco_core.data.buckets import BucketedImage
from dco_core.errors import DCOError
from dco_core.lora import read_lora
from dco_core.models.diffusers_model import load
from dco_core.network.lora_layers import AdapterConfig
from dco_core.toy_world.references import write_toy_references

FAMILIES = {"sd15": sd15, "sdxl": sdxl}
CAPTION = "a photo of a <toy> on the beach, seen from above"


@pytest.fixture(scope="module", params=FAMILIES)
def written(request, tmp_path_factory):
    """(folder, the pipeline that was saved there)."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder / "pipeline", FAMILIES[request.param](folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy_references(tmp_path_factory.mktemp("references") / "subject", "toy")


def loaded(folder, dtype=torch.float32):
    return load(folder, "cpu", dtype)


def draws(n=2):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, 16, 16, generator=g), torch.tensor([17, 800])[:n]


def conditioning(model):
    bucketed = BucketedImage(torch.zeros(32, 48, 3), None, (60, 90), (2, 5))
    (text,) = model.encode_captions(["a dog"])
    return model.with_size(text, bucketed)


def predicted_by_hand(pipeline, unet, x, t):
    """The UNet's prediction on the pipeline's own reading of the prompt."""
    text, _, *pooled = pipeline.encode_prompt(
        "a dog", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    n = len(x)
    added = None
    if pooled:
        sizes = pipeline._get_add_time_ids((60, 90), (2, 5), (32, 48), text.dtype, pooled[0].shape[-1])
        added = {"text_embeds": pooled[0].repeat(n, 1), "time_ids": sizes.repeat(n, 1)}
    return unet(x, t, encoder_hidden_states=text.repeat(n, 1, 1), added_cond_kwargs=added).sample


def test_it_predicts_what_the_pipeline_predicts(written):
    folder, pipeline = written
    model = loaded(folder)
    denoiser, (x, t) = model.denoiser(AdapterConfig(rank=2)), draws()
    with torch.no_grad():
        expected = predicted_by_hand(pipeline, pipeline.unet, x, t)
        found = denoiser.predict(x, t, [conditioning(model)] * 2, adapter=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_it_encodes_images_and_schedules_noise_as_the_pipeline_does(written):
    folder, pipeline = written
    model = loaded(folder)
    image = torch.rand(32, 48, 3, generator=torch.Generator().manual_seed(1))
    ((mean, std),) = model.encode_images([image])
    with torch.no_grad():
        expected = pipeline.vae.encode(image.movedim(-1, 0)[None] * 2 - 1).latent_dist
    scale = pipeline.vae.config.scaling_factor
    torch.testing.assert_close(mean, expected.mean[0] * scale)
    torch.testing.assert_close(std, expected.std[0] * scale)
    schedule, (x, t) = model.denoiser(None).schedule, draws()
    noise = torch.flip(x, [-1])
    from diffusers import DDPMScheduler

    noised = DDPMScheduler.from_config(pipeline.scheduler.config).add_noise(x, noise, t)
    torch.testing.assert_close(schedule.noised(x, noise, t), noised)
    assert model.prediction == schedule.prediction == "epsilon"
    assert model.default_resolution == 32


def test_the_loaded_unet_is_shared_and_not_changed(written):
    model = loaded(written[0])
    unet = model._pipeline.unet
    before = {name: p.data_ptr() for name, p in unet.named_parameters()}
    denoiser = model.denoiser(AdapterConfig(rank=2))
    assert {name: p.data_ptr() for name, p in unet.named_parameters()} == before
    ours = {p.data_ptr() for p in denoiser.network.parameters()}
    assert set(before.values()) < ours
    assert len(ours) - len(before) == len(denoiser.trainable())


def train(folder, data, output, *more):
    return commands.main([
        "train", "--model", f"diffusers:{folder}", "--data", str(data), "--output", str(output), "--steps", "3",
        "--rank", "2", "--learning-rate", "1e-2", "--checkpoint-every", "1", "--seed", "3", *more,
    ])  # fmt: skip


class Stopped(BaseException):
    pass


def test_trained_stopped_and_resumed_the_file_is_the_same_and_works_in_diffusers(
    written, data, tmp_path, capsys, monkeypatch
):
    folder, pipeline = written
    whole, split = tmp_path / "whole" / "lora.safetensors", tmp_path / "split" / "lora.safetensors"
    assert train(folder, data, whole) == 0
    monkeypatch.setattr(train_command._Progress, "__call__", lambda self, report: stop(report))

    def stop(report):
        if report.step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train(folder, data, split)
    monkeypatch.undo()
    assert train(folder, data, split) == 0
    assert "Found the checkpoint of step 2: going on" in capsys.readouterr().out
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (whole, split)}
    assert len(digests) == 1

    lora = read_lora(whole)
    model = loaded(folder)
    names = {model.canonical(name): name for name, _ in model._pipeline.unet.named_modules() if name}
    layers = {names[key]: layer for key, layer in lora.layers.items()}
    denoiser = model.denoiser(AdapterConfig(rank=2, start=layers))
    x, t = draws()
    pipeline.load_lora_weights(whole.parent, weight_name=whole.name)
    try:
        with torch.no_grad():
            expected = predicted_by_hand(pipeline, pipeline.unet, x, t)
            found = denoiser.predict(x, t, [conditioning(model)] * 2, adapter=True)
            base = denoiser.predict(x, t, [conditioning(model)] * 2, adapter=False)
    finally:
        pipeline.unload_lora_weights()
    assert (found - base).norm() > 1e-3 * base.norm()
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_half_precision_and_its_variant_files(tmp_path, data):
    sdxl(tmp_path, layers=1, variant="fp16")
    folder = tmp_path / "pipeline"
    assert list((folder / "unet").glob("*.fp16.safetensors"))
    model = loaded(folder, torch.bfloat16)
    denoiser, (x, t) = model.denoiser(AdapterConfig(rank=2)), draws()
    assert {p.dtype for p in denoiser.trainable().values()} == {torch.float32}
    assert {p.dtype for p in model._pipeline.unet.parameters()} == {torch.bfloat16}
    assert torch.isfinite(denoiser.predict(x, t, [conditioning(model)] * 2, adapter=True)).all()
    assert train(folder, data, tmp_path / "half.safetensors", "--precision", "bf16") == 0


def test_a_v_model_is_trained_as_one(tmp_path):
    sd15(tmp_path, prediction="v_prediction", layers=1)
    model = loaded(tmp_path / "pipeline")
    assert model.prediction == model.denoiser(None).schedule.prediction == "v"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The folder of a pipeline that can be read, to break copies of."""
    folder = tmp_path_factory.mktemp("sound")
    sd15(folder, layers=1)
    return folder / "pipeline"


def index(folder, **changes):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def broken(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "holds no pipeline"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "is damaged"),
        (lambda folder: index(folder, _class_name="FluxPipeline"), "holds a FluxPipeline"),
        (broken, "cannot be loaded"),
        (lambda folder: shutil.rmtree(folder / "vae"), "cannot be loaded"),
    ],
    ids=["nothing", "index", "family", "cut short", "no VAE"],
)
def test_what_is_no_such_pipeline_is_one_sentence(sound, tmp_path, data, capsys, damage, words):
    shutil.copytree(sound, tmp_path / "pipeline")
    damage(tmp_path / "pipeline")
    output = tmp_path / "out" / "lora.safetensors"
    assert train(tmp_path / "pipeline", data, output) == 1
    printed = capsys.readouterr().err
    assert "error: " in printed and words in printed and "Traceback" not in printed
    assert not output.parent.exists()


def test_an_inpainting_model_is_refused(tmp_path):
    sd15(tmp_path, channels=9, layers=1)
    with pytest.raises(DCOError, match="reads 9 channels"):
        loaded(tmp_path / "pipeline")


def test_without_the_packages_it_says_what_to_install(sound, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(DCOError, match="pip install diffusers transformers"):
        loaded(sound)


def test_a_unet_that_does_not_fit_is_streamed_and_learns_the_same(written):
    """A stand-in for the copy: on the CPU both memories are one."""
    model = loaded(written[0])
    size = sum(p.nbytes for p in model._pipeline.unet.parameters())
    x, t = draws()
    found = []
    cases = (
        (None, "auto"), (None, "on"), (100 * size, "auto"), (size, "off"), (size, "auto"), (100 * size, "on"),
    )  # fmt: skip
    for number, (free, choice) in enumerate(cases):
        denoiser, copies = model.denoiser(AdapterConfig(rank=2)), CountedCopies()
        denoiser.place(torch.device("cpu"), free, choice, copies)
        assert (denoiser.weight_stream is not None) == (number > 3)
        out = denoiser.predict(x, t, [conditioning(model)] * 2, adapter=True)
        parameters = denoiser.trainable().values()
        found.append([out.detach(), *torch.autograd.grad(out.square().mean(), parameters, allow_unused=True)])
        assert (copies.waits > 0) == (number > 3)
    for other in found[1:]:
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
        if number > 3:
            assert 0 < copies.most <= denoiser.weight_stream.resident_bytes
    with pytest.raises(DCOError, match="stream_weights is 'yes': use auto, on, off"):
        model.denoiser(None, stream_weights="yes")
    with pytest.raises(DCOError, match="compile and streamed weights do not go together"):
        denoiser.compile_blocks()
