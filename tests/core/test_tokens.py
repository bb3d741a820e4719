"""Learned tokens: specs, starts, norms, and the files they go into."""

import json

import pytest
import torch
from safetensors.torch import load_file

from dco_core.captions.markers import base_caption, class_prompt, mark_words, markers, split_at_markers
from dco_core.errors import DCOError
from dco_core.lora import (
    LoraLayer,
    LoraWeights,
    bundled,
    from_bundle,
    from_tensors,
    initializers_in,
    merge,
    read_lora,
    to_tensors,
    write_embedding,
    write_lora,
)
from dco_core.training.learned_tokens import (
    LearnedTokens,
    TokenSpec,
    initial_rows,
    random_rows,
    token_specs,
)

KEY = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"


def rows(n=2, width=768, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def test_markers_are_read_as_their_initializers():
    caption = "a <my_dog> and a < cat > on grass"
    assert markers(caption) == ["my_dog", "cat"]
    assert base_caption(caption) == "a my_dog and a cat on grass"
    assert base_caption(caption, {"my_dog": "dog"}) == "a dog and a cat on grass"
    assert base_caption("a <thing> on grass", {"thing": ""}) == "a on grass"
    assert split_at_markers("<a>b<c>") == [("a", True), ("b", False), ("c", True)]
    assert "".join(f"<{p}>" if m else p for p, m in split_at_markers("x <a> y")) == "x <a> y"
    assert class_prompt(["x", "an <otter> swims"]) == "a photo of an otter"
    assert class_prompt(["a <v1>"], {"v1": "dog"}) == "a photo of a dog"
    assert class_prompt(["a <unicorn> and <boots>"]) == "a photo of a unicorn"
    assert class_prompt(["<boots>"]) == "a photo of boots"
    assert class_prompt(["no marker"]) == ""


def test_every_marker_is_a_token_that_starts_from_its_own_words_or_the_given_ones():
    captions = ["a <dog> and a <sloth plush>", "a <dog>"]
    assert token_specs(captions) == [TokenSpec("dog", "dog"), TokenSpec("sloth plush", "sloth plush")]
    given = token_specs(captions, "<dog> = puppy, 3\n\nsloth plush=toy", vectors=2)
    assert given == [TokenSpec("dog", "puppy", 3), TokenSpec("sloth plush", "toy", 2)]
    assert token_specs(["<x>"], "<x> =") == [TokenSpec("x", "")]
    known = {"x": "star", "dog": "puppy"}
    assert token_specs(["<x> <dog>"], "<dog> = cat", 0, known) == [
        TokenSpec("x", "star"),
        TokenSpec("dog", "cat"),
    ]


@pytest.mark.parametrize(
    ("captions", "lines", "words"),
    [
        (["a dog"], "", "No caption has a marker"),
        (["a <dog>"], "dog", 'line "dog" is not understood'),
        (["a <dog>"], "<dog> = dog, many", "is not understood"),
        (["a <dog>"], "<dog> = dog\n<dog> = cat", "<dog> already exists"),
        (["a <dog>"], "<cat> = cat", "<cat> fits no caption: the markers are <dog>"),
    ],
)
def test_bad_token_lines_are_refused(captions, lines, words):
    with pytest.raises(DCOError, match=words):
        token_specs(captions, lines)


def test_rows_start_as_the_words_repeat_and_never_lose_one():
    words = rows(2, 4)
    assert torch.equal(initial_rows(words, TokenSpec("a", "b c"), "clip_l"), words)
    assert torch.equal(initial_rows(words, TokenSpec("a", "b c", 3), "clip_l"), words[[0, 1, 0]])
    with pytest.raises(DCOError, match='"b c" of <a> is 2 tokens in clip_l, not 1'):
        initial_rows(words, TokenSpec("a", "b c", 1), "clip_l")
    table = rows(500, 64) * 0.02
    drawn = random_rows(table, TokenSpec("a", "", 4), torch.Generator().manual_seed(0))
    assert drawn.shape == (4, 64) and drawn.std() == pytest.approx(0.02, rel=0.2)


def test_each_row_keeps_its_own_norm_and_fp32():
    tokens = LearnedTokens({"a": {"clip_l": rows(2, 8).half()}}, {"a": "b"})
    (parameter,) = tokens.parameters().values()
    assert parameter.dtype == torch.float32
    norms = parameter.detach().norm(dim=1)
    with torch.no_grad():
        parameter += torch.randn_like(parameter)
    tokens.keep_norms()
    torch.testing.assert_close(parameter.detach().norm(dim=1), norms)
    assert norms[0] != norms[1]


def test_rows_go_into_a_lora_file_and_come_back_through_merges_and_sockets(tmp_path):
    two = {"dog": {"clip_l": rows(), "clip_g": rows(2, 1280)}, "v1.2": {"clip_l": rows(1)}}
    assert from_bundle(bundled(two)).keys() == two.keys()
    layer = LoraLayer(torch.ones(2, 4), torch.ones(4, 2))
    header = {
        "dco.tokens": json.dumps({"dog": "puppy"}),
        "modelspec.trigger_phrase": "<dog>",
        "dco.w_rg": "3.0",
    }
    lora = LoraWeights({KEY: layer}, bundled(two), header)
    write_lora(tmp_path / "a.safetensors", lora)
    again = from_tensors(to_tensors(read_lora(tmp_path / "a.safetensors")))
    assert again.metadata == header
    assert torch.equal(from_bundle(again.other)["dog"]["clip_g"], two["dog"]["clip_g"])
    assert initializers_in(again.metadata, ["dog", "my_cat"]) == {"dog": "puppy", "my_cat": "my cat"}
    style = LoraWeights(
        {KEY: layer}, bundled({"ink": {"clip_l": rows(1)}}), {"dco.tokens": '{"ink": "print"}'}
    )
    merged = merge([again, style], [1.0, 0.5])
    assert set(from_bundle(merged.other)) == {"dog", "v1.2", "ink"}
    assert json.loads(merged.metadata["dco.tokens"]) == {"dog": "puppy", "ink": "print"}
    assert merged.metadata["modelspec.trigger_phrase"] == "<dog>"
    other = LoraWeights({KEY: layer}, bundled({"dog": {"clip_l": rows(seed=9)}}))
    with pytest.raises(DCOError, match="different learned tokens dog"):
        merge([again, other], [1.0, 1.0])


def test_tokens_alone_are_a_lora_without_layers(tmp_path):
    alone = LoraWeights({}, bundled({"dog": {"clip_l": rows()}}))
    write_lora(tmp_path / "a.safetensors", alone)
    assert read_lora(tmp_path / "a.safetensors").layers == {}


def test_an_embedding_file_holds_one_token_by_encoder(tmp_path):
    write_embedding(
        tmp_path / "dog.safetensors", {"clip_l": rows(), "clip_g": rows(2, 1280)}, {"dco.beta": "1.0"}
    )
    found = load_file(tmp_path / "dog.safetensors")
    assert {name: tuple(t.shape) for name, t in found.items()} == {"clip_l": (2, 768), "clip_g": (2, 1280)}
    with pytest.raises(DCOError, match="has no rows"):
        write_embedding(tmp_path / "no.safetensors", {})


@pytest.mark.parametrize(
    "header", [{}, {"dco.tokens": "not json"}, {"dco.tokens": "[1]"}, {"dco.tokens": '{"a": 1}'}]
)
def test_a_header_that_says_nothing_leaves_the_tokens_their_names(header):
    assert initializers_in(header, ["a"]) == {"a": "a"}


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("A photo of Dog on a dog bed", ["dog"], "A photo of <dog> on a dog bed"),
        ("a hotdog and a doghouse", ["dog"], "a hotdog and a doghouse"),
        ("a <dog> beside a dog", ["dog"], "a <dog> beside a dog"),
        ("a red bag, in c++ (v2) style", ["red bag", "c++ (v2)"], "a <red bag>, in <c++ (v2)> style"),
        ("a tree", ["dog"], "a tree"),
    ],
)
def test_the_first_mention_of_a_word_becomes_its_marker(text, names, expected):
    assert mark_words(text, names) == expected
