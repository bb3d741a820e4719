import pytest
import torch

from dco_core.adapters import AdapterConfig, add_adapter
from dco_core.captions import base_caption
from dco_core.errors import DCOError
from dco_core.image_models import load_model
from dco_core.preview import sample as sample_denoiser
from dco_core.toy_world import scorer
from dco_core.toy_world.model import ToyDenoiser, encode, load_text_encoder, load_unet, sample, weights_file
from dco_core.toy_world.renderer import render
from dco_core.toy_world.tokenizer import BEGIN, END, MAX_TOKENS, UNKNOWN, VOCABULARY, caption_ids, tokenize
from dco_core.toy_world.unet import (
    BASES,
    SIGMA_DATA,
    UNet,
    _interleaved,
    _joined,
    bare_target,
    schedule_of,
)
from dco_core.toy_world.world import (
    FACTORS,
    PATTERNS,
    PRINT,
    STYLE,
    SUBJECT,
    TOY,
    caption,
    sample_scenes,
    style_reference,
    subject_references,
)
from dco_core.trainer import Example, TrainingConfig, evaluate, random_draws, train


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_renders_are_in_range_and_depend_on_every_factor():
    scenes = sample_scenes(1, generator(3)).with_(
        shape=0, colour=4, size=1, position=0, background=2, style=0
    )
    image = render(scenes)
    assert image.shape == (1, 3, 64, 64)
    assert image.abs().max() <= 1.0001
    for factor in FACTORS:
        other = scenes.with_(**{factor: (getattr(scenes, factor) + 1) % len(FACTORS[factor])})
        if factor in ("size", "position"):
            other = other.with_(radius=10.0, centre=(44.0, 34.0))
        assert (render(other) - image).abs().mean() > 0.005, factor


def test_base_training_never_shows_the_subject_or_the_style():
    scenes = sample_scenes(20000, generator())
    toys, prints = scenes.shape == TOY, scenes.style == PRINT
    body = (scenes.body_rgb - torch.tensor(SUBJECT["body_rgb"])).abs().amax(1)
    accent = (scenes.accent_rgb - torch.tensor(SUBJECT["accent_rgb"])).abs().amax(1)
    assert torch.maximum(body, accent)[toys].min() > 0.1
    ink = (scenes.ink_rgb - torch.tensor(STYLE["ink_rgb"])).abs().amax(1)
    paper = (scenes.paper_rgb - torch.tensor(STYLE["paper_rgb"])).abs().amax(1)
    assert torch.maximum(ink, paper)[prints].min() > 0.08


def test_captions_name_the_factors_and_read_back():
    scenes = sample_scenes(50, generator(1))
    for i in range(50):
        words = scorer.named(caption(scenes, i))
        assert words["background"] == [FACTORS["background"][scenes.background[i]]]
        assert words["style"] == [FACTORS["style"][scenes.style[i]]]
        assert UNKNOWN not in tokenize([caption(scenes, i)])


def test_prints_keep_the_objects_own_colours_on_patterned_paper():
    scenes = sample_scenes(9, generator(5)).with_(
        **SUBJECT, size=1, radius=16.0, centre=(32.0, 34.0), rotation=0.0
    )
    scenes = scenes.with_(background=0, pattern=torch.arange(9) % len(PATTERNS))
    flat, printed = (render(scenes.with_(style=style)) for style in (0, PRINT))
    middle = (slice(None), slice(None), 34, slice(23, 25))  # beside face and belly: the body alone
    body = torch.tensor(SUBJECT["body_rgb"]) * 2 - 1
    for images in (flat, printed):
        torch.testing.assert_close(images[middle].mean((0, 2)), body, atol=0.05, rtol=0)
    corner = (render(scenes.with_(style=PRINT, ink_rgb=(0.0, 0.0, 0.3), paper_rgb=(1.0, 0.9, 0.5))) + 1) / 2
    corner = corner[:, :, :16, :16]
    assert corner[:, 0].amax() > 0.9 and corner[:, 0].amin() < 0.4  # paper, and ink on it
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert (corner[one] - corner[other]).abs().mean() > 0.05


def test_ids_made_without_strings_are_those_of_the_captions():
    scenes, n = sample_scenes(300, generator(2)), 300
    chance = torch.rand(len(FACTORS) + 1, n, generator=generator(4))
    named = {factor: chance[i] < 0.7 for i, factor in enumerate(FACTORS)}
    photo = chance[-1] < 0.5
    texts = [
        caption(
            scenes, i, frozenset(f for f in FACTORS if not named[f][i]), "a photo of " if photo[i] else ""
        )
        for i in range(n)
    ]
    assert torch.equal(caption_ids(scenes, named, photo), tokenize(texts))
    assert len(set(texts)) > 250


def test_references_carry_markers_that_the_base_caption_reads_as_words():
    scenes, captions = subject_references()
    assert len(scenes) == len(captions) == 4
    assert len(set(captions)) == 1  # one place, size and style, as people's photographs have
    assert all("<toy>" in text and "on the beach" in text for text in captions)
    assert "<" not in base_caption(captions[0])
    assert "a large toy" in base_caption(captions[0])
    assert style_reference()[1][0].endswith("in <print> style")


def test_tokens_frame_cut_and_mark_unknown_words():
    ids = tokenize(["A large, RED star!", "a zebra", "star " * 40])
    assert ids.shape == (3, MAX_TOKENS)
    assert [VOCABULARY[i] for i in ids[0, :6]] == ["<begin>", "a", "large", "red", "star", "<end>"]
    assert ids[1, 2] == UNKNOWN
    assert ids[2, 0] == BEGIN
    assert ids[2, -1] == END


def test_the_bases_are_small_enough_to_ship_and_named_where_one_is_unknown():
    assert all(weights_file(base).stat().st_size < 11_000_000 for base in BASES)
    with pytest.raises(DCOError, match='no base "v": use epsilon or flow'):
        load_unet("v")
    with pytest.raises(DCOError, match='no base "sd": use epsilon or flow'):
        load_model("toy-world:sd")
    assert (
        load_model("toy-world").prediction == "epsilon" and load_model("toy-world:flow").prediction == "flow"
    )


@pytest.mark.parametrize("base", BASES)
def test_the_bare_target_is_what_makes_a_prediction_right(base):
    """A network that gives F exactly predicts epsilon, or the velocity, exactly."""
    x0 = render(sample_scenes(4, generator(6)))
    noise = torch.randn(x0.shape, generator=generator(7))
    schedule, t = schedule_of(base), torch.tensor([3, 200, 600, 990])
    alpha, sigma = schedule.at(t, x0)
    network = UNet(base)
    network.bare = lambda *_: bare_target(x0, noise, alpha, sigma)
    times = t if base == "epsilon" else schedule.sigma[t]
    predicted = network(schedule.noised(x0, noise, t), times, torch.zeros(4, 20, 128))
    torch.testing.assert_close(predicted, schedule.target(x0, noise, t), atol=1e-3, rtol=1e-3)
    assert bare_target(x0 / x0.std() * SIGMA_DATA, noise, alpha, sigma).std().item() == pytest.approx(
        1, abs=0.1
    )


def test_half_precision_leaves_the_noise_levels_alone():
    full, half = UNet("epsilon"), UNet("epsilon").to(torch.bfloat16)
    for own, cast in zip(full.levels(torch.arange(1000)), half.levels(torch.arange(1000)), strict=True):
        assert cast.dtype == torch.float32 and torch.equal(own, cast)


def test_the_epsilon_base_begins_from_noise_that_hides_even_the_mean_brightness():
    schedule = schedule_of("epsilon")
    told = (
        schedule.alpha[-1] / schedule.sigma[-1] * SIGMA_DATA * 64
    )  # standard deviations, of a mean over 64 x 64
    assert told < 0.7 and schedule.prediction == "epsilon" and len(schedule) == 1000


@pytest.mark.parametrize("base", BASES)
def test_the_shipped_models_follow_prompts_small_toys_too(base):
    drawn = sample_scenes(32, generator(7))
    drawn = drawn.with_(shape=torch.where(torch.arange(32) < 12, TOY, drawn.shape))
    prompts = [
        caption(drawn.with_(size=torch.where(torch.arange(32) < 12, 0, drawn.size)), i) for i in range(32)
    ]
    text_encoder = load_text_encoder(base)
    noise = torch.randn(32, 3, 64, 64, generator=generator(8))
    pictures = sample(load_unet(base), encode(text_encoder, prompts), encode(text_encoder, [""]), noise, 0.0)
    assert all("a small toy" in prompt for prompt in prompts[:12])
    assert scorer.prompt_alignment(pictures, prompts).mean() > 0.93
    assert scorer.factors_obeyed(pictures, prompts).mean() > 0.98
    assert scorer.prompt_alignment(pictures, prompts[1:] + prompts[:1]).mean() < 0.1


@pytest.mark.parametrize("base", BASES)
def test_the_worlds_sampler_and_that_of_previews_are_one(base):
    text_encoder = load_text_encoder(base)
    c, e = encode(text_encoder, ["a small toy at night"]), encode(text_encoder, [""])
    noise = torch.randn(1, 3, 64, 64, generator=generator(3))
    made = sample_denoiser(
        ToyDenoiser(None, base=base), c[0], None, e[0], noise, w_rg=0.0, w_text=2.0, steps=5
    )
    torch.testing.assert_close(made, sample(load_unet(base), c, e, noise, 0.0, steps=5))


@pytest.mark.parametrize("base", BASES)
def test_every_word_reaches_the_network_through_cross_attention(base):
    unet, text_encoder = load_unet(base), load_text_encoder(base)
    x = torch.randn(1, 3, 64, 64, generator=generator(9))
    t = torch.tensor([0.8]) if base == "flow" else torch.tensor([600])
    plain = unet(x, t, encode(text_encoder, ["a large red star on the left, at night, in flat style"]))
    for other in (
        "a large blue star on the left, at night, in flat style",
        "a large red star on the left, at night",
    ):
        assert (unet(x, t, encode(text_encoder, [other])) - plain).abs().max() > 0.01


@pytest.mark.parametrize("base", BASES)
def test_guided_sampling_uses_the_lora_only_where_w_rg_asks(base):
    network, text_encoder = load_unet(base), load_text_encoder(base)
    c, e = encode(text_encoder, ["a large toy on the left"]), encode(text_encoder, [""])
    noise = torch.randn(1, 3, 64, 64, generator=generator(5))
    plain = sample(network, c, e, noise, 0.0, steps=4)
    for parameter in add_adapter(network, AdapterConfig(rank=2)).values():
        parameter.data.normal_(std=0.1)
    assert torch.equal(sample(network, c, e, noise, 0.0, steps=4), plain)
    assert not torch.allclose(sample(network, c, e, noise, 1.0, steps=4), plain, atol=1e-3)


@pytest.mark.parametrize("base, beta", [("epsilon", 1.0), ("flow", 0.03)])
def test_dco_training_lowers_the_held_out_loss_on_the_subject(base, beta):
    scenes, captions = subject_references()
    conditioning = encode(load_text_encoder(base), [base_caption(text) for text in captions])
    examples = [Example(x, c) for x, c in zip(render(scenes), conditioning, strict=True)]
    denoiser = ToyDenoiser(AdapterConfig(rank=4, layers="all linear"), base=base)
    config = TrainingConfig(steps=20, batch_size=4, learning_rate=1e-3, beta=beta)
    stream = random_draws(examples, 1000, TrainingConfig(batch_size=4, seed=99))
    held_out = [next(stream) for _ in range(6)]
    before = evaluate(denoiser, examples, config, held_out)
    train(denoiser, examples, config)
    assert evaluate(denoiser, examples, config, held_out) < before - 0.02


def test_every_other_row_and_column_is_dilation_2():
    layer = torch.nn.Conv2d(5, 5, 3, padding=1)
    x = torch.randn(2, 5, 8, 12, generator=generator(1))
    expected = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=2, dilation=2)
    torch.testing.assert_close(_joined(layer(_interleaved(x))), expected)
