import torch

from dco_core.captions.markers import base_caption
from dco_core.network.lora_layers import AdapterConfig, add_adapter
from dco_core.toy_world import scorer
from dco_core.toy_world.model import ToyDenoiser, encode, load_text_encoder, load_unet
from dco_core.toy_world.renderer import render
from dco_core.toy_world.tokenizer import BEGIN, END, MAX_TOKENS, UNKNOWN, VOCABULARY, tokenize
from dco_core.toy_world.world import (
    FACTORS,
    PRINT,
    STYLE,
    SUBJECT,
    TOY,
    caption,
    sample_scenes,
    style_reference,
    subject_references,
    training_captions,
)
from dco_core.training.trainer import Example, TrainingConfig, evaluate, random_draws, train
from tests.toy_sampler import toy_sample


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_renders_are_in_range_and_depend_on_every_factor():
    scenes = sample_scenes(1, generator(3)).with_(
        shape=0, colour=4, size=1, position=0, background=2, style=0
    )
    image = render(scenes)
    assert image.shape == (1, 3, 32, 32)
    assert image.abs().max() <= 1.0001
    for factor in FACTORS:
        other = scenes.with_(**{factor: (getattr(scenes, factor) + 1) % len(FACTORS[factor])})
        if factor in ("size", "position"):
            other = other.with_(radius=5.0, centre=(22.0, 17.0))
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


def test_training_captions_leave_factors_out_and_are_sometimes_empty():
    scenes = sample_scenes(400, generator(2))
    texts = training_captions(scenes, generator(4))
    assert 20 < texts.count("") < 60
    assert sum(text.startswith("a photo of") for text in texts) > 60
    assert any("style" not in text for text in texts if text)


def test_references_carry_markers_that_the_base_caption_reads_as_words():
    scenes, captions = subject_references()
    assert len(scenes) == len(captions) == 4
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


def test_the_shipped_model_follows_prompts():
    prompts = [caption(s, i) for s in [sample_scenes(24, generator(7))] for i in range(24)]
    text_encoder = load_text_encoder()
    noise = torch.randn(24, 3, 32, 32, generator=generator(8))
    pictures = toy_sample(load_unet(), encode(text_encoder, prompts), encode(text_encoder, [""]), noise, 0.0)
    followed = scorer.factors_obeyed(pictures, prompts).mean()
    shuffled = scorer.factors_obeyed(pictures, prompts[1:] + prompts[:1]).mean()
    assert followed > 0.93
    assert shuffled < 0.6


def test_every_word_reaches_the_network_through_cross_attention():
    unet, text_encoder = load_unet("flow"), load_text_encoder()
    x, t = torch.randn(1, 3, 32, 32, generator=generator(9)), torch.tensor([0.8])
    plain = unet(x, t, encode(text_encoder, ["a large red star on the left, at night, in flat style"]))
    for other in (
        "a large blue star on the left, at night, in flat style",
        "a large red star on the left, at night",
    ):
        assert (unet(x, t, encode(text_encoder, [other])) - plain).abs().max() > 0.01


def test_guided_sampling_uses_the_lora_only_where_w_rg_asks():
    network, text_encoder = load_unet(), load_text_encoder()
    c, e = encode(text_encoder, ["a large toy on the left"]), encode(text_encoder, [""])
    noise = torch.randn(1, 3, 32, 32, generator=generator(5))
    base = toy_sample(network, c, e, noise, 0.0, steps=4)
    for parameter in add_adapter(network, AdapterConfig(rank=2)).values():
        parameter.data.normal_(std=0.1)
    assert torch.equal(toy_sample(network, c, e, noise, 0.0, steps=4), base)
    assert not torch.allclose(toy_sample(network, c, e, noise, 1.0, steps=4), base, atol=1e-3)


def test_dco_training_lowers_the_validation_loss_on_the_subject():
    scenes, captions = subject_references()
    conditioning = encode(load_text_encoder(), [base_caption(text) for text in captions])
    examples = [Example(x, c) for x, c in zip(render(scenes), conditioning, strict=True)]
    denoiser = ToyDenoiser(AdapterConfig(rank=4, layers="all linear"), base="flow")
    config = TrainingConfig(steps=20, batch_size=4, learning_rate=1e-3, beta=0.03)
    stream = random_draws(examples, 1000, TrainingConfig(batch_size=4, seed=99))
    validation_draws = [next(stream) for _ in range(6)]
    before = evaluate(denoiser, examples, config, validation_draws)
    train(denoiser, examples, config)
    assert evaluate(denoiser, examples, config, validation_draws) < before - 0.02
