"""Scores, plots and sheets in a real host: pictures and prompts of a graph, small models, the Toy World's scorers."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from host_graph import Graph, facts
from PIL import Image
from small_vision import SIDE, write_dinov2, write_siglip

from dco_core.evidence.prompts import evaluation_prompts, fill
from dco_core.metrics import image_similarity, load_image_encoder, load_siglip
from dco_core.toy_world import scorer
from dco_core.toy_world.renderer import render
from dco_core.toy_world.world import subject_references
from devtools.api import HostError


class Scores(Graph):
    def show(self, scores: list) -> str:
        return self.add("DCOTestShowScores", scores=scores)

    def references(self) -> str:
        return self.add("DCOToyWorldReferences", what="subject")

    def shown_text(self, text: list) -> str:
        return self.add("PreviewAny", source=text)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    return {"dinov2": write_dinov2(folder / "dinov2"), "siglip": write_siglip(folder / "siglip")}


@pytest.fixture(scope="module")
def pictures(host):
    """Six pictures in a folder of the host's input, of two sizes; [H, W, 3] in 0..1."""
    folder = host.base_dir / "input" / "scored"
    folder.mkdir(parents=True)
    rng, found = np.random.default_rng(3), []
    for i in range(6):
        height, width = (SIDE, SIDE) if i != 4 else (40, 60)
        picture = (rng.integers(0, 180, 3) + rng.integers(0, 70, (height, width, 3))).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
        found.append(torch.from_numpy(picture).float() / 255)
    return found


def drawn(host, shown):
    (image,) = shown["images"]
    return np.asarray(Image.open(io.BytesIO(host.client.download(**image))).convert("RGB"))


def similarity(g, images, references, **changes):
    values = {"what": "subject", "model": ""} | changes
    return g.add("DCOImageSimilarity", images=images, references=references, **values)


@pytest.mark.parametrize(
    "name, what, column", [("dinov2", "subject", "likeness"), ("siglip", "style", "style_likeness")]
)
def test_image_similarity_is_the_cores(host, models, pictures, name, what, column):
    g = Scores()
    images = [g.add("DCOLoadDataset", folder="scored"), 0]
    references = [g.add("DCOToyWorldReferences", what=what), 0]
    node = similarity(g, images, references, what=what, model=str(models[name]))
    shown, mean = g.show([node, 0]), g.shown_text([node, 1])
    outputs = host.client.run(g.prompt)
    scenes = render(subject_references()[0]) if what == "subject" else None
    got = facts(outputs, shown)
    assert got["labels"] == [""] * 6 and set(got) == {"labels", column}
    assert float(outputs[mean]["text"][0]) == pytest.approx(np.mean(got[column]), abs=1e-6)
    assert f"{column}: mean" in outputs[node]["text"][0]
    if scenes is not None:
        cells = (scenes.movedim(1, -1) + 1) / 2
        large = list(cells.repeat_interleave(8, 1).repeat_interleave(8, 2))
        expected = image_similarity(load_image_encoder(models[name]), pictures, large)
        assert np.allclose(got[column], expected.numpy(), atol=1e-4)
    assert max(got[column]) - min(got[column]) > 1e-3


def test_dinov2_through_the_hosts_clip_vision_is_that_of_transformers(host, models, pictures):
    g = Scores()
    images = [g.add("DCOLoadDataset", folder="scored"), 0]
    vision = [g.add("DCOTestSmallClipVision", folder=str(models["dinov2"])), 0]
    by_host = similarity(g, images, images, clip_vision=vision, model="not used")
    shown = g.show([by_host, 0])
    got = facts(host.client.run(g.prompt), shown)["likeness"]
    encoder = load_image_encoder(models["dinov2"])
    # the host and transformers resize differently: at the model's own size there is nothing to resize
    expected = image_similarity(encoder, pictures, pictures).numpy()
    same = [i for i, picture in enumerate(pictures) if picture.shape[:2] == (SIDE, SIDE)]
    assert len(same) == 5 and np.allclose(np.array(got)[same], expected[same], atol=2e-2)
    g = Scores()
    plain = [g.add("LoadImage", image="scored/0.png"), 0]
    other = [g.add("LoadImage", image="scored/1.png"), 0]
    vision = [g.add("DCOTestSmallClipVision", folder=str(models["dinov2"])), 0]
    shown = g.show([similarity(g, plain, other, clip_vision=vision), 0])
    (value,) = facts(host.client.run(g.prompt), shown)["likeness"]
    assert value == pytest.approx(image_similarity(encoder, pictures[:1], pictures[1:2]).item(), abs=1e-4)


def test_siglip_in_the_hosts_clip_vision_is_refused(host, models, pictures):
    g = Scores()
    images = [g.add("DCOLoadDataset", folder="scored"), 0]
    vision = [g.add("DCOTestSmallClipVision", folder=str(models["siglip"])), 0]
    similarity(g, images, images, clip_vision=vision)
    with pytest.raises(HostError, match=r"siglip_vision_model\) has no single embedding of an image"):
        host.client.run(g.prompt)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_image_text_score_with_a_prompt_for_all_for_each_batch_and_for_each_image(
    host, models, pictures, count
):
    prompts = [
        f"a photo of a {word} on the beach" for word in ("<dog>", "cat", "toy", "star", "heart", "red dog")
    ]
    g = Scores()
    if count == 2:
        two = [g.add("DCOToyWorldReferences", what=what) for what in ("subject", "style")]
        images = [g.add("DCOTestPair", a=[two[0], 0], b=[two[1], 0]), 0]
    else:
        images = [g.add("DCOLoadDataset", folder="scored"), 0]
    text = "\n".join(prompts[:count])
    node = g.add("DCOImageTextScore", images=images, prompts=text, model=str(models["siglip"]))
    shown = g.show([node, 0])
    got = facts(host.client.run(g.prompt), shown)["alignment"]
    own = [prompt.replace("<", "").replace(">", "") for prompt in prompts]
    siglip = load_siglip(models["siglip"])
    if count == 2:
        assert len(got) == 5
        cells = (render(subject_references()[0]).movedim(1, -1) + 1) / 2
        large = list(cells.repeat_interleave(8, 1).repeat_interleave(8, 2))
        assert np.allclose(got[:4], siglip.score(large, [own[0]] * 4).numpy(), atol=1e-4)
        return
    expected = siglip.score(pictures, own if count == 6 else own[:1] * 6)
    assert np.allclose(got, expected.numpy(), atol=1e-4) and np.std(got) > 1e-4


def toy_score(g, images, what, **changes):
    return g.add("DCOToyWorldScore", images=images, what=what, **({"prompts": ""} | changes))


def test_toy_world_scores_of_the_references(host):
    g = Scores()
    references = g.references()
    likeness = toy_score(g, [references, 0], "subject likeness")
    style = toy_score(g, [references, 0], "style likeness", scores=[likeness, 0])
    both = toy_score(g, [references, 0], "prompt alignment", prompts=[references, 1], scores=[style, 0])
    shown, table = g.show([both, 0]), g.shown_text([both, 2])
    styled = g.add("DCOToyWorldReferences", what="style")
    other = g.show([toy_score(g, [styled, 0], "style likeness"), 0])
    own = g.show([toy_score(g, [styled, 0], "style likeness", references=[styled, 0]), 0])
    outputs = host.client.run(g.prompt)
    got = facts(outputs, shown)
    assert list(got) == ["labels", "likeness", "style_likeness", "alignment"]
    assert np.mean(got["likeness"]) > 0.85 and max(got["style_likeness"]) < 0.05 and got["alignment"] == [1.0] * 4
    cells = render(subject_references()[0])
    assert np.allclose(got["likeness"], scorer.subject_likeness(cells, "toy").numpy(), atol=0.02)
    assert (
        outputs[table]["text"][0].splitlines()[0]
        == "| label | pictures | likeness | style_likeness | alignment |"
    )
    assert facts(outputs, other)["style_likeness"][0] > 0.9 < facts(outputs, own)["style_likeness"][0]


def test_a_sweep_over_prompts_becomes_a_plot_and_a_sheet(host):
    """The whole way: prompts, a sweep for each of them, two scores, a curve a method, and a labelled sheet."""
    g = Scores()
    base = g.toy()
    prompts = g.add(
        "DCOEvaluationPrompts", kind="customization", category="toy world", word="toy", count=2, style=""
    )
    positive = g.text(base["clip"], [prompts, 0])
    tables = {}
    for objective, values in (("DCO", {}), ("DreamBooth", {})):
        trainer = g.toy_trainer(base, objective=objective, layers="all linear", **values)
        across = {"across": "w_rg alone"}
        if objective == "DreamBooth":
            across = {"across": "and w_text", "across__w_text_values": "1, 2"}
        sweep = g.guidance(
            "DCORewardGuidanceSweep", **base_of(base), lora=[trainer, 0], positive=positive,
            negative=g.text(base["clip"], ""), latent_image=g.latent(256, 2), w_rg_values="0, 1.4", seed=3, steps=3,
            w_text=2.0, sampler_name="euler", scheduler="simple", denoise=1.0, lora_strength=1.0, **across,
        )  # fmt: skip
        likeness = toy_score(g, [sweep, 0], "subject likeness", labels=[sweep, 2])
        both = toy_score(g, [sweep, 0], "prompt alignment", prompts=[prompts, 0], scores=[likeness, 0])
        tables[objective] = (sweep, both, g.show([both, 0]))
    plot = g.add(
        "DCOParetoPlot", names="DCO\nDreamBooth", title="Toy World", x="alignment", y="likeness",
        **{f"curves.scores_{i}": [both, 0] for i, (_, both, _) in enumerate(tables.values())},
    )  # fmt: skip
    picture, text = g.add("PreviewImage", images=[plot, 0]), g.shown_text([plot, 1])
    sheet = g.add(
        "DCOContactSheet", images=[tables["DCO"][0], 0], labels=[tables["DCO"][0], 2], row_names="", title="DCO"
    )  # fmt: skip
    sheet_shown = g.add("PreviewImage", images=[sheet, 0])
    outputs = host.client.run(g.prompt)
    got = {name: facts(outputs, shown) for name, (_, _, shown) in tables.items()}
    # two prompts, two images each: the labels come once for each
    assert got["DCO"]["labels"] == ["w_rg 0", "w_rg 1.4"] * 4
    first = ["w_text 1, w_rg 0", "w_text 1, w_rg 1.4"] * 2 + ["w_text 2, w_rg 0", "w_text 2, w_rg 1.4"] * 2
    assert got["DreamBooth"]["labels"] == first * 2
    assert len(got["DCO"]["likeness"]) == 8 and len(got["DreamBooth"]["alignment"]) == 16
    # w_rg 0 is the base model, whatever was trained
    base_model = [got[name]["likeness"][i] for name, i in (("DCO", 0), ("DreamBooth", 4))]
    assert base_model[0] == pytest.approx(base_model[1], abs=1e-4)
    image = drawn(host, outputs[picture])
    assert image.shape[0] > 500 and image.shape[1] > 900 and len(np.unique(image.reshape(-1, 3), axis=0)) > 20
    report = outputs[text]["text"][0]
    assert (
        report.startswith("DCO\n\n| label") and "DreamBooth\n\n| label" in report and "w_text 2, w_rg 1.4" in report
    )
    drawn_sheet = drawn(host, outputs[sheet_shown])
    assert drawn_sheet.shape[0] > 4 * 256 and 2 * 256 < drawn_sheet.shape[1] < 3 * 256


def base_of(base):
    return {"model": base["model"], "vae": base["vae"]}


def test_a_point_is_the_mean_over_the_images_of_its_label(host):
    g = Scores()
    references = g.references()
    likeness = toy_score(
        g, [references, 0], "subject likeness", labels=[g.add("DCOTestLabels", text="a,a,b,b"), 0]
    )
    alignment = toy_score(
        g, [references, 0], "prompt alignment", prompts="a large toy", scores=[likeness, 0]
    )
    plot = g.add(
        "DCOParetoPlot", names="", title="", x="alignment", y="likeness", curves__scores_0=[alignment, 0]
    )
    text, shown = g.shown_text([plot, 1]), g.show([alignment, 0])
    outputs = host.client.run(g.prompt)
    likeness = facts(outputs, shown)["likeness"]
    lines = outputs[text]["text"][0].splitlines()
    assert lines[0] == "method 1"
    assert lines[4] == f"| a | 2 | {np.mean(likeness[:2]):.3f} | 1.000 |"
    assert lines[5] == f"| b | 2 | {np.mean(likeness[2:]):.3f} | 0.500 |"


@pytest.mark.parametrize("kind, word", [("customization", "<toy>"), ("merge", "<toy>"), ("style", "<print>")])
def test_evaluation_prompts_fill_their_slot(host, kind, word):
    g = Scores()
    node = g.add("DCOEvaluationPrompts", kind=kind, category="toy world", word=word, count=3, style="<print>")
    report = g.shown_text([node, 1])
    each = g.shown_text([node, 0])
    outputs = host.client.run(g.prompt)
    expected = fill(evaluation_prompts(kind, "toy world")[:3], word, "<print>")
    assert outputs[report]["text"][0].splitlines() == expected
    assert json.loads(json.dumps(outputs[each]["text"])) == expected


def missing_style(g):
    node = g.add("DCOEvaluationPrompts", kind="merge", category="object", word="<dog>", count=0, style="")
    g.shown_text([node, 1])


def no_model(g):
    images = [g.references(), 0]
    similarity(g, images, images, model="/nowhere/at-all")


def other_size(g):
    image = g.add("EmptyImage", width=64, height=32, batch_size=1, color=0)
    toy_score(g, [image, 0], "subject likeness")


def nothing_asked(g):
    toy_score(g, [g.references(), 0], "prompt alignment")


def three_prompts(g):
    toy_score(g, [g.references(), 0], "prompt alignment", prompts="a toy\na star\na heart")


def wrong_labels(g):
    toy_score(g, [g.references(), 0], "subject likeness", labels=[g.add("DCOTestLabels", text="a,b"), 0])


def same_score_twice(g):
    images = [g.references(), 0]
    first = toy_score(g, images, "subject likeness")
    toy_score(g, images, "subject likeness", scores=[first, 0])


def one_axis(g):
    first = toy_score(g, [g.references(), 0], "subject likeness")
    plot = g.add(
        "DCOParetoPlot", names="DCO", title="", x="alignment", y="likeness", curves__scores_0=[first, 0]
    )
    g.add("PreviewImage", images=[plot, 0])


def not_finite(g):
    toy_score(g, [g.add("DCOTestBrokenImage"), 0], "subject likeness")


@pytest.mark.parametrize(
    "build, message",
    [
        (missing_style, "style for .* is empty"),
        (no_model, 'No model could be loaded from "/nowhere/at-all"'),
        (other_size, "Image 1 is 64 x 32 pixels, but the Toy World's are 256 x 256"),
        (nothing_asked, "no prompt to score with"),
        (three_prompts, "4 images in 1 batches and 3 prompts"),
        (wrong_labels, "4 images and 2 labels"),
        (same_score_twice, 'has "likeness" already'),
        (one_axis, 'DCO has no "alignment"'),
        (not_finite, "Image 1 holds NaN"),
    ],
)
def test_says_what_cannot_be_done(host, build, message):
    g = Scores()
    build(g)
    with pytest.raises(HostError, match=message):
        host.client.run(g.prompt)
