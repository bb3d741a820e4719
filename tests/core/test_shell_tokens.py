"""Learned tokens from the command line: how the Toy World and diffusers pipelines read them, and the files."""

import hashlib
import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_pipelines import sd15, sdxl

from dco_core.captions.markers import base_caption
from dco_core.cli import commands
from dco_core.cli import train as train_command
from dco_core.errors import DCOError
from dco_core.lora import from_bundle, read_lora
from dco_core.models.diffusers_model import load
from dco_core.toy_world.image_model import ToyWorldModel
from dco_core.toy_world.references import write_toy_references
from dco_core.training.learned_tokens import TokenSpec

ENCODERS = {"toy": {"toy_world": 128}, "sd15": {"clip_l": 16}, "sdxl": {"clip_l": 16, "clip_g": 16}}
CAPTION = "a <toy> and a <red star>, at night; <toy>"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What --model names, for each family."""
    found = {"toy": "toy-world"}
    for name, write in (("sd15", sd15), ("sdxl", sdxl)):
        folder = tmp_path_factory.mktemp(name)
        write(folder)
        found[name] = f"diffusers:{folder / 'pipeline'}"
    return found


@pytest.fixture(params=ENCODERS)
def family(request):
    return request.param


@pytest.fixture
def model(family, places):
    name = places[family]
    return ToyWorldModel() if name == "toy-world" else load(name.partition(":")[2], "cpu", torch.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy_references(tmp_path_factory.mktemp("references") / "subject", "toy")


def flat(conditioning):
    parts = conditioning.values() if isinstance(conditioning, dict) else [conditioning]
    return torch.cat([part.flatten() for part in parts])


SPECS = [TokenSpec("toy", "toy"), TokenSpec("red star", "red star")]


def test_rows_that_start_as_words_read_as_the_words(model, family):
    tokens = model.learned_tokens.start(SPECS, 0, {})
    by_encoder = tokens.rows()["toy"]
    assert {name: rows.shape[1] for name, rows in by_encoder.items()} == ENCODERS[family]
    (plain,) = model.encode_captions([base_caption(CAPTION)])
    read = model.learned_tokens.trained(tokens)(CAPTION)
    torch.testing.assert_close(flat(read()), flat(plain), rtol=0, atol=0)
    (encoded,) = model.learned_tokens.encode([CAPTION], tokens.tensors(), {})
    assert torch.equal(flat(encoded), flat(plain)) and not flat(encoded).requires_grad
    (words,) = model.learned_tokens.encode([CAPTION], {}, {"toy": "green star"})
    (encoded,) = model.encode_captions(["a green star and a red star, at night; green star"])
    assert torch.equal(flat(words), flat(encoded))


def test_the_gradient_is_that_of_central_differences_and_the_rest_is_untouched(model, family):
    before = model.content()
    tokens = model.learned_tokens.start(SPECS, 0, {})
    read = model.learned_tokens.trained(tokens)(CAPTION)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(flat(read()).shape, generator=generator)
    for name, parameter in tokens.parameters().items():
        direction = torch.randn(parameter.shape, generator=generator) * parameter.detach().std()
        (gradient,) = torch.autograd.grad((flat(read()) * weight).sum(), parameter)
        h, around = 1e-2, []
        with torch.no_grad():
            for sign in (1, -1):
                parameter += sign * h * direction
                around.append((flat(read()).double() * weight).sum())
                parameter -= sign * h * direction
        numeric = (around[0] - around[1]) / (2 * h)
        assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=2e-2, abs=1e-3), name
        assert gradient.norm(dim=1).min() > 0
    (plain,) = model.encode_captions(["a <toy>"])
    (again,) = model.encode_captions(["a <toy>"])
    assert torch.equal(flat(plain), flat(again))
    assert model.content() == before


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_it_reads_what_diffusers_reads_with_the_embedding_loaded(model, places, family, tmp_path):
    """diffusers' own Textual Inversion is the oracle: rows in the table, tokens in the vocabulary."""
    tokens = model.learned_tokens.start([TokenSpec("toy", "", 3)], 0, {})
    rows = tokens.tensors()["toy"]
    (found,) = model.learned_tokens.encode(["a photo of a <toy> on grass"], {"toy": rows}, {})
    pipeline = load(places[family].partition(":")[2], "cpu", torch.float32)._pipeline
    parts = {"clip_l": (pipeline.tokenizer, pipeline.text_encoder)}
    if family == "sdxl":
        parts["clip_g"] = (pipeline.tokenizer_2, pipeline.text_encoder_2)
    for name, (tokenizer, encoder) in parts.items():
        pipeline.load_textual_inversion(rows[name], token="<toy>", tokenizer=tokenizer, text_encoder=encoder)
    with torch.no_grad():
        text, _, *pooled = pipeline.encode_prompt(
            "a photo of a <toy> on grass", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    torch.testing.assert_close(found["text"], text[0], rtol=1e-5, atol=1e-5)
    if family == "sdxl":
        torch.testing.assert_close(found["pooled"], pooled[0][0], rtol=1e-5, atol=1e-5)


def test_long_captions_are_cut_off_with_their_rows(model):
    tokens = model.learned_tokens.start([TokenSpec("toy", "toy")], 0, {})
    caption = "a " * 200 + "<toy>"
    (plain,) = model.encode_captions([base_caption(caption)])
    assert torch.equal(flat(model.learned_tokens.trained(tokens)(caption)()), flat(plain))


def test_rows_of_another_encoder_and_tokens_that_exist_are_refused(model, family):
    with pytest.raises(DCOError, match="<toy> has rows for clip_x of width 3, this text encoder is "):
        model.learned_tokens.encode(["a <toy>"], {"toy": {"clip_x": torch.ones(1, 3)}}, {})
    taken = "pad" if family == "toy" else "|endoftext|"
    with pytest.raises(DCOError, match=f"<{re.escape(taken)}> already exists in {next(iter(ENCODERS[family]))}"):
        model.learned_tokens.start([TokenSpec(taken, "toy")], 0, {})
    if family == "toy":  # the pipelines' tokenizers here know every letter
        with pytest.raises(DCOError, match='"zebra" of <toy> is not a word that toy_world knows'):
            model.learned_tokens.start([TokenSpec("toy", "zebra")], 0, {})


# --- the command


def train(model, data, output, *more, learn="with-lora", rate="1e-2"):
    return commands.main([
        "train", "--model", model, "--data", str(data), "--output", str(output), "--steps", "4", "--rank", "2",
        "--learning-rate", "1e-2", "--checkpoint-every", "1", "--seed", "3", "--beta", "0.1",
        "--learned-tokens", learn, "--token-lr", rate, *more,
    ])  # fmt: skip


class Stopped(BaseException):
    pass


@pytest.mark.parametrize(
    ("family", "learn"),
    [("toy", "with-lora"), ("sd15", "alone"), ("sdxl", "with-lora")],
)
def test_trained_stopped_and_resumed_the_files_are_the_same(family, places, data, tmp_path, monkeypatch, capsys, learn):
    whole, split = tmp_path / "whole" / "my.safetensors", tmp_path / "split" / "my.safetensors"
    assert train(places[family], data, whole, learn=learn) == 0
    printed = capsys.readouterr().out
    assert f"The token <toy> is also in {whole.with_name('my_toy.safetensors')}" in printed
    assert "reads <toy> as the word" not in printed

    def stop(self, report):
        if report.step == 2:
            raise Stopped

    monkeypatch.setattr(train_command._Progress, "__call__", stop)
    with pytest.raises(Stopped):
        train(places[family], data, split, learn=learn)
    monkeypatch.undo()
    assert not split.exists()
    assert train(places[family], data, split, learn=learn) == 0
    assert "Found the checkpoint of step 2: going on" in capsys.readouterr().out
    for name in ("my.safetensors", "my_toy.safetensors"):
        digests = {hashlib.sha256(path.with_name(name).read_bytes()).hexdigest() for path in (whole, split)}
        assert len(digests) == 1

    lora, rows = read_lora(whole), load_file(whole.with_name("my_toy.safetensors"))
    assert bool(lora.layers) == (learn == "with-lora")
    assert {name: r.shape[1] for name, r in rows.items()} == ENCODERS[family]
    for name, found in from_bundle(lora.other)["toy"].items():
        assert torch.equal(found, rows[name])
    with safe_open(whole, "pt") as file:
        header = file.metadata()
    assert json.loads(header["dco.tokens"]) == {"toy": "toy"}
    assert header["modelspec.trigger_phrase"] == "<toy>"
    assert json.loads(header["dco.config"])["learned_tokens"] == learn


def rows_of(output, name="toy"):
    return from_bundle(read_lora(output).other)[name]["toy_world"]


def test_initializers_vectors_and_rates_are_used(data, tmp_path):
    def rows(*more, **changes):
        output = tmp_path / "toy.safetensors"
        assert train("toy-world", data, output, "--overwrite", *more, **changes) == 0
        return rows_of(output)

    plain, slow = rows(), rows(rate="1e-6")
    other = rows("--initializer", "<toy> = star")
    assert rows("--vectors", "3").shape == (3, 128)
    assert rows("--initializer", "<toy> = red star, 4").shape == (4, 128)
    assert (plain - other).norm() > (plain - slow).norm() > 0.01
    torch.testing.assert_close(plain.norm(dim=1), slow.norm(dim=1))


@pytest.mark.parametrize("objective", ["mapo", "output-preservation"])
def test_tokens_train_with_other_objectives_beside_dropout_and_previews(data, tmp_path, objective):
    made = ("--generation-steps", "2", "--objective", objective, "--caption-dropout", "0.3")
    ends = []
    for rate in ("1e-7", "1e-2"):
        output = tmp_path / rate / "toy.safetensors"
        previews = ("--preview-every", "4", "--preview-prompt", "a <toy> at night") if rate == "1e-2" else ()
        assert train("toy-world", data, output, *made, *previews, rate=rate) == 0
        ends.append(rows_of(output))
    assert (ends[1] - ends[0]).norm() > 0.01
    assert len(list((tmp_path / "1e-2" / "toy.safetensors.previews").iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--learned-tokens", "off"], "--token-learning-rate is for learned tokens, and none are learned"),
        (["--learned-tokens", "off", "--token-lr", "0"], "--token-learning-rate is for learned tokens"),
        (["--token-lr", "0"], "token_learning_rate is 0"),
        (["--vectors", "-1"], "vectors is -1"),
        (["--initializer", "<cat> = star"], "<cat> fits no caption"),
        (["--initializer", "<toy> = zebra"], '"zebra" of <toy> is not a word'),
        (["--initializer", "<toy> = red star", "--vectors", "1"], "2 tokens"),
    ],
)
def test_bad_tokens_are_refused_before_anything_is_written(data, tmp_path, capsys, options, words):
    assert train("toy-world", data, tmp_path / "toy.safetensors", *options) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and words in printed and printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_embedding_file_of_others_is_not_replaced(data, tmp_path, capsys):
    theirs = tmp_path / "toy_toy.safetensors"
    save_file({"clip_l": torch.zeros(1, 2)}, theirs)
    before = theirs.read_bytes()
    assert train("toy-world", data, tmp_path / "toy.safetensors") == 1
    assert f"{theirs} was not written by this command and would be lost" in capsys.readouterr().err
    assert theirs.read_bytes() == before and list(tmp_path.iterdir()) == [theirs]
    assert train("toy-world", data, tmp_path / "toy.safetensors", "--overwrite") == 0
    assert theirs.read_bytes() != before
    assert train("toy-world", data, tmp_path / "toy.safetensors") == 0  # its own
