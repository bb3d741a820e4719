"""The mask prior and preservation prompts from a folder of pictures, as a user runs them."""

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from dco_core.captions.preservation import PROMPTS
from dco_core.cli.commands import main
from dco_core.errors import DCOError
from dco_core.lora import read_lora
from dco_core.network.lora_layers import AdapterConfig
from dco_core.pipeline.examples import Preparation, PreparedPictures
from dco_core.pipeline.generation import GenerationConfig
from dco_core.pipeline.pictures import FolderPictures
from dco_core.toy_world.image_model import ToyWorldModel
from dco_core.toy_world.model import ToyDenoiser, encode, load_text_encoder
from dco_core.toy_world.references import write_toy_references
from dco_core.training.config import TrainingConfig

HELD = {
    "mask_prior": 20.0,
    "preservation_prompts": "blank; class; a red car; a <toy> at night",
    "preservation_share": 0.7,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The toy on its four pictures, two of which have a mask."""
    folder = write_toy_references(tmp_path_factory.mktemp("toy") / "subject", "toy")
    pictures = sorted(folder.glob("*.png"))
    (folder / "masks").mkdir()
    for path in pictures[:2]:
        with Image.open(path) as image:
            mask = Image.new("L", image.size)
            mask.paste(255, (0, 0, image.width // 2, image.height))
        mask.save(folder / "masks" / path.name)
    return folder


def train(data, output, **options):
    values = {"model": "toy-world", "data": data, "output": output, "steps": 8, "rank": 2, "learning_rate": 1e-3,
              "batch_size": 2, "threads": 1, **options}  # fmt: skip
    return main(["train", *(x for k, v in values.items() for x in (f"--{k.replace('_', '-')}", str(v)))])


def header(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["dco.config"])


def test_examples_have_the_prompts_as_the_base_model_reads_them(data):
    config = TrainingConfig(preservation_prompts=HELD["preservation_prompts"] + ";bundled", seed=3)
    prepared = PreparedPictures(ToyWorldModel(), FolderPictures(data, config), Preparation(256, square=True))
    examples = prepared.examples(ToyDenoiser(AdapterConfig(rank=2)))
    expected = ["", "a photo of a toy", "a red car", "a toy at night", *PROMPTS]
    for example in examples:
        assert len(example.preserved) == len(expected)
        for found, wanted in zip(example.preserved, encode(load_text_encoder(), expected), strict=True):
            torch.testing.assert_close(found, wanted)
    own = GenerationConfig(class_prompt="a star")
    prepared = PreparedPictures(
        ToyWorldModel(), FolderPictures(data, config, own), Preparation(256, square=True)
    )
    (first, *_), star = (
        prepared.examples(ToyDenoiser(AdapterConfig(rank=2))),
        encode(load_text_encoder(), ["a star"]),
    )
    torch.testing.assert_close(first.preserved[1], star[0])


@pytest.mark.parametrize("objective", ["dco", "dreambooth"])
def test_from_the_shell_stopped_and_gone_on_with_and_the_header_tells_it(data, tmp_path, objective):
    options = HELD | {"objective": objective}
    assert train(data, tmp_path / "whole.safetensors", **options) == 0
    found = header(tmp_path / "whole.safetensors")
    assert {name: found[name] for name in HELD} == HELD
    # a run that was asked for fewer steps is an earlier point of the same one
    assert train(data, tmp_path / "part.safetensors", **options | {"steps": 3}) == 0
    assert train(data, tmp_path / "part.safetensors", **options) == 0
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "part"))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert train(data, tmp_path / "free.safetensors", objective=objective) == 0
    assert not set(HELD) & set(header(tmp_path / "free.safetensors"))
    free = read_lora(tmp_path / "free.safetensors").layers
    held = read_lora(tmp_path / "whole.safetensors").layers
    assert all(not torch.equal(free[k].up, held[k].up) for k in free)


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"mask_prior": 5.0, "data": "plain"},
            "mask_prior is 5, but no picture has anything outside of a mask",
        ),
        ({"preservation_prompts": "blank", "preservation_weight": 0.0}, "preservation_weight is 0, so that"),
        ({"preservation_prompts": ";"}, "has no prompt: write blank, class, bundled"),
        ({"preservation_share": 2.0}, "preservation_share is 2: it must be above 0 and at most 1"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(data, tmp_path, capsys, options, words):
    plain = write_toy_references(tmp_path / "plain", "toy")
    options = options | ({"data": plain} if "data" in options else {})
    assert train(**{"data": data, "output": tmp_path / "out.safetensors"} | options) == 1
    assert words in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain"]


def test_a_class_that_no_caption_marks_is_asked_for(tmp_path, data):
    for path in data.glob("*.txt"):
        (tmp_path / path.name).write_text("a toy", encoding="utf-8")
    for path in data.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DCOError, match="class_prompt is empty and no caption marks the subject"):
        FolderPictures(tmp_path, TrainingConfig(preservation_prompts="class"))
