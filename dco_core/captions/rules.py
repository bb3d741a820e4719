"""The rules of the caption check: RULES is the table of all that is looked for, each with a small function and its
advice. A new rule is a row and a function; words.py holds the (English) words, language.py what is made of them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from . import language
from .draft import plain_draft
from .language import (
    MARKER,
    STYLE_PHRASE,
    after_lead,
    good_markers,
    mark_word,
    plain_text,
    quoted,
    rare_spans,
)


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


Finding = tuple[dict[str, Any], str]  # what the advice names, and the suggestion
MARKER_FAULTS = (  # in a caption whose good markers are taken for the letter x
    (r"<[^<>\w]*>", "has an empty marker"),
    (r"<[^<>]*>", "has a marker within a marker"),
    (r"<", "opens a marker with < and does not close it"),
    (r">", "closes a marker with > that was not opened"),
)
PARTS = (  # what a caption of a subject describes: its name, the place to fill in, how it is told
    ("the background", "[where is it?]", language.has_place),
    ("the view", "[view]", language.VIEW.search),
    ("the style", "[style]", language.STYLE.search),
)


def empty(case: Case) -> Finding | None:
    return None if case.text else ({}, plain_draft("subject", case.subject) if case.shared else "")


def broken_marker(case: Case) -> Finding | None:
    rest = MARKER.sub("x", case.text)
    fault = next((fault for pattern, fault in MARKER_FAULTS if re.search(pattern, rest)), "")
    if not fault:
        return None
    # what is marked well, or the word beside a lone bracket
    half = re.search(r"(?<=<)\s*[^\W\d_][\w'-]*|\b[^\W\d_][\w'-]*(?=\s*>)", case.text)
    guesses = [half[0].strip() if half and not rare_spans(half[0]) else "", case.subject]
    names = good_markers(case.text) or list(filter(None, guesses))[:1]
    bare = language.tidy(re.sub(r"[<>]", "", re.sub(MARKER_FAULTS[0][0], " ", case.text)))
    return {"fault": fault, "name": names[0] if names else "dog"}, _with_markers(bare, names)


def no_marker(case: Case) -> Finding | None:
    if not is_unmarked(case) or not case.subject:
        return None
    reason = "as other captions do" if case.shared else "if that is what is to be learned"
    return {"subject": case.subject, "reason": reason}, _with_markers(case.better, [case.subject])


def rare_token(case: Case) -> Finding | None:
    """The suggestion has the word that stands beside the identifier in its place, or that of the other captions."""
    if not rare_spans(case.text):
        return None
    text = case.better if rare_spans(case.better) else case.text  # mending <<V>> can hide the identifier
    (start, end), *others = rare_spans(text)
    better, noun = language.without(text, rare_spans(text)), ""
    if case.kind == "style":
        better = re.sub(r"\bin(?: the| a)? style\b", "in [name of the style] style", better, flags=re.IGNORECASE)
    elif marked := MARKER.search(better):
        noun = marked[1]
        better = re.sub(r"\ban? (?=<)", lambda an: language.fix_article(an[0], noun), better)
    else:
        after = language.without(text[end:], [(a - end, b - end) for a, b in others])
        follows = language.head_noun(after) if text[end : end + 1] == " " else ""
        noun = follows or case.subject
        if noun and mark_word(better, noun) == better:
            after, follows = f"<{noun}> {after}", noun
        better = mark_word(_joined(text[:start].rstrip(), after, noun) if follows else better, noun)
        better = language.tidy(better) if MARKER.search(better) else ""
    remedy = f"write the plain word <{noun}> instead" if noun else "use plain words instead"
    return {"token": quoted(text[start:end]), "remedy": remedy}, better


def too_long(case: Case) -> Finding | None:
    """The suggestion ends at a comma or else a word, and keeps all markers and the style that ends the caption."""
    count, most, text = case.count_tokens, case.max_tokens, case.better
    if count is None or (tokens := count(case.text)) <= most:
        return None
    found: dict[str, object] = {"tokens": tokens, "most": most}
    if count(text) <= most:  # other rules have shortened it enough
        return found, text
    ends = [match for match in STYLE_PHRASE.finditer(text) if match.end() >= len(text.rstrip(" ."))]
    tail = f", {ends[-1][0]}" if ends else ""
    words = (text[: ends[-1].start()] if ends else text).split()

    def beginning(length: int) -> str:
        kept = words[:length]
        while kept and kept[-1].strip(",;.").lower() in language.STOP:
            kept.pop()
        start = " ".join(kept).rstrip(" ,;.")
        return start and start + tail

    # counting each beginning would be slow for a long text
    fits = bisect_right(range(1, len(words) + 1), most, key=lambda length: count(beginning(length)))
    commas = [n for n in range(fits, fits // 2, -1) if words[n - 1].endswith((",", ";", "."))]
    for short in map(beginning, (*commas[:1], fits)):
        if count(short) <= most and set(good_markers(short)) == set(good_markers(text)):
            return found, short
    return found, ""


def to_fill_in(case: Case) -> Finding | None:
    blank = language.BRACKETS.search(plain_text(case.text))
    return ({"blank": quoted(blank[0])}, "") if blank else None


def bare_subject(case: Case) -> Finding | None:
    if case.kind != "subject" or not _is_english(case.text):
        return None
    missing = {name: blank for name, blank, is_in in PARTS if not is_in(plain_text(case.text))}
    if not missing or (len(missing) == 1 and "the background" not in missing):
        return None  # the view or the style is enough
    listed = " and ".join(", ".join(missing).rsplit(", ", 1))
    return {"missing": listed}, ", ".join([case.better.rstrip(" ,.;"), *missing.values()])


def bare_style(case: Case) -> Finding | None:
    if case.kind != "style" or not _is_english(case.text):
        return None
    plain = plain_text(case.text)
    phrase = STYLE_PHRASE.search(plain)
    named = bool(phrase or language.MEDIUM.search(plain))
    body = plain.replace(phrase[0], " ") if phrase else re.sub(r"(?<![^,])[^,]*\bstyle\b", " ", plain)
    body = language.MEDIUM.sub(" ", body[after_lead(body) :])
    described = len([w for w in re.findall(r"[\w'-]+", body) if w.lower() not in ("a", "an", "the", "of", "in")])
    if named and described >= 3:
        return None
    faults = ["does not name the style"] * (not named)
    suggestion = case.better.rstrip(" ,.;") + " in [name of the style] style" * (not named)
    if described < 3:
        faults.append("hardly describes what the image shows")
        suggestion = _before_style(suggestion, " [who or what, doing what, where]")
    return {"faults": " and ".join(faults)}, suggestion


def duplicate(case: Case) -> Finding | None:
    first = case.earlier.get(case.text.casefold())
    if first is None or to_fill_in(case):  # a form to fill in is the same for all pictures
        return None
    blank = f", [what differs in image {case.image + 1}]"
    return {"first": first + 1}, _before_style(case.better.rstrip(" ,.;"), blank)


def _with_markers(text: str, names: Sequence[str]) -> str:
    """The caption with these names marked; where none of them occurs, with the first one put in front of the rest:
    `a photo of a <dog>, an animal on grass`. "" without names."""
    marked = text
    for name in names:
        marked = mark_word(marked, name)
    if not names or MARKER.search(marked):
        return marked if names else ""
    lead = after_lead(text)
    return f"{text[:lead]} {language.a_marked(names[0])}, {text[lead:].strip()}".strip()


def _joined(before: str, after: str, noun: str) -> str:
    """`a photo of` + `dog on grass`, with the article that fits."""
    first = re.match(r"\W*([\w'-]+)", after)
    if first and language.article(noun):
        before += " a" if re.search(r"(?<!\w)of\Z", before, re.IGNORECASE) else ""
        before = language.fix_article(f"{before} ", first[1]).rstrip()
    return f"{before} {after}"


def _before_style(text: str, words: str) -> str:
    """The caption with more words, before the style that ends a style's caption."""
    ending = STYLE_PHRASE.search(text) or re.search(r"\bin \[", text)
    at = ending.start() if ending else len(text)
    return f"{text[:at].rstrip(' ,')}{words} {text[at:].lstrip()}".strip(" ,")


def is_unmarked(case: Case) -> bool:
    # a rare token's note already says what to mark
    return case.kind == "subject" and not set("<>") & set(case.text) and not rare_spans(case.text)


def _is_english(text: str) -> bool:
    """Whether the word lists can tell anything about the text: not where most letters are of another script."""
    letters = [c for c in text if c.isalpha()]
    return 2 * sum(c.isascii() for c in letters) >= len(letters)


# (name, what finds it, advice). Of the rules of one name the first that finds something speaks. An empty caption is
# told nothing else.
RULES: tuple[tuple[str, Callable[[Case], Finding | None], str], ...] = (
    ("empty", empty, "The caption is empty: describe the image."),
    ("missing-marker", broken_marker, "It {fault}: write one marker with its word inside, such as <{name}>."),
    ("missing-marker", no_marker, "It marks nothing: mark <{subject}> {reason}."),
    ("rare-token", rare_token, "{token} is an identifier that the model reads with a meaning of its own: {remedy}."),
    ("too-long", too_long, "It has {tokens} tokens and the model reads {most}: shorten it."),
    ("compact", to_fill_in, "{blank} is still to be filled in: write what the image shows."),
    ("compact", bare_subject, "It does not describe {missing}: add it, or it is learned with the subject."),
    ("compact", bare_style, "It {faults}: add it, to tell the style from what is shown."),
    ("duplicate", duplicate, "It is the same caption as image {first}: say what differs in this one."),
)  # fmt: skip
