"""Caption drafts: answers as vision-language models give them become captions."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dco_core.captions.check import check_captions
from dco_core.captions.draft import CONCEPTS, clean_answer, instruction, plain_draft
from dco_core.captions.language import article, fix_article, mark_word
from dco_core.errors import DCOError

STYLE = "flat cartoon illustration"

# answer, caption; in the manner of the model named first
SUBJECT_ANSWERS = {
    "llava": (
        "The image features a small brown dog sitting on a ledge in front of a red wall. The dog is looking at the "
        "camera, and the photo is taken from a low angle.",
        "a small brown <dog> sitting on a ledge in front of a red wall. The dog is looking at the camera, and the "
        "photo is taken from a low angle",
    ),
    "llava transcript": (
        "USER: <image>\nDescribe the dog. ASSISTANT: The image shows a dog on a street in front of lush trees.</s>",
        "a <dog> on a street in front of lush trees",
    ),
    "qwen": (
        "A low-angle photo of a dog sitting on a stone ledge in front of blossom trees, macro style.<|im_end|>",
        "A low-angle photo of a <dog> sitting on a stone ledge in front of blossom trees, macro style",
    ),
    "qwen thinking": (
        "<think>\nThe user wants one sentence. A dog, a wall.\n</think>\n\nA dog lying on grass, side view, photo.",
        "A <dog> lying on grass, side view, photo",
    ),
    "qwen thought opened in the prompt": (
        "I should name the dog first.\n</think>\n\nClose-up photo of a dog on a sofa.",
        "Close-up photo of a <dog> on a sofa",
    ),
    "qwen template": (
        "<|im_start|>user\nDescribe the dog.<|im_end|>\n<|im_start|>assistant\nA dog on a beach, wide shot.<|im_end|>",
        "A <dog> on a beach, wide shot",
    ),
    "gemma": (
        'Sure! Here\'s a caption for the image:\n\n**"A fluffy dog sits on a wooden bench, close-up, photo."**\n\n'
        "Let me know if you'd like another one!",
        "A fluffy <dog> sits on a wooden bench, close-up, photo",
    ),
    "gemma template": (
        "<start_of_turn>model\nHere is a one-sentence caption (under 50 words):\n\nA dog in snow, eye-level photo."
        "<end_of_turn>",
        "A <dog> in snow, eye-level photo",
    ),
    "gemma options": (
        "Here are a few options:\n\n* **Option 1 (short):** A dog on a rug, top-down photo.\n* **Option 2:** A dog.",
        "A <dog> on a rug, top-down photo",
    ),
    "heading": (
        "## Caption\n\nCaption: a dog at the lake, from above",
        "a <dog> at the lake, from above",
    ),
    "bold title": ("**Image Description**\n\nA dog at the lake, from above", "A <dog> at the lake, from above"),
    "this is": ("This is a photo of a dog in a garden.", "a <dog> in a garden"),
    "this is a close-up": (
        "This is a close-up photo of a dog in a garden.",
        "a close-up photo of a <dog> in a garden",
    ),
    "curly quotes": ("\u201cA dog on a red chair, portrait.\u201d", "A <dog> on a red chair, portrait"),
    "quote and talk": (
        '"A dog on a red chair, portrait." This caption names the subject and the view.',
        "A <dog> on a red chair, portrait",
    ),
    "lines": ("- A dog on a chair,\n- side view,\n- photo", "A <dog> on a chair, side view, photo"),
    "marked already": ("a photo of a <dog> with a dog bowl", "a photo of a <dog> with a dog bowl"),
    "marked in capitals": ("a photo of a <Dog> on grass", "a photo of a <dog> on grass"),
    "another marker": ("a photo of a dog with a <cat>", "a photo of a <dog> with a cat"),
    "generic word": ("An animal sits on a bench, photo", "A <dog> sits on a bench, photo"),
    "plural only": ("Dogs on a bench, photo", "a photo of a <dog>, Dogs on a bench, photo"),
    "absent": ("A corgi on a bench, photo.", "a photo of a <dog>, A corgi on a bench, photo"),
    "role label": ("Assistant: A dog on a bench, photo", "A <dog> on a bench, photo"),
    "in the image": ("In this image, we can see a dog on a bench.", "a <dog> on a bench"),
}


@pytest.mark.parametrize(("answer", "caption"), SUBJECT_ANSWERS.values(), ids=SUBJECT_ANSWERS)
def test_the_answer_about_a_subject_becomes_a_caption(answer, caption):
    made = clean_answer(answer, "subject", "dog")
    assert made.count("<") == made.count("<dog>") == 1
    assert made == caption
    assert clean_answer(answer, "subject", "<dog>") == made


@pytest.mark.parametrize(("answer", "caption"), SUBJECT_ANSWERS.values(), ids=SUBJECT_ANSWERS)
def test_cleaning_a_caption_again_changes_nothing(answer, caption):
    made = clean_answer(answer, "subject", "dog")
    assert clean_answer(made, "subject", "dog") == made


@pytest.mark.parametrize(
    "answer",
    [
        "A person working on a laptop in flat cartoon illustration style.",
        "A person working on a laptop, rendered in a flat vector style.",
        "A person working on a laptop, in the style of modern flat design.",
        "A person working on a laptop",
        "Sure! The image shows A person working on a laptop in Flat Cartoon Illustration Style",
        "A person working on a laptop. The image is in a flat cartoon style.",
        "**Caption:** A person working on a laptop, in a minimalist illustration style",
    ],
)
@pytest.mark.parametrize("name", [STYLE, f"{STYLE} style", f"in {STYLE} style"])
def test_the_answer_about_a_style_ends_with_the_style_once(answer, name):
    made = clean_answer(answer, "style", name)
    assert made == "A person working on a laptop in flat cartoon illustration style"
    assert check_captions([made], kind="style") == []


def test_the_marker_of_a_style_is_kept_when_the_name_has_one():
    assert (
        clean_answer("A star on grass in print style.", "style", "<print>")
        == "A star on grass in <print> style"
    )
    assert plain_draft("style", "<print>").endswith("in <print> style")


def test_a_place_before_the_style_is_not_taken_for_the_style():
    made = clean_answer("A cat asleep in a basket in a kitchen in watercolor style.", "style", "watercolor")
    assert made == "A cat asleep in a basket in a kitchen in watercolor style"


@pytest.mark.parametrize("kind", CONCEPTS)
def test_a_long_answer_is_cut_at_a_sentence_or_comma_within_sixty_words(kind):
    sentence = "The dog sits on a wooden bench next to a pond with many ducks, which swim slowly. "
    made = clean_answer(sentence * 10, kind, "dog")
    assert len(made.split()) <= 60
    assert made.removesuffix(" in dog style").endswith("slowly")
    endless = clean_answer("word " * 500, kind, "dog")
    assert len(endless.split()) <= 60
    assert "<dog>" in endless if kind == "subject" else endless.endswith("in dog style")


def test_a_subject_that_is_named_late_is_marked_in_what_remains():
    made = clean_answer("trees and grass, " * 40 + "and a dog.", "subject", "dog")
    assert made.startswith("a photo of a <dog>, trees") and len(made.split()) <= 60


@pytest.mark.parametrize(
    ("name", "start"),
    [("otter", "a photo of an <otter>, "), ("unicorn toy", "a photo of a <unicorn toy>, "),
     ("hourglass", "a photo of an <hourglass>, "), ("boots", "a photo of <boots>, ")],
)  # fmt: skip
def test_the_article_fits_the_name(name, start):
    assert clean_answer("Near a wall.", "subject", name) == start + "Near a wall"


@pytest.mark.parametrize("kind", CONCEPTS)
@pytest.mark.parametrize(
    "answer", ["", "  \n", "...", "<think>hm</think>", "<think>never closed", "Sure!", '""']
)
def test_an_empty_answer_is_refused_with_a_remedy(kind, answer):
    with pytest.raises(DCOError, match="type a caption"):
        clean_answer(answer, kind, "dog")


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, I can\u2019t help.",
        "I cannot see any image.",
    ],
)
def test_a_model_that_declines_is_not_taken_for_a_caption(answer):
    with pytest.raises(DCOError, match="declined.*type a caption"):
        clean_answer(answer, "subject", "dog")


def test_an_answer_that_names_the_style_only_is_refused():
    with pytest.raises(DCOError, match="names the style only"):
        clean_answer("In flat cartoon style.", "style", STYLE)


@pytest.mark.parametrize("name", ["", "  ", "<>", "< >"])
@pytest.mark.parametrize("kind", CONCEPTS)
def test_an_empty_name_is_refused(kind, name):
    for make in (
        lambda: instruction(kind, name),
        lambda: plain_draft(kind, name),
        lambda: clean_answer("a", kind, name),
    ):
        with pytest.raises(DCOError, match="name of the .* is empty"):
            make()


def test_an_unknown_kind_is_refused():
    for make in (
        lambda: instruction("pet", "x"),
        lambda: plain_draft("pet", "x"),
        lambda: clean_answer("a", "pet", "x"),
    ):
        with pytest.raises(DCOError, match="'pet' is unknown"):
            make()


def test_the_instruction_names_the_subject_in_plain_words_and_asks_for_all_parts():
    text = instruction("subject", "<dog>")
    assert '"dog"' in text and "<" not in text
    for word in (
        "one sentence",
        "50 words",
        "pose",
        "background",
        "camera angle",
        "framing",
        "style",
        "mood",
        "list",
    ):
        assert word in text


@pytest.mark.parametrize("name", [STYLE, f"<{STYLE}>", f"{STYLE} style"])
def test_the_instruction_for_a_style_asks_to_end_with_it(name):
    text = instruction("style", name)
    assert '"in flat cartoon illustration style"' in text and "brush" in text


def test_the_plain_draft_is_to_be_filled_in():
    assert plain_draft("subject", "dog") == "a photo of a <dog> [doing what, where], [view], [style]"
    for kind in CONCEPTS:
        notes = check_captions([plain_draft(kind, "otter")], kind=kind)
        assert [note.rule for note in notes] == ["compact"] and "filled in" in notes[0].advice


def test_a_word_is_marked_once_outside_of_brackets():
    assert mark_word("<dog bed> [dog] hot-dog Dog dog", "dog") == "<dog bed> [dog] hot-dog <dog> dog"
    assert mark_word("a red  fox", "red fox") == "a <red fox>"
    assert mark_word("dogs", "dog") == "dogs"
    assert mark_word("a (c++) b", "c++") == "a (<c++>) b"


def test_articles():
    assert [article(w) for w in ("dog", "otter", "hour", "uniform", "boots", "glass", "bus")] == [
        "a", "an", "an", "a", "", "a", "a"
    ]  # fmt: skip
    assert fix_article("An ", "dog") == "A " and fix_article("than ", "dog") == "than "


NOISE = st.sampled_from(
    [*"<think> </think> <dog> dog < > ** * # - \" ' Sure! animal in style <s> [INST] \\1 \n \U0001f436 \0 .".split(" "),
     "The image shows", "Here is a caption:", "in the style of x", "assistant:", "in flat style", "Let me know"]
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(
    st.lists(NOISE, max_size=12).map(" ".join) | st.text(max_size=80),
    st.sampled_from(CONCEPTS),
    st.sampled_from(["dog", "<dog>", "flat style", "image", "s", "\\1", "a(b", "[V]"]) | st.text(max_size=8),
)
def test_any_answer_becomes_a_caption_or_an_error_with_a_remedy(answer, kind, name):
    try:
        made = clean_answer(answer, kind, name)
    except DCOError as error:
        assert "type" in str(error)
        return
    assert made == " ".join(made.split())
    plain = " ".join(name.replace("<", " ").replace(">", " ").split())
    if kind == "subject":
        assert made.count("<") == 1 and f"<{plain}>" in made
    assert isinstance(plain_draft(kind, name) + instruction(kind, name), str)


@pytest.mark.parametrize(
    "text",
    ["a" * 10_000, "_" * 9_999 + "a", "in " * 3_400, "<think>" * 1_400, "." * 10_000, ",; " * 3_400, " " * 9_999 + "a",
     "* " * 5_000, "<" * 10_000, '"' * 10_000, "in a a a " * 1_200, "Here is " * 1_200, "\n" * 9_999 + "a"],
    ids=lambda text: text[:8].strip() or "blank",
)  # fmt: skip
def test_ten_thousand_characters_are_cleaned_in_seconds(text):
    start = time.perf_counter()
    for kind in CONCEPTS:
        try:
            clean_answer(text, kind, "dog")
        except DCOError:
            pass
    assert time.perf_counter() - start < 20
