"""Checking captions: are they comprehensive, and is what is to be learned marked?

A comprehensive caption describes subject, background, view and style, as in `a photo of a <dog> sitting on a ledge
in front of trees, macro style`; what it leaves out is learned along with the subject. RULES is the table of all that
is looked for, words.py holds the (English) words, rewrite.py makes the suggestions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..errors import DCOError
from . import rewrite
from .draft import KINDS, plain_draft
from .language import (
    BRACKETS,
    MARKER,
    MEDIUM,
    STYLE,
    STYLE_PHRASE,
    VIEW,
    after_lead,
    has_place,
    head_noun,
    rare_spans,
)
from .rewrite import plain_text


@dataclass(frozen=True)
class CaptionNote:
    """One complaint about one caption."""

    image: int  # 0-based index of the picture; -1: about all of them
    rule: str  # the name of its rule in RULES
    advice: str  # one sentence that names the value and what to do
    suggestion: str  # a rewritten caption that resolves the note; "" where none can be made


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
    if not _is_unmarked(case) or not case.subject:
        return None
    reason = "as other captions do" if case.shared else "if that is what is to be learned"
    return {"subject": case.subject, "reason": reason}, rewrite.with_markers(case.better, [case.subject])


def rare_token(case: Case) -> Finding | None:
    if not rare_spans(case.text):
        return None
    text = case.better if rare_spans(case.better) else case.text  # mending <<V>> can hide the identifier
    token, noun, suggestion = rewrite.without_identifiers(text, case.kind, case.subject)
    remedy = f"write the plain word <{noun}> instead" if noun else "use plain words instead"
    return {"token": _quote(token), "remedy": remedy}, suggestion


def to_fill_in(case: Case) -> Finding | None:
    blank = BRACKETS.search(plain_text(case.text))
    return ({"blank": _quote(blank[0])}, "") if blank else None


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
    body = plain.replace(phrase[0], " ") if phrase else re.sub(r"[^,]*\bstyle\b", " ", plain)
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
    if first is None:
        return None
    blank = f"[what differs in image {case.image + 1}]"
    return {"first": first + 1}, rewrite.before_style(case.better.rstrip(" ,.;"), blank, ",")


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
NOTHING_MARKED = "No caption marks what is to be learned: put angle brackets around its word, such as <dog>."


def check_captions(
    captions: Sequence[str],
    *,
    kind: str = "subject",
    count_tokens: Callable[[str], int] | None = None,
    max_tokens: int = 75,
    initializers: Mapping[str, str] | None = None,
) -> list[CaptionNote]:
    """What to improve about the captions of one training set, one caption an image, in the order of the images.

    kind: "subject", "style", or "auto" to tell from the captions; count_tokens: how many tokens the text encoder
    makes of a caption, None to leave lengths unchecked; initializers: the words that learned tokens start from,
    {"V": "dog"} for <V>, which then is no rare token. An empty list means that nothing was found."""
    if kind not in (*KINDS, "auto"):
        raise DCOError(f"kind {kind!r} is unknown: use one of {', '.join((*KINDS, 'auto'))}.")
    texts = [" ".join(caption.split()) for caption in captions]
    if learned := {name: word for name, word in (initializers or {}).items() if name != word}:
        return _check_as_words(texts, learned, kind, count_tokens, max_tokens)
    if kind == "auto":
        kind = "style" if _is_style_set(texts) else "subject"
    shared = _shared_marker(texts) if kind == "subject" else ""
    common = shared or (_guess_subject(texts) if kind == "subject" else "")
    notes: list[CaptionNote] = []
    earlier: dict[str, int] = {}
    for i, text in enumerate(texts):
        subject = common or (_guess_subject([text]) if kind == "subject" else "")
        case = Case(text, text, i, kind, subject, bool(shared), earlier, count_tokens, max_tokens)
        if text and not subject and _is_unmarked(case) and (not notes or notes[0].image >= 0):
            notes.insert(0, CaptionNote(-1, "missing-marker", NOTHING_MARKED, ""))
        notes += _notes(case)
        earlier.setdefault(text.casefold(), i)
    return notes


def _notes(case: Case) -> list[CaptionNote]:
    notes: dict[str, CaptionNote] = {}
    for rule in RULES:
        finding = None if rule.name in notes or "empty" in notes else rule.find(case)
        if finding:
            values, suggestion = finding
            suggestion = suggestion if suggestion and _resolves(suggestion, rule.name, case) else ""
            notes[rule.name] = CaptionNote(case.image, rule.name, rule.advice.format(**values), suggestion)
            case = case._replace(better=suggestion or case.better)
    return list(notes.values())


def _resolves(suggestion: str, name: str, case: Case) -> bool:
    """Whether the rule finds nothing more in the suggestion; places to fill in may remain."""
    case = case._replace(text=suggestion, better=suggestion)
    again = next((rule for rule in RULES if rule.name == name and rule.find(case)), None)
    return again is None or again.find is to_fill_in


def by_caption(notes: Sequence[CaptionNote], captions: Sequence[str]) -> list[dict[str, Any]]:
    """The notes ready for JSON, one entry a caption that has any: {"image": 0-based index, or -1 for all of them first,
    "caption": its text, "notes": [{"rule", "advice", "suggestion"}], "suggestion": with all of them mended, or ""}."""
    entries: dict[int, dict[str, Any]] = {}
    for note in notes:
        caption = captions[note.image] if note.image >= 0 else ""
        entry = entries.setdefault(note.image, {"image": note.image, "caption": caption, "notes": []})
        entry["notes"].append({"rule": note.rule, "advice": note.advice, "suggestion": note.suggestion})
        # the suggestions of one caption build on each other
        entry["suggestion"] = note.suggestion or entry.get("suggestion", "")
    return list(entries.values())


def report(notes: Sequence[CaptionNote], captions: Sequence[str]) -> str:
    """The notes as short lines to read; images count from 1."""
    number = f"{len(captions)} caption{'' if len(captions) == 1 else 's'}"
    if not notes:
        return f"Captions: no complaints ({number})."
    lines = [f"Captions: {len({note.image for note in notes if note.image >= 0})} of {number} to mend."]
    for entry in by_caption(notes, captions):
        where = f"Image {entry['image'] + 1}: {_quote(entry['caption'])}" if entry["image"] >= 0 else "All images:"
        lines += [where, *(f"- {note['advice']}" for note in entry["notes"])]
        lines += [f"- try: {entry['suggestion']}"] if entry["suggestion"] else []
    return "\n".join(lines)


def _quote(text: str) -> str:
    text = " ".join(text.split())
    return f'"{text}"' if len(text) <= 60 else f'"{text[:57]}..."'


def _is_unmarked(case: Case) -> bool:
    # a rare token's note already says what to mark
    return case.kind == "subject" and not set("<>") & set(case.text) and not rare_spans(case.text)


def _is_english(text: str) -> bool:
    """Whether the word lists can tell anything about the text: not where most letters are of another script."""
    letters = [c for c in text if c.isalpha()]
    return 2 * sum(c.isascii() for c in letters) >= len(letters)


# --- what the captions of a set have in common


def _is_style_set(texts: Iterable[str]) -> bool:
    """Whether the captions are a style's: what is marked, if anything, is the style, and most of them name one."""
    filled = [text for text in texts if text]
    named = sum(bool(STYLE_PHRASE.search(text)) for text in filled)
    return 2 * named > len(filled) and not any(MARKER.search(STYLE_PHRASE.sub("", text, 1)) for text in filled)


def _shared_marker(texts: Iterable[str]) -> str:
    counts = Counter(name for text in texts for name in rewrite.good_markers(text))
    return counts.most_common(1)[0][0] if counts else ""


def _guess_subject(texts: Iterable[str]) -> str:
    """The word that most captions seem to be about, "" when there is none."""
    plain = [plain_text(text) for text in texts if text]
    votes = Counter(noun for text in plain if (noun := head_noun(text[after_lead(text) :]).lower()))
    present = [set(re.findall(r"[\w'-]+", text.lower())) for text in plain]
    shares = {noun: sum(noun in found for found in present) for noun in sorted(votes)}
    best = max(shares, key=lambda noun: (shares[noun], votes[noun]), default="")
    return best if best and 2 * shares[best] >= len(plain) else ""


# --- learned tokens: the check reads each as the word that it starts from


def _check_as_words(texts, initializers: Mapping[str, str], kind, count_tokens, max_tokens) -> list[CaptionNote]:
    pairs: list[tuple[str, str]] = []
    taken = " ".join(texts)
    for name, word in initializers.items():
        marker = f"<{word or 'thing'}>"
        while marker in taken:
            marker = f"{marker[:-1]} too>"
        taken += marker
        pairs.append((f"<{name}>", marker))
    back = [(word, name) for name, word in pairs]
    words = [_swapped(text, pairs) for text in texts]
    counted = count_tokens and (lambda text: count_tokens(_swapped(text, back)))
    notes = check_captions(words, kind=kind, count_tokens=counted, max_tokens=max_tokens)
    return [replace(n, advice=_swapped(n.advice, back), suggestion=_swapped(n.suggestion, back)) for n in notes]


def _swapped(text: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        text = text.replace(old, new)
    return text
