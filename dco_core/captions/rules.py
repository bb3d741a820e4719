"""The rules of the caption check: RULES is the table of all that is looked for, each with a small function and its
advice. A new rule is a row and a function; words.py holds the (English) words, rewrite.py makes the suggestions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from . import rewrite
from .draft import plain_draft
from .language import (
    BRACKETS,
    MARKER,
    MEDIUM,
    STYLE,
    STYLE_PHRASE,
    VIEW,
    after_lead,
    has_place,
    quoted,
    rare_spans,
)
from .rewrite import plain_text


class Case(NamedTuple):
    """A caption as the rules see it."""

    text: str
    better: str  # with what was found so far mended: the suggestions of one caption build on each other
    image: int
    kind: str  # "subject" or "style"
    subject: str  # the word to mark, "" where none can be told
    shared: bool  # whether other captions mark that word
    earlier: Mapping[str, int]  # captions of earlier images, caseless: the first image of each
    count_tokens: Callable[[str], int] | None
    max_tokens: int


# what the advice names, and the suggestion
Finding = tuple[dict[str, object], str]


class Rule(NamedTuple):
    name: str
    find: Callable[[Case], Finding | None]
    advice: str


MARKER_FAULTS = (  # in a caption whose good markers are taken for the letter x
    (r"<[^<>\w]*>", "has an empty marker"),
    (r"<[^<>]*>", "has a marker within a marker"),
    (r"<", "opens a marker with < and does not close it"),
    (r">", "closes a marker with > that was not opened"),
)
PARTS = (  # what a caption of a subject describes: its name, the place to fill in, how it is told
    ("the background", "[where is it?]", has_place),
    ("the view", "[view]", VIEW.search),
    ("the style", "[style]", STYLE.search),
)


def empty(case: Case) -> Finding | None:
    draft = plain_draft("subject", case.subject) if case.shared else ""
    return None if case.text else ({}, draft)


def broken_marker(case: Case) -> Finding | None:
    rest = MARKER.sub("x", case.text)
    fault = next((fault for pattern, fault in MARKER_FAULTS if re.search(pattern, rest)), "")
    if not fault:
        return None
    names = rewrite.half_marked(case.text) or [name for name in [case.subject] if name]
    whole = rewrite.with_markers(rewrite.without_brackets(case.text), names)
    return {"fault": fault, "name": names[0] if names else "dog"}, whole


def no_marker(case: Case) -> Finding | None:
    if not is_unmarked(case) or not case.subject:
        return None
    reason = "as other captions do" if case.shared else "if that is what is to be learned"
    return {"subject": case.subject, "reason": reason}, rewrite.with_markers(case.better, [case.subject])


def rare_token(case: Case) -> Finding | None:
    if not rare_spans(case.text):
        return None
    text = case.better if rare_spans(case.better) else case.text  # mending <<V>> can hide the identifier
    token, noun, suggestion = rewrite.without_identifiers(text, case.kind, case.subject)
    remedy = f"write the plain word <{noun}> instead" if noun else "use plain words instead"
    return {"token": quoted(token), "remedy": remedy}, suggestion


def to_fill_in(case: Case) -> Finding | None:
    blank = BRACKETS.search(plain_text(case.text))
    return ({"blank": quoted(blank[0])}, "") if blank else None


def bare_subject(case: Case) -> Finding | None:
    if case.kind != "subject" or not _is_english(case.text):
        return None
    missing = [(name, blank) for name, blank, is_in in PARTS if not is_in(plain_text(case.text))]
    if not missing or (len(missing) == 1 and missing[0][0] != "the background"):
        return None  # the view or the style is enough
    names, blanks = zip(*missing, strict=True)
    listed = " and ".join(", ".join(names).rsplit(", ", 1))
    return {"missing": listed}, ", ".join([case.better.rstrip(" ,.;"), *blanks])


def bare_style(case: Case) -> Finding | None:
    if case.kind != "style" or not _is_english(case.text):
        return None
    plain = plain_text(case.text)
    phrase = STYLE_PHRASE.search(plain)
    named = bool(phrase or MEDIUM.search(plain))
    body = plain.replace(phrase[0], " ") if phrase else re.sub(r"(?<![^,])[^,]*\bstyle\b", " ", plain)
    body = MEDIUM.sub(" ", body[after_lead(body) :])
    described = len([w for w in re.findall(r"[\w'-]+", body) if w.lower() not in ("a", "an", "the", "of", "in")])
    if named and described >= 3:
        return None
    faults = ["does not name the style"] * (not named)
    suggestion = case.better.rstrip(" ,.;") + " in [name of the style] style" * (not named)
    if described < 3:
        faults.append("hardly describes what the image shows")
        suggestion = rewrite.before_style(suggestion, "[who or what, doing what, where]")
    return {"faults": " and ".join(faults)}, suggestion


def too_long(case: Case) -> Finding | None:
    if case.count_tokens is None or (tokens := case.count_tokens(case.text)) <= case.max_tokens:
        return None
    short = rewrite.shortened(case.better, case.count_tokens, case.max_tokens)
    return {"tokens": tokens, "most": case.max_tokens}, short


def duplicate(case: Case) -> Finding | None:
    first = case.earlier.get(case.text.casefold())
    if first is None or to_fill_in(case):  # a form to fill in is the same for all pictures
        return None
    blank = f"[what differs in image {case.image + 1}]"
    return {"first": first + 1}, rewrite.before_style(case.better.rstrip(" ,.;"), blank, ",")


def is_unmarked(case: Case) -> bool:
    # a rare token's note already says what to mark
    return case.kind == "subject" and not set("<>") & set(case.text) and not rare_spans(case.text)


def _is_english(text: str) -> bool:
    """Whether the word lists can tell anything about the text: not where most letters are of another script."""
    letters = [c for c in text if c.isalpha()]
    return 2 * sum(c.isascii() for c in letters) >= len(letters)


# Of the rules of one name the first that finds something speaks. An empty caption is told nothing else.
RULES = (
    Rule("empty", empty, "The caption is empty: describe the image."),
    Rule("missing-marker", broken_marker,
         "It {fault}: write one marker with its word inside, such as <{name}>."),
    Rule("missing-marker", no_marker, "It marks nothing: mark <{subject}> {reason}."),
    Rule("rare-token", rare_token,
         "{token} is an identifier that the model reads with a meaning of its own: {remedy}."),
    Rule("too-long", too_long, "It has {tokens} tokens and the model reads {most}: shorten it."),
    Rule("compact", to_fill_in, "{blank} is still to be filled in: write what the image shows."),
    Rule("compact", bare_subject,
         "It does not describe {missing}: add it, or it is learned with the subject."),
    Rule("compact", bare_style, "It {faults}: add it, to tell the style from what is shown."),
    Rule("duplicate", duplicate, "It is the same caption as image {first}: say what differs in this one."),
)  # fmt: skip
