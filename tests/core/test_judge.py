"""The judge's points, on a small vision-language model that is saved and loaded as real ones are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from small_vision import write_dinov2, write_judge

from dco_core.errors import DCOError
from dco_core.metrics import load_judge


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("vision") / "judge")


def pictures(n, height, width, seed):
    return list(torch.rand(n, height, width, 3, generator=torch.Generator().manual_seed(seed)))


def expected_points(folder, images, question_words):
    """Of the words that the model knows, read off its logits by hand."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    text = "user : " + "<image> " * len(images) + question_words + " assistant : Score: "
    shown = [Image.fromarray((image.numpy() * 255).round().astype(np.uint8)) for image in images]
    with torch.no_grad():
        logits = model(**processor(text=[text], images=shown, return_tensors="pt")).logits[0, -1]
    share = logits[processor.tokenizer.convert_tokens_to_ids(list("01234"))].softmax(0)
    return sum(n * p for n, p in enumerate(share.tolist())) / 4


def test_points_are_the_expected_ones_of_the_next_token(folder, monkeypatch):
    judge = load_judge(folder)
    images, references = pictures(3, 40, 56, 1), pictures(2, 30, 28, 2)
    monkeypatch.setattr("dco_core.metrics.judge._asked", lambda kind, prompt="": f"{kind} dog {prompt} cat")
    found = judge.resemblance(images, references, "style")
    by_hand = [
        np.mean([expected_points(folder, [reference, image], "style dog  cat") for reference in references])
        for image in images
    ]
    assert np.allclose(found.numpy(), by_hand, atol=1e-5) and found.max() - found.min() > 1e-3
    prompts = ["a red star", "a blue {} toy", "the heart"]
    found = judge.follows(images, prompts)
    by_hand = [
        expected_points(folder, [image], f"prompt dog {prompt} cat")
        for image, prompt in zip(images, prompts, strict=True)
    ]
    assert np.allclose(found.numpy(), by_hand, atol=1e-5)
    assert ((found >= 0) & (found <= 1)).all()


def test_the_prompt_and_the_kind_are_in_the_question(folder, monkeypatch):
    judge, asked = load_judge(folder), []
    points = judge._points
    monkeypatch.setattr(judge, "_points", lambda question, images: asked.append(question) or points(question, images))
    image = pictures(1, 28, 28, 3)
    judge.follows(image, ["a {prompt} in {} style"])
    judge.resemblance(image, image)
    judge.resemblance(image, image, "style")
    assert '"a {prompt} in {} style"' in asked[0] and "{prompt}" not in asked[1]
    assert "face" in asked[1] and "brushwork" in asked[2] and all("4 " in question for question in asked)


def test_large_pictures_are_shown_smaller_and_steps_are_counted(folder, monkeypatch):
    judge, seen, steps = load_judge(folder), [], []
    monkeypatch.setattr(judge, "_points", lambda question, images: seen.extend(i.size for i in images) or 0.5)
    found = judge.resemblance(pictures(2, 300, 1100, 4), pictures(1, 20, 30, 5), callback=lambda: steps.append(1))
    assert seen == [(30, 20), (512, 140)] * 2 and len(steps) == 2 and found.tolist() == [0.5, 0.5]


def test_what_cannot_be_judged(folder, tmp_path):
    judge = load_judge(folder)
    with pytest.raises(DCOError, match="2 images have 1 prompts"):
        judge.follows(pictures(2, 28, 28, 6), ["a dog"])
    with pytest.raises(DCOError, match="no reference"):
        judge.resemblance(pictures(1, 28, 28, 6), [])
    with pytest.raises(DCOError, match='no "face"'):
        judge.resemblance(pictures(1, 28, 28, 6), pictures(1, 28, 28, 6), "face")
    with pytest.raises(DCOError, match="No model could be loaded"):
        load_judge(write_dinov2(tmp_path / "dinov2"))
    (folder / "chat_template.jinja").rename(tmp_path / "kept")
    try:
        with pytest.raises(DCOError, match="no chat template"):
            load_judge(folder)
    finally:
        (tmp_path / "kept").rename(folder / "chat_template.jinja")
