"""English as far as captions need it: word lists made into patterns, articles, nouns, places, identifiers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import takewhile

from . import words


def any_of(*lists: str) -> str:
    """A pattern for any word of lists as in words.py; the longest is tried first."""
    listed = sorted(" ".join(lists).split(), key=len, reverse=True)
    escaped = (re.escape(word).replace("_", r"[\s-]?").replace("'", "['\u2019]") for word in listed)
    return f"(?:{'|'.join(escaped)})"


def whole(*lists: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){any_of(*lists)}(?!\w)", re.IGNORECASE)


MARKER = re.compile(r"<([^<>]*\w[^<>]*)>")
BRACKETS = re.compile(r"\[[^\[\]]*\]")
VIEW = whole(words.VIEW)
STYLE = whole(words.PHOTO, words.MEDIUM)
MEDIUM = whole(words.MEDIUM)
WORD = r"[\w<>'&/+-]+"
# "in flat cartoon style", from the nearest "in"; a comma or another "in" ends it
STYLE_PHRASE = re.compile(rf"\bin\s+(?:(?!in\b){WORD}\s+){{1,7}}?<?style>?(?![\w-])", re.IGNORECASE)
STOP = frozenset(f"{words.STOP} {words.PREPOSITION}".split())

_BACKGROUND = whole(words.BACKGROUND)
_PREPOSITION = whole(words.PREPOSITION)
_NO_PLACE = frozenset(words.NO_PLACE.split())
_DETERMINER = frozenset(words.DETERMINER.split())
# "a photo of side-view of": nouns that the subject follows, each after at most six words
_LEAD = re.compile(
    rf"(?:(?:[\w'-]+ ){{0,6}}(?:[\w-]+-)?{any_of(words.PICTURE, words.SIGHT)}s? (?:of|showing)\b ?)*", re.IGNORECASE
)
# a listed word, three consonants and a number, or letters and numbers in turn; not 3d, mp3, GTX1080, C3PO
_RARE_WORD = (
    rf"(?<!\w)(?:{any_of(words.RARE)}\d*|(?!(?-i:[A-Z\d]+)\b|r2d2)(?:[b-df-hj-np-tv-z]{{3,}}\d+"
    r"|(?:[a-z]+\d+){2}[a-z\d]*))(?!\w)"
)
_RARE_WORDS = rf"\s*{_RARE_WORD}(?:\s+{_RARE_WORD})*\s*"
_RARE = re.compile(
    r"\[(?:[a-z]\d*\*?|\*)\]|<(?:[a-z]\d*_?\*?|\*|new\d+)>|(?<![\w*])[a-z]{1,2}\d*_?\*(?![\w*])"  # [V] <S*> V*
    rf"|<{_RARE_WORDS}>|\[{_RARE_WORDS}\]|{_RARE_WORD}",
    re.IGNORECASE,
)


def quoted(text: str) -> str:
    """A caption or a part of it as a report shows it: on one line, and not longer than one."""
    text = " ".join(text.split())
    return f'"{text}"' if len(text) <= 60 else f'"{text[:57]}..."'


def article(word: str) -> str:
    """ "a" or "an" for a noun; "" for a plural such as `boots`."""
    low = word.lower()
    if re.search(r"(?:[^siu]s|ies)\Z", low) and not re.search(r"(?:lens|gas|canvas|atlas|christmas)\Z", low):
        return ""
    if re.match(r"uni(?!n)|us[eu]|eu|one\b|ute", low):
        return "a"
    return "an" if re.match(r"[aeiou]|hour|honest|heir", low) else "a"


def a_marked(noun: str) -> str:
    """`a <dog>`, `an <otter>`, `<boots>`."""
    return f"{article(noun)} <{noun}>".strip()


def fix_article(before: str, noun: str) -> str:
    """The text that comes before a noun, its last "a" or "an" changed to the one the noun takes."""

    def right(match: re.Match[str]) -> str:
        wanted = article(noun) or match[1].lower()
        return (wanted.capitalize() if match[1][0].isupper() else wanted) + match[2]

    return re.sub(r"(?<![\w'-])(an?)(\s+)\Z", right, before, flags=re.IGNORECASE)


def mark_word(text: str, word: str) -> str:
    """Put `<word>` in place of the first whole word `word` of the text, whatever its case, outside of `<...>` and
    `[...]`. The text as it was when the word does not occur."""
    spaced = r"\s+".join(map(re.escape, word.split()))
    # what is marked or bracketed is matched first and so stepped over
    pattern = rf"<[^<>]*>|{BRACKETS.pattern}|(?<![\w-])(?P<word>{spaced})(?![\w-])"
    for match in re.finditer(pattern, text, re.IGNORECASE):
        if match["word"]:
            return f"{text[: match.start()]}<{word}>{text[match.end() :]}"
    return text


def after_lead(text: str) -> int:
    """Where "a photo of side-view of" ends, 0 without such a beginning."""
    return len(_LEAD.match(text)[0].rstrip())  # type: ignore[index]


def head_noun(text: str) -> str:
    """The last word of the noun group that begins the text: `a golden retriever dog on grass` -> `dog`."""
    found = ""
    for i, raw in enumerate(text[:200].split()):
        word = raw.rstrip(",.;:!?")
        low = word.lower()
        if i == 0 and low in _DETERMINER:
            continue
        if not re.fullmatch(r"[^\W\d_][\w'-]*", word) or low in STOP or (found and low.endswith("ing")):
            break
        found = word
        if word != raw:
            break
    return found


def has_place(text: str) -> bool:
    """Whether the text says where things are: a background word, or a place after "in", "on", "behind" ..."""
    # a style is no place
    text = re.sub(r"\bin black and white\b", "", STYLE_PHRASE.sub("", text), flags=re.IGNORECASE)
    for part in _PREPOSITION.split(text)[1:]:
        following = re.match(r"(?: [\w'-]+){0,4}", part)[0].lower().split()  # type: ignore[index]
        group = set(takewhile(lambda word: word not in ("of", "with", "and"), following))
        if group - _DETERMINER and not group & _NO_PLACE:
            return True
    return bool(_BACKGROUND.search(text))


def rare_spans(text: str) -> list[tuple[int, int]]:
    """Where identifiers stand that are no words, (start, end) each: `sks`, `[V]`, `S*`, `xjq7`."""
    return [match.span() for match in _RARE.finditer(text)]


def without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    for start, end in reversed(list(spans)):
        text = text[:start] + text[end:]
    return tidy(text)


def tidy(text: str) -> str:
    text = " ".join(text.split())
    return re.sub(r" (?=[,.;])", "", text.replace("< ", "<").replace(" >", ">")).strip(" ,;")


def plain_text(text: str) -> str:
    """The caption without angle brackets and identifiers."""
    return " ".join(re.sub(r"[<>]", " ", without(text, rare_spans(text))).split())


def good_markers(text: str) -> list[str]:
    """The names of the markers that are no identifiers."""
    return [" ".join(m[1].split()) for m in MARKER.finditer(text) if not rare_spans(m[0])]
