"""Checking captions: are they comprehensive, and is what is to be learned marked?

A comprehensive caption describes subject, background, view and style, as in `a photo of a <dog> sitting on a ledge
in front of trees, macro style`; what it leaves out is learned along with the subject.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import DCOError
from .draft import CONCEPTS
from .language import MARKER, STYLE_PHRASE, after_lead, good_markers, head_noun, plain_text, quoted
from .rules import RULES, Case, is_unmarked, to_fill_in


@dataclass(frozen=True)
class CaptionNote:
    """One complaint about one caption."""

    image: int  # 0-based index of the picture; -1: about all of them
    rule: str  # the name of its rule in RULES
    advice: str  # one sentence that names the value and what to do
    suggestion: str  # a rewritten caption that resolves the note; "" where none can be made


NOTHING_MARKED = "No caption marks what is to be learned: put angle brackets around its word, such as <dog>."


def check_captions(
    captions: Sequence[str], *, kind: str = "subject", count_tokens: Callable[[str], int] | None = None,
    max_tokens: int = 75, initializers: Mapping[str, str] | None = None,
) -> list[CaptionNote]:  # fmt: skip
    """What to improve about the captions of one training set, one caption an image, in the order of the images.

    kind: "subject", "style", or "auto" to tell from the captions; count_tokens: how many tokens the text encoder
    makes of a caption, None to leave lengths unchecked; initializers: the words that learned tokens start from,
    {"V": "dog"} for <V>, which then is no rare token. An empty list means that nothing was found."""
    if kind not in (*CONCEPTS, "auto"):
        raise DCOError(f"kind {kind!r} is unknown: use one of {', '.join((*CONCEPTS, 'auto'))}.")
    texts = [" ".join(caption.split()) for caption in captions]
    if learned := {name: word for name, word in (initializers or {}).items() if name != word}:
        return _check_as_words(texts, learned, kind, count_tokens, max_tokens)
    if kind == "auto":
        kind = "style" if _is_style_set(texts) else "subject"
    marked = Counter(name for text in texts for name in good_markers(text) if kind == "subject")
    shared = marked.most_common(1)[0][0] if marked else ""
    common = shared or _guess_subject(texts)
    notes: list[CaptionNote] = []
    earlier: dict[str, int] = {}
    for i, text in enumerate(texts):
        subject = (common or _guess_subject([text])) if kind == "subject" else ""
        case = Case(text, text, i, kind, subject, bool(shared), earlier, count_tokens, max_tokens)
        if text and not subject and is_unmarked(case) and (not notes or notes[0].image >= 0):
            notes.insert(0, CaptionNote(-1, "missing-marker", NOTHING_MARKED, ""))
        notes += _notes(case)
        earlier.setdefault(text.casefold(), i)
    return notes


def _notes(case: Case) -> list[CaptionNote]:
    notes: dict[str, CaptionNote] = {}
    for name, find, advice in RULES:
        if name not in notes and "empty" not in notes and (finding := find(case)):
            values, suggestion = finding
            if not _resolves(suggestion, name, case):
                suggestion = ""
            notes[name] = CaptionNote(case.image, name, advice.format(**values), suggestion)
            case = case._replace(better=suggestion or case.better)
    return list(notes.values())


def _resolves(suggestion: str, name: str, case: Case) -> bool:
    """Whether the rules of that name find nothing more in the suggestion; places to fill in may remain."""
    case = case._replace(text=suggestion, better=suggestion)
    return next((find for its, find, _ in RULES if its == name and find(case)), to_fill_in) is to_fill_in


def by_caption(notes: Sequence[CaptionNote], captions: Sequence[str]) -> list[dict[str, Any]]:
    """The notes ready for JSON, one entry a caption that has any: {"image": 0-based index, or -1 for all of them first,
    "caption": its text, "notes": [{"rule", "advice", "suggestion"}], "suggestion": with all of them mended, or ""}."""
    entries: dict[int, dict[str, Any]] = {}
    for note in notes:
        caption = captions[note.image] if note.image >= 0 else ""
        entry = entries.setdefault(note.image, {"image": note.image, "caption": caption, "notes": [], "suggestion": ""})
        entry["notes"].append({"rule": note.rule, "advice": note.advice, "suggestion": note.suggestion})
        entry["suggestion"] = note.suggestion or entry["suggestion"]  # those of one caption build on each other
    return list(entries.values())


def report(notes: Sequence[CaptionNote], captions: Sequence[str]) -> str:
    """The notes as short lines to read; images count from 1."""
    number = f"{len(captions)} caption{'' if len(captions) == 1 else 's'}"
    if not notes:
        return f"Captions: no complaints ({number})."
    lines = [f"Captions: {len({note.image for note in notes if note.image >= 0})} of {number} to mend."]
    for entry in by_caption(notes, captions):
        where = f"Image {entry['image'] + 1}: {quoted(entry['caption'])}" if entry["image"] >= 0 else "All images:"
        lines += [where, *(f"- {note['advice']}" for note in entry["notes"])]
        lines += [f"- try: {entry['suggestion']}"] if entry["suggestion"] else []
    return "\n".join(lines)


def _is_style_set(texts: Iterable[str]) -> bool:
    """Whether the captions are a style's: what is marked, if anything, is the style, and most of them name one."""
    filled = [text for text in texts if text]
    named = sum(bool(STYLE_PHRASE.search(text)) for text in filled)
    return 2 * named > len(filled) and not any(MARKER.search(STYLE_PHRASE.sub("", text, 1)) for text in filled)


def _guess_subject(texts: Iterable[str]) -> str:
    """The word that most captions seem to be about, "" when there is none."""
    plain = [plain_text(text) for text in texts if text]
    votes = Counter(noun for text in plain if (noun := head_noun(text[after_lead(text) :]).lower()))
    present = [set(re.findall(r"[\w'-]+", text.lower())) for text in plain]
    shares = {noun: sum(noun in found for found in present) for noun in sorted(votes)}
    best = max(shares, key=lambda noun: (shares[noun], votes[noun]), default="")
    return best if best and 2 * shares[best] >= len(plain) else ""


def _check_as_words(texts, initializers: Mapping[str, str], kind, count_tokens, max_tokens) -> list[CaptionNote]:
    """The check of captions with learned tokens, each read as the word that it starts from."""
    words: dict[str, str] = {}
    for name, word in initializers.items():
        marker = f"<{word or 'thing'}>"
        while marker in " ".join([*texts, *words.values()]):
            marker = f"{marker[:-1]} too>"
        words[f"<{name}>"] = marker
    names = {marker: name for name, marker in words.items()}

    def swapped(text: str, other: Mapping[str, str]) -> str:
        return re.sub("|".join(map(re.escape, other)), lambda match: other[match[0]], text)

    notes = check_captions(
        [swapped(text, words) for text in texts], kind=kind, max_tokens=max_tokens,
        count_tokens=count_tokens and (lambda text: count_tokens(swapped(text, names))),
    )  # fmt: skip
    return [replace(n, advice=swapped(n.advice, names), suggestion=swapped(n.suggestion, names)) for n in notes]
