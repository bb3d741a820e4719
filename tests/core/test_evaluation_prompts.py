"""Evaluation prompts: the paper's Table 2, slots, and that the Toy World's can be checked."""

from __future__ import annotations

import pytest

from dco_core.captions.markers import markers
from dco_core.errors import DCOError
from dco_core.evidence.prompts import CATEGORIES, PROMPT_TYPES, evaluation_prompts, fill
from dco_core.toy_world.scorer import named
from dco_core.toy_world.tokenizer import UNKNOWN, tokenize
from dco_core.toy_world.world import FACTORS


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("kind", PROMPT_TYPES)
def test_each_kind_has_different_prompts_with_one_slot_for_each_thing(kind, category):
    templates = evaluation_prompts(kind, category)
    assert len(templates) >= 5 and len(set(templates)) == len(templates)
    for template in templates:
        assert template.count("{}") == 1 and template.count("{style}") == (kind == "merge"), template


def test_table_2_of_the_paper():
    both = [evaluation_prompts(kind, c) for c in CATEGORIES[:2] for kind in PROMPT_TYPES[:2]]
    assert [len(p) for p in both] == [7] * 4
    assert both[0][3] == "A photo of golden {}" and both[1][5] == "A {} in hygge style"
    assert both[2][2] == "A photo of {} in a wetsuit, surfing a giant wave in the ocean"
    assert both[3][6] == "A {} illustrated in an educational infographic style"


def test_the_prompts_are_copies():
    evaluation_prompts("style", "object").clear()
    assert evaluation_prompts("style", "object")


def test_other_spellings_are_read():
    assert evaluation_prompts("Customisation", "live_subject") == evaluation_prompts(
        "customization", "live subject"
    )


@pytest.mark.parametrize("kind", PROMPT_TYPES)
def test_the_toy_worlds_prompts_name_every_factor_in_words_it_knows(kind):
    for prompt in fill(evaluation_prompts(kind, "toy world"), "print" if kind == "style" else "toy", "print"):
        assert UNKNOWN not in tokenize([prompt]), prompt
        words = named(prompt)
        missing = set(FACTORS) - set(words) - {"colour"}
        assert not missing and all(len(found) == 1 for found in words.values()), prompt


def test_new_places_are_not_those_of_the_references():
    for kind in ("customization", "stylization"):
        assert not any("beach" in prompt for prompt in evaluation_prompts(kind, "toy world"))


def test_filling():
    assert fill(["A photo of {} on the beach", "A {} in sticker style"], "<dog>") == [
        "A photo of <dog> on the beach",
        "A <dog> in sticker style",
    ]
    assert fill(["A {} in {style} style", "a large {}"], "<alarm clock>", "<oil painting>") == [
        "An <alarm clock> in <oil painting> style",
        "a large <alarm clock>",
    ]
    assert fill(["A {} at sea"], "octopus") == ["An octopus at sea"]
    (prompt,) = fill(["a {} in {style} style"], "<toy>", "<print>")
    assert markers(prompt) == ["toy", "print"]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: evaluation_prompts("portrait", "object"), 'kind "portrait": use one of customization'),
        (lambda: evaluation_prompts("style", "plant"), 'category "plant": use one of object, live subject'),
        (lambda: fill(["a photo"], "dog"), '"a photo" has no slot'),
        (lambda: fill(["a {}"], " "), 'word for "a {}" is empty'),
        (lambda: fill(["a {}"], "<>"), 'word for "a {}" is empty'),
        (lambda: fill(["a {} in {style} style"], "dog"), 'style for "a dog in {style} style" is empty'),
    ],
)
def test_says_what_is_wrong(call, message):
    with pytest.raises(DCOError) as error:
        call()
    assert message in str(error.value)
