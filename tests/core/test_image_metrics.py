"""DINOv2 image similarity and SigLIP's scores, on small models saved and loaded as real ones are."""

from __future__ import annotations

import builtins
import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_vision import SIDE, write_dinov2, write_siglip

from dco_core.errors import DCOError
from dco_core.metrics import (
    image_similarity,
    load_image_encoder,
    load_siglip,
    mean_cosine_similarity,
    siglip_score,
)

PROMPTS = ["a photo of a dog on the beach", "a red star at night", "a toy"]


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    return write_dinov2(tmp_path_factory.mktemp("vision") / "dinov2")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return write_siglip(tmp_path_factory.mktemp("vision") / "siglip")


def pictures(n, height=SIDE, width=SIDE, seed=0):
    g = torch.Generator().manual_seed(seed)
    flat = torch.rand(n, 1, 1, 3, generator=g)
    return list((flat + 0.3 * torch.rand(n, height, width, 3, generator=g)).clamp(0, 1))


def eight_bit(images):
    return torch.stack(list(images)).mul(255).round() / 255


def cosines(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    return np.array([[x @ y / math.sqrt((x @ x) * (y @ y)) for y in b] for x in a])


def test_dinov2_similarity_is_the_mean_cosine_of_class_tokens(dinov2):
    from transformers import Dinov2Model

    images, references = pictures(9), pictures(3, seed=5)
    got = image_similarity(load_image_encoder(dinov2), images, references)
    model = Dinov2Model.from_pretrained(dinov2).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def tokens(batch):
        with torch.no_grad():
            return model(((eight_bit(batch) - mean) / std).movedim(-1, 1)).last_hidden_state[:, 0]

    expected = cosines(tokens(images), tokens(references)).mean(1)
    assert got.shape == (9,) and np.allclose(got.numpy(), expected, atol=1e-4)
    assert got.max() - got.min() > 0.01


def test_siglip_image_similarity_is_of_the_pooled_image_embedding(siglip):
    from transformers import SiglipModel

    images, references = pictures(4), pictures(2, seed=5)
    got = image_similarity(load_image_encoder(siglip), images, references)
    vision = SiglipModel.from_pretrained(siglip).eval().vision_model

    def embedded(batch):
        with torch.no_grad():
            return vision(((eight_bit(batch) - 0.5) / 0.5).movedim(-1, 1)).pooler_output

    assert np.allclose(got.numpy(), cosines(embedded(images), embedded(references)).mean(1), atol=1e-4)
    assert torch.equal(got, image_similarity(load_siglip(siglip), images, references))


def test_siglip_score_is_what_the_model_itself_gives(siglip):
    from transformers import SiglipModel, SiglipProcessor

    images = pictures(10)
    got = load_siglip(siglip).scores(images, PROMPTS)
    processor = SiglipProcessor.from_pretrained(siglip)
    words = processor.tokenizer(PROMPTS, padding="max_length", max_length=16, return_tensors="pt")[
        "input_ids"
    ]
    model = SiglipModel.from_pretrained(siglip).eval()
    with torch.no_grad():
        output = model(input_ids=words, pixel_values=((eight_bit(images) - 0.5) / 0.5).movedim(-1, 1))
    assert got.shape == (10, 3) and torch.allclose(got, output.logits_per_image.sigmoid(), atol=1e-4)
    assert got.std(0).min() > 1e-3 and got.std(1).min() > 1e-4
    # scale e^2 and bias -1.5: the paper's formula on embeddings that carry the scale, with b = +1.5
    cosine = cosines(output.image_embeds, output.text_embeds)
    paper = 1 / (1 + np.exp(-math.exp(2.0) * cosine + 1.5))
    assert np.allclose(got.numpy(), paper, atol=1e-4)


def test_each_image_with_its_own_prompt(siglip):
    scorer, images = load_siglip(siglip), pictures(4)
    table = scorer.scores(images, PROMPTS)
    own = scorer.score(images, [PROMPTS[2], PROMPTS[0], PROMPTS[2], PROMPTS[1]])
    assert torch.allclose(own, table[[0, 1, 2, 3], [2, 0, 2, 1]], atol=1e-6)


def test_a_prompt_beyond_the_longest_is_cut(siglip):
    assert load_siglip(siglip).scores(pictures(1), ["a red star at night " * 40]).shape == (1, 1)


def test_the_score_grows_with_scale_and_falls_with_a_lower_bias():
    cosine = torch.linspace(-1, 1, 5)
    score = siglip_score(cosine, 10.0, -10.0)
    assert score.diff().min() > 0 and score[-1] == 0.5
    assert (siglip_score(cosine, 10.0, -12.0) < score).all()


def test_a_reference_is_its_own_likest(dinov2):
    references = pictures(3)
    encoder = load_image_encoder(dinov2)
    alone = [image_similarity(encoder, references, [r]) for r in references]
    assert all(int(s.argmax()) == i and s[i] > 1 - 1e-5 for i, s in enumerate(alone))


def test_sizes_alpha_and_batches_do_not_matter(dinov2):
    encoder = load_image_encoder(dinov2)
    images = [
        *pictures(5, 40, 64),
        *pictures(6, 91, 50),
        torch.cat([pictures(1)[0], torch.zeros(SIDE, SIDE, 1)], 2),
    ]
    together = encoder.embed(images)
    alone = torch.cat([encoder.embed([image]) for image in images])
    assert together.shape == (12, 32) and torch.allclose(together, alone, atol=1e-4)
    assert torch.allclose(together[-1], encoder.embed(pictures(1))[0], atol=1e-5)


def test_loading_and_scoring_leave_no_gradient_and_fp32(siglip):
    scorer = load_siglip(siglip)
    assert {p.dtype for p in scorer.parameters()} == {torch.float32}
    assert not scorer.training and not any(p.requires_grad for p in scorer.parameters())
    assert not scorer.score(pictures(1), ["a toy"]).requires_grad


def test_embeddings_are_compared_by_direction():
    images = torch.tensor([[2.0, 0.0], [0.0, 0.1]])
    got = mean_cosine_similarity(images, torch.tensor([[5.0, 0.0], [3.0, 3.0]]))
    assert torch.allclose(got, torch.tensor([(1 + 0.5**0.5) / 2, 0.5**0.5 / 2]))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda e: e.embed([]), "no images to score"),
        (lambda e: e.embed([torch.zeros(4, 4)]), r"Image 1 has the shape [4, 4]"),
        (lambda e: e.embed([torch.zeros(4, 4, 3), torch.full((4, 4, 3), math.nan)]), "Image 2 holds NaN"),
        (lambda e: e.score(pictures(2), ["a toy"]), "2 images have 1 prompts"),
        (lambda e: e.scores(pictures(2), []), "no prompts"),
        (lambda e: mean_cosine_similarity(torch.zeros(1, 3), torch.zeros(0, 3)), "no reference images"),
        (lambda e: mean_cosine_similarity(torch.zeros(1, 3), torch.zeros(1, 4)), "3 and 4 numbers"),
    ],
)
def test_says_what_cannot_be_scored(siglip, call, message):
    with pytest.raises(DCOError) as error:
        call(load_siglip(siglip))
    assert message in str(error.value)


def damaged(source, target, change):
    """A copy of a model's folder with other weights."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    weights = load_file(target / "model.safetensors")
    save_file(change(weights), target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_weights_that_are_missing_are_not_made_up(dinov2, tmp_path):
    folder = damaged(dinov2, tmp_path / "less", lambda w: {k: v for k, v in w.items() if "layer.1" not in k})
    with pytest.raises(DCOError, match="do not fit its config.json .missing or of another shape: .*layer.1"):
        load_image_encoder(folder)


def test_folders_that_hold_no_model_are_told(tmp_path, dinov2):
    with pytest.raises(DCOError, match="No model is named"):
        load_image_encoder(" ")
    with pytest.raises(DCOError, match="No model could be loaded from .*empty"):
        (tmp_path / "empty").mkdir()
        load_image_encoder(tmp_path / "empty")
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in dinov2.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DCOError, match="No model could be loaded from .*broken"):
        load_image_encoder(broken)


def test_a_model_without_siglips_bias_is_refused(dinov2):
    with pytest.raises(DCOError, match="No model could be loaded|no image-text score"):
        load_siglip(dinov2)


def test_without_transformers_the_package_is_named(dinov2, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **options):
        if name == "transformers":
            raise ImportError("No module named 'transformers'")
        return real(name, *rest, **options)

    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DCOError, match="needs the package transformers"):
        load_image_encoder(dinov2)
