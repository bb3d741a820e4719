"""Checking captions: are they comprehensive, and is what is to be learned marked?

A comprehensive caption describes subject, background, view and style, as in `a photo of a <dog> sitting on a ledge
in front of trees, macro style`; what it leaves out is learned along with the subject. The word lists are English.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import DCOError
from .draft import KINDS, STYLE_PHRASE, article, fix_article, mark_word, plain_draft
from .words import (
    BACKGROUND_WORD,
    BRACKETS,
    LEAD,
    MARKER,
    NAMED_STYLE,
    NO_PLACE,
    PLACE,
    STOP,
    STYLE,
    VIEW,
    rare_spans,
)


@dataclass(frozen=True)
class CaptionNote:
    """One complaint about one caption."""

    image: int  # 0-based index of the picture; -1: about all of them
    problem: str  # "missing-marker", "rare-token", "compact", "too-long", "duplicate" or "empty"
    message: str  # one sentence that names the value and what to do
    suggestion: str  # a rewritten caption that resolves the note; "" where none can be made


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
    if named := _as_words(texts, initializers or {}):
        return _check_as_words(texts, named, kind, count_tokens, max_tokens)
    if kind == "auto":
        kind = "style" if _is_style_set(texts) else "subject"
    shared = _shared_marker(texts)
    subject = (shared or _guess_subject(texts)) if kind == "subject" else ""
    first_seen: dict[str, int] = {}
    notes = []
    unmarked = 0
    for i, text in enumerate(texts):
        if not text:
            draft = plain_draft("subject", shared) if kind == "subject" and shared else ""
            notes.append(CaptionNote(i, "empty", "The caption is empty: describe the image.", draft))
            continue
        rare = rare_spans(text)
        word = subject or (_guess_subject([text]) if kind == "subject" else "")
        better = text  # the suggestions of one caption build on each other
        if trouble := _marker_trouble(text):
            message, suggestion = _mend_marker(text, trouble, kind, word)
            notes.append(CaptionNote(i, "missing-marker", message, suggestion))
            better = suggestion or better
        elif kind == "subject" and not rare and not MARKER.search(text):
            # a rare token's note already says what to mark
            if word:
                message, better = _add_marker(text, word, bool(shared))
                notes.append(CaptionNote(i, "missing-marker", message, better))
            else:
                unmarked += 1
        if rare:
            # mending `<<V>>` can hide the identifier: then start from the caption as it is
            spans = rare_spans(better)
            message, suggestion = _replace_rare(better if spans else text, spans or rare, kind, word)
            notes.append(CaptionNote(i, "rare-token", message, suggestion))
            better = suggestion or better
        if found := _compact(text, kind, better):
            notes.append(CaptionNote(i, "compact", *found))
        if count_tokens is not None and (n := count_tokens(text)) > max_tokens:
            message = f"The caption has {n} tokens and the model reads {max_tokens}: shorten it."
            notes.append(CaptionNote(i, "too-long", message, _shortened(text, count_tokens, max_tokens)))
        first = first_seen.setdefault(text.casefold(), i)
        if first != i:
            message = (
                f"{_quote(text)} is the same caption as image {first + 1}: say what differs in this one."
            )
            notes.append(CaptionNote(i, "duplicate", message, _told_apart(better, kind, i)))
    if unmarked:
        message = "No caption marks what is to be learned: put angle brackets around its word, such as <dog>."
        notes.insert(0, CaptionNote(-1, "missing-marker", message, ""))
    return notes


def _as_words(texts: Iterable[str], initializers: Mapping[str, str]) -> dict[str, str]:
    """{marker: the marker of the word that it starts from}, no two of them the same."""
    taken = {marker for text in texts for marker in re.findall(r"<[^<>]*>", text)}
    named = {}
    for name, word in initializers.items():
        if name != word:
            word, number = word or "thing", 1
            while (marker := f"<{word}>" if number == 1 else f"<{word} {number}>") in taken:
                number += 1
            taken.add(marker)
            named[f"<{name}>"] = marker
    return named


def _check_as_words(texts, named: Mapping[str, str], kind, count_tokens, max_tokens) -> list[CaptionNote]:
    """The check with every marker as the word it starts from, and back again in what is said."""

    def swapped(text: str, pairs: Iterable[tuple[str, str]]) -> str:
        for a, b in pairs:
            text = text.replace(a, b)
        return text

    back = [(word, name) for name, word in named.items()]
    notes = check_captions(
        [swapped(text, named.items()) for text in texts],
        kind=kind,
        count_tokens=count_tokens and (lambda text: count_tokens(swapped(text, back))),
        max_tokens=max_tokens,
    )
    return [
        replace(note, message=swapped(note.message, back), suggestion=swapped(note.suggestion, back))
        for note in notes
    ]


def report(notes: Sequence[CaptionNote], captions: Sequence[str]) -> str:
    """The notes as text to read; images count from 1."""
    if not notes:
        return f"Captions: no complaints ({len(captions)} caption{'' if len(captions) == 1 else 's'})."
    blocks = []
    for note in notes:
        where = f"Image {note.image + 1}" if note.image >= 0 else "All images"
        blocks.append(f"{where}: {note.message}" + (f"\n  try: {note.suggestion}" if note.suggestion else ""))
    return "\n".join(blocks)


def _quote(text: str) -> str:
    return f'"{text}"' if len(text) <= 60 else f'"{text[:57]}..."'


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[<>]", " ", text).split())


def _tidy(text: str) -> str:
    text = " ".join(text.split())
    return re.sub(r" (?=[,.;])", "", re.sub(r"<\s+", "<", re.sub(r"\s+>", ">", text))).strip(" ,;")


def _is_style_set(texts: Iterable[str]) -> bool:
    """Whether the captions are a style's: what is marked, if anything, is the style, and most of them name one."""
    filled = [text for text in texts if text]
    phrases = [match[0] if (match := STYLE_PHRASE.search(text)) else "" for text in filled]
    marked_elsewhere = any(MARKER.search(t.replace(p, "")) for t, p in zip(filled, phrases, strict=True))
    return not marked_elsewhere and 2 * sum(map(bool, phrases)) > len(filled)


# --- markers


def _good_markers(text: str) -> list[str]:
    return [_plain(m[1]) for m in MARKER.finditer(text) if not rare_spans(m[0])]


def _shared_marker(texts: Iterable[str]) -> str:
    counts = Counter(name for text in texts for name in _good_markers(text))
    return counts.most_common(1)[0][0] if counts else ""


def _marker_trouble(text: str) -> str:
    """What is wrong with the angle brackets of a caption, "" when they are well-formed."""
    rest = MARKER.sub("", text)
    if re.search(r"<[^<>\w]*>", text):
        return "has an empty marker"
    if re.search(r"<[^<>]*>", rest):
        return "has a marker within a marker"
    if "<" in rest:
        return "opens a marker with < and does not close it"
    return "closes a marker with > that was not opened" if ">" in rest else ""


def _mend_marker(text: str, trouble: str, kind: str, subject: str) -> tuple[str, str]:
    names = _good_markers(text)
    if not names:
        half = re.search(r"<\s*([^\W\d_][\w'-]*)|([^\W\d_][\w'-]*)\s*>", text)
        word = (half[1] or half[2]) if half else ""
        usable = word and not rare_spans(word) and (kind == "style" or not subject or word != subject)
        names = [word] if usable else []
        if subject and (not names or re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", text, re.IGNORECASE)):
            names = [subject]
    plain = _tidy(re.sub(r"[<>]", "", re.sub(r"<[^<>\w]*>", " ", text)))
    mended = plain
    for name in names:
        mended = mark_word(mended, name)
    if kind == "subject" and not MARKER.search(mended):
        mended = _insert(plain, names[0]) if names else ""
    wish = f"<{names[0]}>" if names else "<dog>"
    message = f"{_quote(text)} {trouble}: write one marker with its word inside, such as {wish}."
    return message, "" if _marker_trouble(mended) else mended


def _add_marker(text: str, subject: str, others: bool) -> tuple[str, str]:
    reason = "as other captions do" if others else "if that is what is to be learned"
    marked = mark_word(text, subject)
    if marked == text:
        marked = _insert(text, subject)
    return f"{_quote(text)} marks nothing: mark <{subject}> {reason}.", marked


def _insert(text: str, subject: str) -> str:
    """The caption with the marker put in front of the description that lacks the word."""
    words = f"{article(subject)} <{subject}>".strip()
    lead = _lead_end(text)
    return f"{text[:lead]} {words}, {text[lead:].strip()}" if lead else f"{words}, {text}"


def _lead_end(text: str) -> int:
    """Where "a photo of side-view of" ends, 0 without such a beginning."""
    end = 0
    for match in LEAD.finditer(text[:200]):
        if len(text[end : match.start()].split()) > 6 or "," in text[end : match.start()]:
            break
        end = match.end()
    return end


def _head_noun(text: str) -> str:
    """The last word of the noun group that begins the text: `a golden retriever dog on grass` -> `dog`."""
    found = ""
    for i, match in enumerate(re.finditer(r"\s*([^\s]+)", text[:200])):
        word = match[1].rstrip(",.;:!?")
        low = word.lower()
        if i == 0 and low in ("a", "an", "the", "my", "one"):
            continue
        if not re.fullmatch(r"[^\W\d_][\w'-]*", word) or low in STOP or (found and low.endswith("ing")):
            break
        found = word
        if word != match[1]:
            break
    return found


def _guess_subject(texts: Sequence[str]) -> str:
    """The word that most captions seem to be about, "" when there is none."""
    plain = [_plain(_without_spans(text, rare_spans(text))) for text in texts if text]
    votes = Counter(noun for text in plain if (noun := _head_noun(text[_lead_end(text) :]).lower()))
    if not votes and len(plain) > 1:  # one caption alone does not show which of its words it is about
        for text in plain:
            names = set(re.findall(r"[a-z]{3,}", text.lower())) - STOP
            votes.update(w for w in names if not VIEW.fullmatch(w) and not STYLE.fullmatch(w))
    if not votes:
        return ""
    lowered = [set(re.findall(r"[\w'-]+", text.lower())) for text in plain]
    shares = {word: sum(word in words for words in lowered) for word in votes}
    best = max(sorted(votes), key=lambda word: (shares[word], votes[word]))
    return best if 2 * shares[best] >= len(plain) else ""


# --- rare tokens


def _without_spans(text: str, spans: Iterable[tuple[int, int]]) -> str:
    parts, at = [], 0
    for start, end in spans:
        parts.append(text[at:start])
        at = max(at, end)
    return _tidy("".join([*parts, text[at:]]))


def _replace_rare(text: str, spans: list[tuple[int, int]], kind: str, subject: str) -> tuple[str, str]:
    """Message and caption with the identifiers taken out and the class word marked instead."""
    start, end = spans[0]
    rest = [(a - end, b - end) for a, b in spans if a >= end]
    before, after = text[:start].rstrip(), _without_spans(text[end:], rest)
    new = _without_spans(text, spans)
    noun = ""
    if kind == "style":
        new = re.sub(r"\b(in)( the| a)? style\b", r"\1 [name of the style] style", new, flags=re.IGNORECASE)
    elif not MARKER.search(new):
        follows = text[end : end + 1].isspace()
        noun = _head_noun(after) if follows else ""
        if noun:
            new = _join(before, mark_word(after, noun))
        elif subject:
            noun = subject
            marked = mark_word(new, noun)
            new = marked if marked != new else _join(before, f"<{noun}> {after}")
        else:
            new = ""
    else:
        noun = _plain(MARKER.search(new)[1])  # type: ignore[index]
        # "an ohwx <dog>" leaves "an <dog>"
        new = re.sub(r"\ban? (?=<)", lambda m: fix_article(m[0], noun), new)
    token = _quote(text[start:end])
    advice = f"write the plain word <{noun}> instead" if noun else "use plain words instead"
    message = f"{token} is an identifier that the model reads with a meaning of its own: {advice}."
    new = _tidy(new)
    return message, "" if rare_spans(new) or not re.search(r"\w", new) else new


def _join(before: str, after: str) -> str:
    """`a photo of` + `<dog> on grass`, with the article that fits what follows."""
    first = re.match(r"\W*([\w'-]+)", after)
    if first:
        marked = MARKER.search(after)
        noun = marked[1] if marked else first[1]
        if re.search(r"(?<!\w)of\Z", before, re.IGNORECASE) and article(noun):
            before += " a"
        before = fix_article(before + " ", first[1]).rstrip() if article(noun) else before
    return f"{before} {after}"


# --- what a caption describes


def _has_place(text: str) -> bool:
    """Whether the text says where things are: a background word, or a place after "in", "on", "behind" ..."""
    if BACKGROUND_WORD.search(text):
        return True
    at = 0
    while match := PLACE.search(text, at):
        words = match[1].lower().split()
        # the group ends where the next one begins: "on the left in a garden"
        group: list[str] = []
        for word in words:
            if group and word in ("in", "on", "at", "of", "with", "under", "behind", "near", "and", "next"):
                break
            group.append(word)
        if not set(group) <= {"a", "an", "the"} and not set(group) & NO_PLACE:
            return True
        # go on within the words that were read ahead
        at = match.start(1) + 1
    return False


def _compact(text: str, kind: str, better: str) -> tuple[str, str] | None:
    """Message and suggestion for a caption that leaves things out, None for a comprehensive one.

    better: the caption with its other faults mended, to which the suggestion adds."""
    rare = rare_spans(text)
    if blanks := [m for m in BRACKETS.finditer(text) if not any(a <= m.start() < b for a, b in rare)]:
        return f"{_quote(blanks[0][0])} is still to be filled in: write what the image shows.", ""
    letters = [c for c in text if c.isalpha()]
    if 2 * sum(c.isascii() for c in letters) < len(letters):
        return None  # not English: the word lists cannot tell
    plain = _plain(_without_spans(text, rare))
    return _compact_style(text, plain, better) if kind == "style" else _compact_subject(text, plain, better)


def _compact_subject(text: str, plain: str, better: str) -> tuple[str, str] | None:
    body = re.sub(r"\bblack and white\b", "monochrome", STYLE_PHRASE.sub("", plain), flags=re.IGNORECASE)
    wanted = {
        "[where is it?]": ("the background", _has_place(body)),
        "[view]": ("the view", bool(VIEW.search(plain))),
        "[style]": ("the style", bool(STYLE.search(plain))),
    }
    place, view, style = (there for _, there in wanted.values())
    if place and (view or style):
        return None
    missing = [name for name, there in wanted.values() if not there]
    listed = " and ".join(", ".join(missing).rsplit(", ", 1))
    message = f"{_quote(text)} does not describe {listed}: add it, or it is learned with the subject."
    blanks = [blank for blank, (_, there) in wanted.items() if not there]
    return message, ", ".join([better.rstrip(" ,.;"), *blanks])


def _compact_style(text: str, plain: str, better: str) -> tuple[str, str] | None:
    phrase = STYLE_PHRASE.search(plain)
    named = bool(phrase or NAMED_STYLE.search(plain))
    body = plain.replace(phrase[0], " ") if phrase else re.sub(r"[^,]*\bstyle\b", " ", plain)
    body = NAMED_STYLE.sub(" ", body[_lead_end(body) :])
    count = len([w for w in re.findall(r"[\w'-]+", body) if w.lower() not in ("a", "an", "the", "of", "in")])
    if named and count >= 3:
        return None
    faults, new = [], better.rstrip(" ,.;")
    if not named:
        faults.append("does not name the style")
        new += " in [name of the style] style"
    if count < 3:
        faults.append("hardly describes what the image shows")
        # the style may have become a place to fill in
        ending = STYLE_PHRASE.search(new) or re.search(r"\bin \[", new)
        at = ending.start() if ending else len(new)
        new = f"{new[:at].rstrip(' ,')} [who or what, doing what, where] {new[at:].lstrip()}"
    message = f"{_quote(text)} {' and '.join(faults)}: add it, to tell the style from what is shown."
    return message, new.strip()


# --- duplicates, length


def _told_apart(text: str, kind: str, image: int) -> str:
    """The caption with a place to fill in, before the style that ends a style's caption."""
    found = list(STYLE_PHRASE.finditer(text)) if kind == "style" else []
    at = found[-1].start() if found else len(text)
    before, after = text[:at].rstrip(" ,.;"), text[at:]
    return " ".join(f"{before}, [what differs in image {image + 1}] {after}".split()).strip(" ,")


def _shortened(text: str, count_tokens: Callable[[str], int], max_tokens: int) -> str:
    """The caption cut at a comma or word so that it fits, with its markers and its style at the end; "" if that
    cannot be done."""
    tail = ""
    for match in STYLE_PHRASE.finditer(text):
        if match.end() >= len(text.rstrip(" .")):
            tail = match[0]
    body = text[: text.rindex(tail)].split() if tail else text.split()
    best = _longest(body, tail, count_tokens, max_tokens)
    return best or (_longest(text.split(), "", count_tokens, max_tokens) if tail else "")


def _longest(words: list[str], tail: str, count_tokens: Callable[[str], int], max_tokens: int) -> str:
    def made(n: int) -> str:
        kept = words[:n]
        while kept and kept[-1].strip(",;.").lower() in STOP:
            kept = kept[:-1]
        start = " ".join(kept).rstrip(" ,;.")
        return f"{start}{', ' if n < len(words) else ' '}{tail}" if tail and start else start

    low, high = 0, len(words)
    while low < high:  # the most words that fit; counting each prefix would be slow for a long text
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count_tokens(made(middle)) <= max_tokens else (low, middle - 1)
    all_names = Counter(_good_markers(" ".join(words) + " " + tail))
    commas = [n for n in range(low, low // 2, -1) if words[n - 1].endswith((",", ";", "."))]
    for n in (*commas[:1], low):
        short = made(n)
        kept = Counter(_good_markers(short))
        survives = not _marker_trouble(short) and set(kept) == set(all_names)
        if short and survives and count_tokens(short) <= max_tokens:
            return short
    return ""
