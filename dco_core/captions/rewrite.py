"""Rewritten captions: the suggestions of the caption check. Each function takes a caption on one line and gives a
better one, or "" where it cannot; the check drops what does not resolve its complaint."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from .language import (
    MARKER,
    STOP,
    STYLE_PHRASE,
    after_lead,
    article,
    fix_article,
    head_noun,
    mark_word,
    rare_spans,
)


def plain_text(text: str) -> str:
    """The caption without angle brackets and identifiers."""
    return " ".join(re.sub(r"[<>]", " ", _without(text, rare_spans(text))).split())


def good_markers(text: str) -> list[str]:
    return [" ".join(m[1].split()) for m in MARKER.finditer(text) if not rare_spans(m[0])]


def half_marked(text: str) -> list[str]:
    """What a caption with broken markers marks, or the word beside a lone angle bracket."""
    half = re.search(r"<\s*([^\W\d_][\w'-]*)|\b([^\W\d_][\w'-]*)\s*>", text)
    word = (half[1] or half[2]) if half else ""
    return good_markers(text) or [word] * bool(word and not rare_spans(word))


def without_brackets(text: str) -> str:
    return _tidy(re.sub(r"[<>]", "", re.sub(r"<[^<>\w]*>", " ", text)))


def with_markers(text: str, names: Sequence[str]) -> str:
    """The caption with these names marked; where none of them occurs, with the first one put in front of the rest:
    `a photo of a <dog>, an animal on grass`. "" without names."""
    marked = text
    for name in names:
        marked = mark_word(marked, name)
    if not names or MARKER.search(marked):
        return marked if names else ""
    words, lead = f"{article(names[0])} <{names[0]}>".strip(), after_lead(text)
    return f"{text[:lead]} {words}, {text[lead:].strip()}".strip()


def without_identifiers(text: str, kind: str, subject: str) -> tuple[str, str, str]:
    """The first identifier, the word to use for it, and the caption with that word marked and no identifier."""
    spans = rare_spans(text)
    start, end = spans[0]
    before, after = text[:start].rstrip(), _without(text[end:], [(a - end, b - end) for a, b in spans if a >= end])
    new = _without(text, spans)
    if kind == "style":
        named = re.sub(r"\bin(?: the| a)? style\b", "in [name of the style] style", new, flags=re.IGNORECASE)
        return text[start:end], "", named
    if marked := MARKER.search(new):
        # "an ohwx <dog>" leaves "an <dog>"
        return text[start:end], marked[1], re.sub(r"\ban? (?=<)", lambda m: fix_article(m[0], marked[1]), new)
    follows = head_noun(after) if text[end : end + 1] == " " else ""
    noun = follows or subject
    if noun and mark_word(new, noun) == new:
        after, follows = f"<{noun}> {after}", noun
    marked_up = mark_word(_join(before, after, noun) if follows else new, noun)
    return text[start:end], noun, _tidy(marked_up) if MARKER.search(marked_up) else ""


def before_style(text: str, words: str, comma: str = "") -> str:
    """The caption with more words, before the style that ends a style's caption."""
    ending = STYLE_PHRASE.search(text) or re.search(r"\bin \[", text)
    at = ending.start() if ending else len(text)
    return f"{text[:at].rstrip(' ,')}{comma} {words} {text[at:].lstrip()}".strip(" ,")


def shortened(text: str, count_tokens: Callable[[str], int], most: int) -> str:
    """The caption cut at a comma or word so that it fits, with all its markers and with the style that ends it; ""
    if that cannot be done."""
    if count_tokens(text) <= most:  # other rules have shortened it enough
        return text
    ends = [match for match in STYLE_PHRASE.finditer(text) if match.end() >= len(text.rstrip(" ."))]
    tail = ends[-1][0] if ends else ""
    words = (text[: ends[-1].start()] if ends else text).split()

    def beginning(count: int) -> str:
        kept = words[:count]
        while kept and kept[-1].strip(",;.").lower() in STOP:
            kept = kept[:-1]
        start = " ".join(kept).rstrip(" ,;.")
        return f"{start}, {tail}" if tail and start else start

    # counting each beginning would be slow for a long text
    fits = bisect_right(range(1, len(words) + 1), most, key=lambda count: count_tokens(beginning(count)))
    commas = [n for n in range(fits, fits // 2, -1) if words[n - 1].endswith((",", ";", "."))]
    for short in map(beginning, (*commas[:1], fits)):
        if count_tokens(short) <= most and set(good_markers(short)) == set(good_markers(text)):
            return short
    return ""


def _tidy(text: str) -> str:
    text = " ".join(text.split())
    return re.sub(r" (?=[,.;])", "", text.replace("< ", "<").replace(" >", ">")).strip(" ,;")


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    for start, end in reversed(list(spans)):
        text = text[:start] + text[end:]
    return _tidy(text)


def _join(before: str, after: str, noun: str) -> str:
    """`a photo of` + `dog on grass`, with the article that fits."""
    first = re.match(r"\W*([\w'-]+)", after)
    if first and article(noun):
        before += " a" if re.search(r"(?<!\w)of\Z", before, re.IGNORECASE) else ""
        before = fix_article(f"{before} ", first[1]).rstrip()
    return f"{before} {after}"
