"""The Toy World's scorers must be right about renders before they may judge samples."""

from __future__ import annotations

import time

import pytest
import torch

from dco_core.errors import DCOError
from dco_core.evidence.prompts import evaluation_prompts, fill
from dco_core.evidence.toy_prompts import own_likeness, subject_prompts, true_renders
from dco_core.toy_world import scorer
from dco_core.toy_world.model import encode, load_text_encoder, load_unet
from dco_core.toy_world.references import toy_references, write_toy_references
from dco_core.toy_world.renderer import render
from dco_core.toy_world.scorer import (
    factors_obeyed,
    obeyed,
    prompt_alignment,
    read,
    style_likeness,
    style_scores,
    subject_likeness,
)
from dco_core.toy_world.scorer_network import WEIGHTS
from dco_core.toy_world.world import (
    BACKGROUNDS,
    EAR_SHAPES,
    FACTORS,
    PRINT,
    SHAPES,
    STYLE,
    STYLES,
    SUBJECT,
    TOY,
    caption,
    mark,
    sample_scenes,
    style_reference,
    subject_references,
)
from tests.toy_sampler import toy_sample

N = 300
FLAT = STYLES.index("flat")


def scenes(seed: int):
    """Scenes from a generator that training has not used; nothing is held out."""
    return sample_scenes(N, torch.Generator().manual_seed(500_000_000 + seed), hold_out=False)


def grainy(images: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(7))
    return torch.nn.functional.avg_pool2d(images, 3, 1, 1) * 0.4 + images * 0.6 + 0.08 * noise


def auc(same: torch.Tensor, other: torch.Tensor) -> float:
    return (same[:, None] > other[None]).float().mean().item()


@pytest.mark.parametrize("spoil", [torch.clone, grainy], ids=["clean", "grainy"])
@pytest.mark.parametrize("factor", FACTORS)
def test_reads_every_factor_of_held_out_renders(factor, spoil):
    drawn = scenes(1)
    rows = read(spoil(render(drawn)))
    right = [
        row[factor] == FACTORS[factor][getattr(drawn, factor)[i]]
        for i, row in enumerate(rows)
        if factor != "colour" or (drawn.shape[i] != TOY and drawn.style[i] != PRINT)
    ]
    assert sum(right) / len(right) >= (0.93 if factor == "shape" else 0.95)


@pytest.mark.parametrize("held_out", [SUBJECT, STYLE], ids=["subject", "style"])
def test_reads_what_base_training_never_shows(held_out):
    drawn = scenes(2).with_(**held_out)
    prompts = [caption(drawn, i) for i in range(N)]
    assert prompt_alignment(render(drawn), prompts).mean() > 0.95 < factors_obeyed(render(drawn), prompts).mean()


def test_reads_the_attributes_of_a_toy_and_of_a_print():
    toy = read(render(subject_references()[0]))[1]
    assert toy["colour"] is None and toy["ears"] == "round" and "ink_rgb" not in toy
    assert toy["body_rgb"] == pytest.approx(SUBJECT["body_rgb"], abs=0.2)
    assert toy["accent_rgb"] == pytest.approx(SUBJECT["accent_rgb"], abs=0.2)
    (printed,) = read(render(style_reference()[0]))
    assert printed["colour"] is None and "body_rgb" not in printed
    assert printed["ink_rgb"] == pytest.approx(STYLE["ink_rgb"], abs=0.15)
    assert printed["paper_rgb"] == pytest.approx(STYLE["paper_rgb"], abs=0.15)


@pytest.mark.parametrize("style", [s for s in STYLES if s != "print"])
def test_subject_likeness_separates_the_subject_from_other_toys(style):
    drawn = scenes(3).with_(style=STYLES.index(style))
    same = subject_likeness(render(drawn.with_(**SUBJECT)), "toy")
    other = subject_likeness(render(drawn.with_(shape=TOY)), "toy")
    assert same.mean() > 0.9 and other.mean() < 0.07 and auc(same, other) > 0.98


WRONG = {
    "nothing": ({}, 0.9, 1.0),
    "ears a little smaller": ({"ear_size": 0.4}, 0.88, 1.0),
    "small ears": ({"ear_size": 0.3}, 0.7, 0.88),
    "pointed ears": ({"ears": EAR_SHAPES.index("pointed")}, 0.3, 0.5),
    "other ears and belly": ({"accent_rgb": (0.1, 0.3, 0.9)}, 0.2, 0.4),
    "blue": ({"body_rgb": (0.1, 0.3, 0.9)}, 0.0, 0.1),
    "red": ({"body_rgb": (0.8, 0.1, 0.1)}, 0.0, 0.1),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_person_would_tell_a_toy_by_costs_most(wrong):
    changes, least, most = WRONG[wrong]
    drawn = scenes(13).with_(**SUBJECT, style=FLAT).with_(**changes)
    assert least <= subject_likeness(render(drawn), "toy").mean() <= most


@pytest.mark.parametrize("what", ["toy", "toy-31", "toy-37"])
def test_true_renders_of_prompts_reach_the_ceiling(what):
    assert own_likeness(what) >= 0.9
    prompts = [text for _, text in subject_prompts(16)]
    assert prompt_alignment(true_renders(prompts, what, None, 3), prompts).mean() > 0.9


def test_reference_pictures_tell_a_subject_nearly_as_its_name_does():
    drawn = render(scenes(14).with_(**SUBJECT, style=FLAT))
    by_name, by_picture = (subject_likeness(drawn, what) for what in ("toy", render(subject_references()[0])))
    assert (by_name - by_picture).abs().mean() < 0.07


def test_references_by_number_have_one_place_size_and_style(tmp_path):
    scenes_of, captions = toy_references("toy-101")
    assert len(set(captions)) == 1 and len(scenes_of) == 4
    assert (render(scenes_of)[0] - render(scenes_of)[1]).abs().mean() > 0.01
    folder = write_toy_references(tmp_path / "toy-101", "toy-101")
    assert sorted(path.name for path in folder.iterdir()) == [f"{i}.{e}" for i in range(4) for e in ("png", "txt")]
    for unknown in ("dog", "toy-x", "prints-1"):
        with pytest.raises(DCOError, match=unknown):
            toy_references(unknown)
        with pytest.raises(DCOError, match=unknown):
            subject_likeness(render(scenes_of), unknown)


def test_other_objects_have_no_subject_likeness():
    drawn = scenes(4)
    likeness = subject_likeness(render(drawn[drawn.shape != TOY]), "toy")
    assert likeness.mean() < 0.02


def test_in_prints_the_subject_is_known_by_its_form_alone():
    drawn = scenes(5).with_(**STYLE)
    same = subject_likeness(render(drawn.with_(**SUBJECT)), "toy")
    ears = subject_likeness(render(drawn.with_(**SUBJECT).with_(ears=EAR_SHAPES.index("none"))), "toy")
    red = subject_likeness(render(drawn.with_(**SUBJECT).with_(body_rgb=(0.8, 0.1, 0.1))), "toy")
    assert same.mean() > 0.9 and ears.mean() < 0.5 and (red - same).abs().mean() < 0.1


def test_style_likeness_separates_the_style_from_other_prints_and_styles():
    drawn = scenes(6)
    same = style_likeness(render(drawn.with_(**STYLE)), "print")
    prints = style_likeness(render(drawn.with_(style=PRINT)), "print")
    rest = style_likeness(render(drawn[drawn.style != PRINT]), "print")
    assert same.mean() > 0.9 and prints.mean() < 0.15 and rest.mean() < 0.02 and auc(same, prints) > 0.97


def test_colour_and_form_of_a_style_are_scored_apart():
    drawn = scenes(15).with_(**STYLE)
    own = style_scores(render(drawn), "print")
    assert own["colour"].mean() > 0.9 < own["form"].mean()
    green = style_scores(render(drawn.with_(ink_rgb=(0.05, 0.4, 0.1), paper_rgb=(0.7, 0.9, 1.0))), "print")
    assert green["colour"].mean() < 0.05 and green["form"].mean() > 0.9
    flat = style_scores(render(drawn.with_(style=FLAT)), "print")
    assert flat["colour"].mean() < 0.02 > flat["form"].mean()


def test_likeness_falls_as_the_subject_is_repainted():
    drawn = scenes(7).with_(**SUBJECT, style=FLAT)
    body = torch.tensor(SUBJECT["body_rgb"])
    steps = [torch.lerp(body, torch.tensor([0.8, 0.1, 0.6]), amount) for amount in (0.0, 0.35, 0.7, 1.0)]
    means = [subject_likeness(render(drawn.with_(body_rgb=rgb)), "toy").mean() for rgb in steps]
    assert means == sorted(means, reverse=True) and means[0] - means[-1] > 0.7


def test_a_copied_reference_has_likeness_without_alignment_and_another_object_the_reverse():
    references, captions = subject_references()
    elsewhere = references.with_(background=BACKGROUNDS.index("at night"))
    prompts = [mark(caption(elsewhere, i), "toy") for i in range(4)]
    copies = render(references)
    assert subject_likeness(copies, "toy").mean() > 0.85
    assert obeyed(copies, prompts)["background"] == [False] * 4
    assert prompt_alignment(copies, captions).min() == 1
    assert prompt_alignment(copies, prompts).max() == 0 and 0.5 < factors_obeyed(copies, prompts).max() < 1
    asked = ["a star at night, in neon style"] * 4
    stars = references.with_(
        shape=SHAPES.index("star"), background=BACKGROUNDS.index("at night"), style=STYLES.index("neon")
    )
    assert subject_likeness(render(stars), "toy").max() < 0.05
    assert prompt_alignment(render(stars), asked).min() == 1 and prompt_alignment(copies, asked).max() == 0


KINDS = {"customization": "subject", "stylization": "subject", "style": "style"}


@pytest.fixture(scope="module")
def base_samples():
    """{kind: (prompts, samples of the base model)} for the Toy World's evaluation prompts."""
    unet, text_encoder = load_unet(), load_text_encoder()
    found = {}
    for kind, what in KINDS.items():
        prompts = fill(evaluation_prompts(kind, "toy world"), "print" if what == "style" else "toy") * 2
        noise = torch.randn(len(prompts), 3, 32, 32, generator=torch.Generator().manual_seed(6))
        texts = [encode(text_encoder, texts) for texts in (prompts, [""])]
        found[kind] = prompts, toy_sample(unet, *texts, noise, 2.0, 2.0, steps=12)
    return found


def scored(kind, images, prompts):
    """Likeness and the share of factors obeyed, [B] each."""
    if KINDS[kind] == "style":
        return style_likeness(images, "print"), factors_obeyed(images, prompts)
    return subject_likeness(images, "toy"), factors_obeyed(images, prompts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_model_has_alignment_without_likeness_and_copies_have_the_reverse(kind, base_samples):
    prompts, samples = base_samples[kind]
    likeness, alignment = scored(kind, samples, prompts)
    assert likeness.mean() < 0.1 and alignment.mean() > 0.9
    references = render((style_reference if KINDS[kind] == "style" else subject_references)()[0])
    copies = references[torch.arange(len(prompts)) % len(references)]
    copied, disobeyed = scored(kind, copies, prompts)
    assert copied.mean() > 0.85 and disobeyed.mean() < 0.65 and disobeyed.max() < 1
    assert copied.min() > likeness.max() and disobeyed.mean() < alignment.mean() - 0.3


@pytest.mark.parametrize("strength", [0.3, 0.5, 1.0, 2.0])
def test_noise_scores_nothing(strength):
    noise = strength * torch.randn(300, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    asked = ["a large <toy> on the left, at night, in <print> style"] * 300
    for score in scored("customization", noise, asked) + scored("style", noise, asked):
        assert score.mean() < 0.05 and score.max() < 0.5


def test_the_references_in_pieces_or_out_of_colour_are_not_the_subject():
    references = render(subject_references()[0])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    tiles = (
        references.reshape(4, 3, 8, 4, 8, 4).permute(0, 1, 2, 4, 3, 5).reshape(4, 3, 64, 4, 4)[:, :, order]
    )
    pieces = tiles.reshape(4, 3, 8, 8, 4, 4).permute(0, 1, 2, 4, 3, 5).reshape(4, 3, 32, 32)
    large = [0, 1, 3]  # of the small one, spoilt as no picture is that the network has seen, it may read anything
    for images in (pieces, references.flip(1), -references, references.flip(2), torch.zeros_like(references)):
        found = subject_likeness(images, "toy")
        assert found[large].max() < 0.5 and found.mean() < 0.4


def test_pictures_are_not_taken_for_noise():
    drawn = scenes(9)
    assert scorer._is_picture(render(drawn)).min() == 1 == scorer._is_picture(grainy(render(drawn))).min()


def test_prompts_are_read_by_their_phrases():
    assert scorer.named("A photo of a small red Star on the left, at night, in neon style") == {
        "shape": ["star"], "colour": ["red"], "size": ["small"], "position": ["on the left"],
        "background": ["at night"], "style": ["neon"],
    }  # fmt: skip
    assert scorer.named("a <toy> in the sky") == {"shape": ["toy"], "background": ["in the sky"]}
    assert scorer.named("a red <toy> in <print> style") == {"shape": ["toy"], "style": ["print"]}
    assert scorer.named("a blue heart, in print style") == {"shape": ["heart"], "style": ["print"]}
    assert scorer.named("a thing") == {}


def test_factors_that_the_prompt_leaves_open_are_not_judged():
    checks = obeyed(render(style_reference()[0]), ["a star in <print> style"])
    assert checks == {
        "shape": [True], "colour": [None], "size": [None], "position": [None],
        "background": [None], "style": [True],
    }  # fmt: skip


def test_says_what_cannot_be_scored():
    image = render(style_reference()[0])
    with pytest.raises(DCOError, match="names nothing"):
        prompt_alignment(image, ["a thing"])
    with pytest.raises(DCOError, match="1 images have 2 prompts"):
        prompt_alignment(image, ["a star", "a star"])
    with pytest.raises(DCOError, match=r"\[1, 4, 32, 32\]"):
        read(torch.zeros(1, 4, 32, 32))


def test_the_weights_are_small_and_scoring_is_quick():
    assert WEIGHTS.stat().st_size < 1_000_000
    images = render(scenes(8)[:200])
    subject_likeness(images[:2], "toy")
    started = time.process_time()
    subject_likeness(images, "toy")
    assert time.process_time() - started < 2
