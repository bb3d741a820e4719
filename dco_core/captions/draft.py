"""Drafting captions: what to ask a vision-language model about one image, and its answer made into a caption."""

from __future__ import annotations

import re

from ..errors import DCOError
from . import words
from .language import MARKER, STYLE_PHRASE, WORD, a_marked, any_of, fix_article, mark_word, whole

CONCEPTS = ("subject", "style")
_MAX_WORDS = 60
_FLAGS = re.IGNORECASE | re.MULTILINE

INSTRUCTION = {
    "subject": "Describe this image in one sentence of fewer than 50 words. "
    'Call the subject exactly "{name}", with no other word for it. '
    "Then say, in this order: its pose or what it does; the background and what stands around it; the view, that is "
    "the camera angle and the framing; the style or medium, for example photo, macro style or oil painting.",
    "style": "Describe this image in one sentence of fewer than 50 words. Describe fully who or what it shows, what "
    'they do, and everything around them, and end the sentence with exactly "{name}". '
    "Say nothing about colours, lines, brush strokes, texture or medium: those belong to the style.",
}
_INSTRUCTION_END = (
    " Name only what can be seen: no mood, no opinions, no guesses about brands, names or places. "
    "Answer with the sentence alone: no list, no introduction, no quotation marks."
)

# What surrounds the caption in an answer, in the order in which it is replaced: what it is, its pattern, what is left.
FRAME = (
    ("thoughts", rf"(?s:<({any_of(words.THOUGHT)})>.*?(?:</\1>|\Z))", " "),
    ("a thought that the prompt opened", rf"\A(?s:.*)</{any_of(words.THOUGHT)}>", ""),
    ("all before the model's turn",
     r"\A(?s:.*)(?:<\|im_start\|>\s*assistant\b|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>"
     r"|<\|assistant\|>|<start_of_turn>\s*model\b|\[/INST\]|(?-i:\bASSISTANT:)"
     rf"|^\W{{0,5}}{any_of(words.ROLE)}[ \t]*\W{{0,3}}:)", ""),
    ("all after it", r"(?:<\|(?:im_end|eot_id|end|endoftext)\|>|<end_of_turn>|</s>|<eos>)(?s:.*)", ""),
    ("tags", rf"<\|[^<>|]{{0,40}}\|>|</?{any_of(words.TAG)}>|</[a-z]{{1,20}}>|\[/?INST\]", " "),
    ("a role without its tag", rf"\A\s*{any_of(words.ROLE)}\s*\n", ""),
    ("code fences and rules", r"^[ \t]*(?:```.*|-{3,}|\*{3,}|_{3,}|={3,})[ \t]*$", ""),
    ("headings, quotes, lists", r"^[ \t]*(?:#{1,6}|>|[-*+\u2022\u2013]|\d{1,2}[.)])[ \t]+", ""),
    ("emphasis", r"\*+|`+|(?<!\w)_+(?=\w)|(?<=[^\W_])_{1,3}(?!\w)", ""),
    ("a title", rf"^[ \t]*(?:{any_of(words.CAPTION_KIND)} )?{any_of(words.CAPTION)}s?[ \t]*$", ""),
    ("talk about the caption", rf"(?:^|(?<=[.!?\"\u201d\n])[ \t]*)\(?{any_of(words.CHATTER)}(?s:.*)", ""),
)  # fmt: skip
_PICTURE = any_of(words.PICTURE)
# What may begin an answer before the caption, several one after the other; on one line.
INTRODUCTIONS = (
    rf"{any_of(words.POLITE)}\b[!,.:]*",  # Certainly!
    rf"{any_of(words.ANNOUNCING)}\b[^:.]{{0,60}}\b{any_of(words.CAPTION)}s?\b[^:.]{{0,80}}:",  # Here is a caption:
    rf"(?:{any_of(words.CAPTION_KIND)} )?{any_of(words.CAPTION)}(?: 1| one)?(?: \([^()]{{0,40}}\))?\s*:",  # Caption:
    rf"in (?:this|the) {_PICTURE},?\s*(?:(?:we|you|one) (?:can )?see|there (?:is|are))?",  # In this image, we see
    rf"(?:the|this) {_PICTURE} {any_of(words.SHOWS)}",  # The image shows
    rf"(?:this|it) is (?:an?|the) {_PICTURE} (?:of|showing|depicting)",  # This is a photo of
    r"(?:this|it) is(?= (?:an?|the)\b)",  # This is a dog
)
_INTRODUCTION = rf"\A(?:{'|'.join(INTRODUCTIONS)})(?:\s+|(?=[\"'\u201c\u2018])|\Z)"
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb"}
_GENERIC = whole(words.GENERIC)
_STYLE_ENDING = (
    rf"(?:\b(?:all |and )?{any_of(words.MADE)}\s+)?"
    rf"(?:{STYLE_PHRASE.pattern}|\bin\s+the\s+style\s+of(?:\s+{WORD}){{1,8}})[\s.!]*\Z"
)
_UNFINISHED = (  # "The image is", once its style is gone
    rf"(?:(?<=[.!?])\s+|\A)(?:(?:the|this)\s+(?:whole |overall |entire )?{_PICTURE}|it|all|everything)"
    r"(?:\s+[\w-]+){0,2}\Z"
)


def instruction(kind: str, name: str) -> str:
    """The prompt for a vision-language model that sees one image. kind: one of CONCEPTS; name: what is learned, with
    or without angle brackets."""
    plain = _plain_name(kind, name)
    return INSTRUCTION[kind].format(name=plain if kind == "subject" else _style_words(plain)) + _INSTRUCTION_END


def plain_draft(kind: str, name: str) -> str:
    """A draft made without any model; the user replaces each [bracket] by what the image shows."""
    plain = _plain_name(kind, name)
    if kind == "subject":
        return f"a photo of {a_marked(plain)} [doing what, where], [view], [style]"
    return f"[who or what] [doing what], [where, next to what] {_style_words(name)}"


def clean_answer(answer: str, kind: str, name: str) -> str:
    """The answer of a vision-language model -> a caption of about 60 words at most.

    A subject comes out marked once, as `<name>`; a style caption ends with "in {name} style" (with the marker when
    `name` has one). Raises DCOError when nothing is left to use as a caption."""
    plain = _plain_name(kind, name)
    # our own marker must not be taken for a tag of the chat, `<image>` for one
    text = re.sub(rf"<\s*{re.escape(plain)}\s*>", lambda _: plain, answer, flags=re.IGNORECASE)
    for _, pattern, left in FRAME:
        text = re.sub(pattern, left, text, flags=_FLAGS)
    text = " ".join(re.sub(r"[<>]", "", _without_introduction(" ".join(text.split()))).split())
    if not re.search(r"\w", text):
        excerpt = " ".join(answer.split())[:80]
        raise DCOError(f"The model's answer {excerpt!r} holds no caption: type a caption, or draft it again.")
    if re.match(rf"{any_of(words.REFUSAL)}\b", text, re.IGNORECASE):
        raise DCOError(f"The model declined to describe the image ({text[:80]!r}): type a caption.")
    return _subject_caption(text, plain) if kind == "subject" else _style_caption(text, name)


def _plain_name(kind: str, name: str) -> str:
    if kind not in CONCEPTS:
        raise DCOError(f"kind {kind!r} is unknown: use one of {', '.join(CONCEPTS)}.")
    plain = " ".join(re.sub(r"[<>]", " ", name).split())
    if kind == "style":
        plain = re.sub(r"\Ain\s+", "", plain, flags=re.IGNORECASE)
    if not plain:
        example = "dog" if kind == "subject" else "flat cartoon illustration"
        raise DCOError(f"The name of the {kind} is empty ({name!r}): type it in plain words, such as {example}.")
    return plain


def _style_words(name: str) -> str:
    """`flat cartoon` or `flat cartoon style` -> `in flat cartoon style`; a marker around the name is kept."""
    plain = _plain_name("style", name)
    named = f"<{plain}>" if MARKER.search(name) else plain
    return f"in {named}" if re.search(r"\bstyle\Z", plain, re.IGNORECASE) else f"in {named} style"


def _without_introduction(text: str) -> str:
    for _ in range(6):  # "Sure! Here is a caption: The image shows ..." is three of them
        before, text = text, re.sub(_INTRODUCTION, "", text, flags=re.IGNORECASE)
        end = text.rfind(_QUOTES.get(text[:1], "\n"), 1)
        # what follows a quoted caption is talk about it; a quotation that only begins the caption stays
        if end > 0 and (not text[end + 1 :].strip(" .") or len(text[1:end].split()) >= 5):
            text = text[1:end]
        text = text.strip()
        if text == before:
            break
    return text.rstrip(" .")


def _at_most(text: str, count: int) -> str:
    """The beginning of the text with at most so many words, cut after a sentence or else at a comma."""
    if len(text.split()) <= count:
        return text
    short = " ".join(text.split()[:count])
    for ends in (r".*(?=[.!?]\s)", r".*(?=[,;]\s)"):
        # a cut that leaves almost nothing would throw away the description
        if (cut := re.match(ends, short)) and len(cut[0].split()) >= count // 3:
            return cut[0]
    return short.rstrip(" ,;.")


def _subject_caption(text: str, plain: str) -> str:
    marked = mark_word(text, plain)
    if marked == text and (match := _GENERIC.search(text)):
        marked = f"{fix_article(text[: match.start()], plain)}<{plain}>{text[match.end() :]}"
    # the marker must be among the words that are kept
    marked = _at_most(marked, _MAX_WORDS)
    if f"<{plain}>" in marked:
        return marked
    prefix = f"a photo of {a_marked(plain)}, "
    return prefix + _at_most(text, max(1, _MAX_WORDS - len(prefix.split())))


def _style_caption(text: str, name: str) -> str:
    ending = _style_words(name)
    phrase = re.escape(re.sub(r"[<>]", "", ending)).replace(r"\ ", r"\s+")
    body = text
    for pattern in (_STYLE_ENDING, rf"(?<![\w-]){phrase}(?![\w-])"):
        body = re.sub(pattern, "", body, flags=re.IGNORECASE)
    if body != text:
        body = re.sub(_UNFINISHED, "", " ".join(body.replace(" ,", ",").split()), flags=re.IGNORECASE)
    body = _at_most(body.strip(" ,;:."), max(1, _MAX_WORDS - len(ending.split()))).strip(" ,;:.")
    if not re.search(r"\w", body):
        raise DCOError(
            f"The model's answer {text[:80]!r} names the style only: type a caption that describes the image."
        )
    return f"{body} {ending}"
