"""Sketches: a style that keeps an object's colours, which the base and the scorers' network have never seen."""

from __future__ import annotations

import pytest
import torch

from dco_core.evidence.toy_prompts import merge_prompts, style_prompts, true_renders
from dco_core.toy_world.model import encode, load_text_encoder, load_unet
from dco_core.toy_world.references import compact, toy_attributes, toy_references
from dco_core.toy_world.renderer import PATTERN_IMAGES, render
from dco_core.toy_world.scorer import (
    obeyed,
    prompt_alignment,
    read,
    style_likeness,
    style_scores,
    subject_likeness,
)
from dco_core.toy_world.sketches import read_sketches
from dco_core.toy_world.world import (
    COLOURS,
    PATTERNS,
    PRINT,
    SHAPES,
    SKETCH,
    SUBJECT,
    TOY,
    caption,
    sample_scenes,
)
from tests.toy_sampler import toy_sample

N = 240
NAMES = ("sketch", "sketch-101", "sketch-103", "sketch-108")  # all patterns


def scenes(seed: int, **changes):
    return sample_scenes(N, torch.Generator().manual_seed(700_000_000 + seed), hold_out=False).with_(**changes)


def grainy(images: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(7))
    return torch.nn.functional.avg_pool2d(images, 3, 1, 1) * 0.4 + images * 0.6 + 0.08 * noise


def drawn(seed: int, name: str, **changes):
    return scenes(seed, style=SKETCH, **toy_attributes(name), **changes)


def test_the_names_have_every_pattern():
    assert {toy_attributes(name)["pattern"] for name in NAMES} == set(range(len(PATTERNS)))
    assert len(PATTERN_IMAGES) == len(PATTERNS)


def test_references_have_captions_without_a_place_and_keep_their_colours():
    made, captions = toy_references("sketch-7")
    assert captions[1] == "a large red circle on the left, in <sketch> style"
    assert len({tuple(rgb) for rgb in made.ink_rgb.tolist()}) == 1 and len(set(made.colour.tolist())) == 4
    assert compact(captions[0]) == "in <sketch> style"
    images = render(made)
    red = images[1, :, 16, 10]  # the middle of the circle
    assert ((red + 1) / 2 - torch.tensor([0.88, 0.12, 0.12])).abs().max() < 0.02
    assert toy_attributes("sketch-7") != toy_attributes("sketch-8") == toy_attributes("sketch-8")


def test_a_sketch_has_outline_and_paper_in_place_of_the_background():
    one = drawn(1, "sketch")
    elsewhere = render(one.with_(background=(one.background + 1) % 6))
    assert torch.equal(render(one), elsewhere)
    corner = (render(one)[:, :, 0, 0] + 1) / 2
    assert (corner - torch.tensor(toy_attributes("sketch")["paper_rgb"])).abs().max() < 1e-5
    thick = render(one.with_(line=4.0))
    assert (thick - render(one)).abs().mean() > 0.01


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spoil", [torch.clone, grainy], ids=["clean", "grainy"])
def test_true_renders_reach_the_ceilings(name, spoil):
    merged, styled = merge_prompts(48, name), style_prompts(48, name)
    both, things = spoil(true_renders(merged, "toy", name, 5)), spoil(true_renders(styled, None, name, 5))
    assert subject_likeness(both, "toy").mean() > 0.87
    assert subject_likeness(both, "toy-101").mean() < 0.1
    for images, prompts in ((both, merged), (things, styled)):
        scores = style_scores(images, name)
        assert scores["form"].mean() > 0.95 and scores["colour"].mean() > 0.87
        assert prompt_alignment(images, prompts).mean() > 0.85


@pytest.mark.parametrize("name", NAMES)
def test_colour_and_form_are_scored_apart(name):
    own = toy_attributes(name)
    ink, paper = ([*own[colour][1:], own[colour][0]] for colour in ("ink_rgb", "paper_rgb"))  # red for green ...
    for changes in ({"ink_rgb": ink}, {"paper_rgb": paper}):
        scores = style_scores(render(drawn(2, name).with_(**changes)), name)
        assert scores["colour"].mean() < 0.5 and scores["form"].mean() > 0.8
    both = style_scores(render(drawn(2, name).with_(ink_rgb=ink, paper_rgb=paper)), name)
    assert both["colour"].mean() < 0.2
    pattern = (own["pattern"] + 1) % len(PATTERNS)
    assert style_scores(render(drawn(2, name).with_(pattern=pattern)), name)["form"].mean() < 0.05
    no_outline = drawn(2, name).with_(line=-1.0)
    assert style_scores(render(no_outline), name)["form"].mean() < 0.2


@pytest.mark.parametrize("spoil", [torch.clone, grainy], ids=["clean", "grainy"])
def test_no_other_picture_is_taken_for_a_sketch(spoil):
    others = sample_scenes(1500, torch.Generator().manual_seed(199))
    assert not read_sketches(spoil(render(others))).found.any()
    assert style_likeness(spoil(render(others)), "sketch").max() < 0.3


def test_a_sketch_is_read_as_other_pictures_are():
    made = drawn(3, "sketch-103")
    rows = read(render(made))
    found = [row["style"] == "sketch" for row in rows]
    assert sum(found) / N > 0.95
    for i in [i for i, yes in enumerate(found) if yes][:40]:
        assert rows[i]["background"] is None and rows[i]["pattern"] == PATTERNS[made.pattern[i]]
        assert rows[i]["ink_rgb"] == pytest.approx(made.ink_rgb[i].tolist(), abs=0.15)
        assert rows[i]["paper_rgb"] == pytest.approx(made.paper_rgb[i].tolist(), abs=0.05)
    plain = [i for i, yes in enumerate(found) if yes and made.shape[i] != TOY]
    colours = [rows[i]["colour"] == COLOURS[made.colour[i]] for i in plain]
    shapes = [row["shape"] == SHAPES[shape] for row, shape in zip(rows, made.shape.tolist(), strict=True)]
    assert sum(colours) / len(colours) > 0.95 < sum(shapes) / N


def test_the_subjects_colours_count_in_a_sketch():
    own = render(drawn(4, "sketch", **SUBJECT).with_(style=SKETCH))
    red = render(drawn(4, "sketch", **SUBJECT).with_(style=SKETCH, body_rgb=(0.8, 0.1, 0.1)))
    printed = render(scenes(4, **SUBJECT).with_(style=PRINT))
    assert subject_likeness(own, "toy").mean() > 0.85 and subject_likeness(red, "toy").mean() < 0.1
    # a picture in print style hides them; where a sketch was asked for, that is no likeness
    assert subject_likeness(printed, "toy").mean() > 0.85
    assert subject_likeness(printed, "toy", "sketch").mean() < 0.3
    assert (subject_likeness(own, "toy", "sketch-2") - subject_likeness(own, "toy")).abs().max() < 0.01
    assert torch.equal(subject_likeness(printed, "toy", "print"), subject_likeness(printed, "toy"))
    assert style_likeness(printed, "sketch").max() < 0.3 and style_likeness(own, "print").max() < 0.3


def test_reference_pictures_tell_a_sketch_as_its_name_does():
    references, images = render(toy_references("sketch-102")[0]), render(drawn(5, "sketch-102"))
    by_name, by_picture = style_likeness(images, "sketch-102"), style_likeness(images, references)
    assert (by_name - by_picture).abs().mean() < 0.02 and by_name.mean() > 0.9
    assert style_likeness(render(drawn(5, "sketch-101")), references).mean() < 0.05


def test_the_base_draws_no_sketch_when_it_is_asked_for_one():
    prompts = merge_prompts(24, "sketch")
    noise = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    texts = [encode(load_text_encoder(), texts) for texts in (prompts, [""])]
    samples = toy_sample(load_unet(), *texts, noise, 2.0, 2.0, steps=10)
    assert style_scores(samples, "sketch")["form"].mean() < 0.05
    assert prompt_alignment(samples, prompts).mean() < 0.05


def test_prompts_name_no_place():
    assert len(set(merge_prompts(16, "sketch-3"))) == 6 and len(merge_prompts(16, "sketch-3")) == 16
    assert merge_prompts(8) == merge_prompts(8, "print-4") and "in print style" in merge_prompts(8)[0]
    assert all("in sketch style" in text and " at " not in text for text in style_prompts(12, "sketch"))
    made = drawn(6, "sketch")
    assert "in sketch style" in caption(made, 0) and caption(made, 0).count(",") == 1
    checks = obeyed(render(made)[:1], ["a toy at night, in sketch style"])
    assert checks["background"] == [None]


