"""Captions: `<dog>` marks what is to be learned."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .language import article

_MARKER = re.compile(r"<([^<>]+)>")


def markers(caption: str) -> list[str]:
    """The names in the markers of a caption, in order: `a <dog> and a <cat>` -> ["dog", "cat"]."""
    return [text for text, marked in split_at_markers(caption) if marked]


def base_caption(caption: str, initializers: Mapping[str, str] | None = None) -> str:
    """What the pretrained model reads: every marker as its initializer, by default its own words,
    `a <dog> on grass` -> `a dog on grass`."""
    words = initializers or {}
    text = "".join(words.get(text, text) if marked else text for text, marked in split_at_markers(caption))
    return re.sub(r" {2,}", " ", text).strip() if "" in words.values() else text


def mark_words(text: str, names: Sequence[str]) -> str:
    """The first mention of each name as a marker, whatever its capitals: ("a dog on grass", ["dog"]) -> "a <dog> on
    grass". A name that is marked already, or not mentioned, changes nothing."""
    for name in names:
        if name not in markers(text):
            text = re.sub(rf"(?<![\w<]){re.escape(name)}(?![\w>])", f"<{name}>", text, count=1, flags=re.IGNORECASE)
    return text


def split_at_markers(caption: str) -> list[tuple[str, bool]]:
    """The caption in pieces, (text, is a marker): `a <dog> runs` -> [("a ", False), ("dog", True),
    (" runs", False)]."""
    pieces = enumerate(_MARKER.split(caption))  # text and name in turn
    return [(text.strip() if n % 2 else text, bool(n % 2)) for n, text in pieces if n % 2 or text]


def class_prompt(captions: Sequence[str], initializers: Mapping[str, str] | None = None) -> str:
    """The prompt of the subject's class, for class images: "a photo of a dog" for captions that mark <dog>; ""
    if nothing is marked."""
    names = [name for text in captions for name in markers(text)]
    if not names:
        return ""
    word = (initializers or {}).get(names[0], names[0])
    return f"a photo of {f'{article(word)} {word}'.strip()}"
