"""Drafting captions: what to ask a vision-language model about one image, and its answer made into a caption."""

from __future__ import annotations

import re

from ..errors import DCOError

KINDS = ("subject", "style")

_MAX_WORDS = 60
_WORD = r"[\w<>'&/+-]+"
# "in flat cartoon style", from the nearest "in"; a comma or another "in" ends it
STYLE_PHRASE = re.compile(rf"\bin\s+(?:(?!in\b){_WORD}\s+){{1,7}}?<?style>?(?![\w-])", re.IGNORECASE)

_IGNORE = re.IGNORECASE
_IGNORE_LINES = re.IGNORECASE | re.MULTILINE
_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.IGNORECASE | re.DOTALL)
_THOUGHT_END = re.compile(r"</(?:think|thinking|reasoning)>", _IGNORE)
_TURN = re.compile(
    r"<\|im_start\|>\s*assistant\b|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>|<\|assistant\|>"
    r"|<start_of_turn>\s*model\b|\[/INST\]|(?-i:\bASSISTANT:)|^\W{0,5}(?:assistant|model|gpt|bot)[ \t]*\W{0,3}:",
    _IGNORE_LINES,
)
_BARE_TURN = re.compile(r"\A\s*(?:assistant|model)\s*\n", _IGNORE)  # the tags around it already taken away
_TURN_END = re.compile(r"<\|(?:im_end|eot_id|end|endoftext)\|>|<end_of_turn>|</s>|<eos>", _IGNORE)
_TAG = re.compile(
    r"<\|[^<>|]{0,40}\|>|</?(?:s|bos|eos|pad|unk|image|img|answer|caption|output|response)>|</[a-z]{1,20}>"
    r"|\[/?INST\]",
    _IGNORE,
)
_MARKDOWN = (
    (re.compile(r"^[ \t]*```.*$", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*$", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*(?:#{1,6}|>|[-*+\u2022\u2013]|\d{1,2}[.)])[ \t]+", re.MULTILINE), ""),
    (re.compile(r"\*+|`+|(?<!\w)_+(?=\w)|(?<=[^\W_])_{1,3}(?!\w)"), ""),
)
_CHATTER = re.compile(
    r"(?:^|(?<=[.!?\"\u201d\n])[ \t]*)(?:let me know|i hope (?:this|that)|would you like|feel free|note:|please note"
    r"|\(?word count|this caption|option (?:2|two)\b).*",
    re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
_PICTURE = r"(?:image|photo|photograph|picture|scene|illustration|drawing|painting|artwork)"
_PREAMBLE = re.compile(
    r"(?:(?:sure(?: thing)?|certainly|of course|okay|ok|absolutely|great|here you go)\b[!,.:]*"
    r"|(?:here(?: i|')s|here are|below is|this is|the following is)\b[^:.\n]{0,60}"
    r"\b(?:captions?|descriptions?|sentences?|prompts?|options)\b[^:.\n]{0,80}:"
    r"|(?:(?:final|image|suggested|one-sentence) )?(?:captions?|descriptions?|answer|output|prompt|sentence|response"
    r"|options? (?:1|one))(?: \([^()\n]{0,40}\))?\s*:"
    rf"|in (?:this|the) {_PICTURE},?\s*(?:(?:we|you|one) (?:can )?see|there (?:is|are))?"
    rf"|(?:the|this) {_PICTURE} (?:shows|depicts|features|captures|displays|presents|portrays|showcases|contains"
    r"|illustrates|is of)"
    r"|(?:this|it) is (?:an?|the) (?:image|photo|photograph|picture) (?:of|showing|depicting)"
    r"|(?:this|it) is(?= (?:an?|the)\b)"
    r")(?:\s+|(?=[\"'\u201c\u2018])|\Z)",
    _IGNORE,
)
_REFUSAL = re.compile(
    r"(?:i'?m|i am) (?:really |very )?(?:sorry|unable)|sorry\b|i (?:can(?:no|')t|can not|do not see|don't see)\b"
    r"|as an ai\b|unfortunately\b",
    _IGNORE,
)
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb"}
_GENERIC = re.compile(r"(?<![\w<-])(?:animal|creature|object|item|subject|figure|thing)(?![\w>-])", _IGNORE)
_STYLE_ENDING = re.compile(
    rf"(?:\b(?:all |and )?(?:rendered|drawn|painted|done|depicted|illustrated|created|presented|shown)\s+)?"
    rf"(?:{STYLE_PHRASE.pattern}|\bin\s+the\s+style\s+of(?:\s+{_WORD}){{1,8}})[\s.!]*\Z",
    _IGNORE,
)
_UNFINISHED = re.compile(
    rf"(?:(?<=[.!?])\s+|\A)(?:(?:the|this)\s+(?:whole |overall |entire )?{_PICTURE}|it|all|everything)"
    r"(?:\s+[\w-]+){0,2}\Z",
    _IGNORE,
)


def article(word: str) -> str:
    """ "a" or "an" for a noun; "" for a plural such as `boots`."""
    low = word.lower()
    if re.search(r"(?:[^siu]s|ies)\Z", low) and not re.search(r"(?:lens|gas|canvas|atlas|christmas)\Z", low):
        return ""
    if re.match(r"uni(?!n)|us[eu]|eu|one\b|ute", low):
        return "a"
    return "an" if re.match(r"[aeiou]|hour|honest|heir", low) else "a"


def mark_word(text: str, word: str) -> str:
    """Put `<word>` in place of the first whole word `word` of the text, whatever its case, outside of `<...>` and
    `[...]`. The text as it was when the word does not occur."""
    spaced = r"\s+".join(re.escape(part) for part in word.split())
    # what is marked or bracketed is matched first and so stepped over
    pattern = re.compile(rf"<[^<>]*>|\[[^\[\]]*\]|(?<![\w-])(?P<word>{spaced})(?![\w-])", _IGNORE)
    for match in pattern.finditer(text):
        if spaced and match["word"]:
            return f"{text[: match.start()]}<{word}>{text[match.end() :]}"
    return text


def fix_article(before: str, noun: str) -> str:
    """The text that comes before a noun, its last "a" or "an" changed to the one the noun takes."""

    def right(match: re.Match[str]) -> str:
        wanted = article(noun) or match[1].lower()
        return (wanted.capitalize() if match[1][0].isupper() else wanted) + match[2]

    return re.sub(r"(?<![\w'-])(an?)(\s+)\Z", right, before, flags=_IGNORE)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise DCOError(f"kind {kind!r} is unknown: use one of {', '.join(KINDS)}.")


def _plain_name(kind: str, name: str) -> str:
    plain = " ".join(re.sub(r"[<>]", " ", name).split())
    if kind == "style":
        plain = re.sub(r"\Ain\s+", "", plain, flags=_IGNORE)
    if not plain:
        example = "dog" if kind == "subject" else "flat cartoon illustration"
        raise DCOError(
            f"The name of the {kind} is empty ({name!r}): type it in plain words, such as {example}."
        )
    return plain


def _style_words(name: str) -> str:
    """`flat cartoon` or `flat cartoon style` -> `in flat cartoon style`; a marker around the name is kept."""
    plain = _plain_name("style", name)
    whole = re.search(r"\bstyle\Z", plain, _IGNORE)
    words = f"<{plain}>" if re.search(r"<[^<>]*\w[^<>]*>", name) else plain
    return f"in {words}" if whole else f"in {words} style"


def _a_marked(plain: str) -> str:
    return f"{article(plain)} <{plain}>".strip()


def instruction(kind: str, name: str) -> str:
    """The prompt for a vision-language model that sees one image. kind: one of KINDS; name: what is learned, with
    or without angle brackets."""
    _check_kind(kind)
    plain = _plain_name(kind, name)
    rules = (
        "Name only what can be seen: no mood, no opinions, no guesses about brands, names or places. "
        "Answer with the sentence alone: no list, no introduction, no quotation marks."
    )
    if kind == "subject":
        return (
            "Describe this image in one sentence of fewer than 50 words. "
            f'Call the subject exactly "{plain}", with no other word for it. '
            "Then say, in this order: its pose or what it does; the background and what stands around it; the view, "
            "that is the camera angle and the framing; the style or medium, for example photo, macro style or oil "
            f"painting. {rules}"
        )
    ending = _style_words(plain)
    return (
        "Describe this image in one sentence of fewer than 50 words. Describe fully who or what it shows, what they "
        f'do, and everything around them, and end the sentence with exactly "{ending}". '
        "Say nothing about colours, lines, brush strokes, texture or medium: those belong to the style. "
        f"{rules}"
    )


def plain_draft(kind: str, name: str) -> str:
    """A draft made without any model; the user replaces each [bracket] by what the image shows."""
    _check_kind(kind)
    plain = _plain_name(kind, name)
    if kind == "subject":
        return f"a photo of {_a_marked(plain)} [doing what, where], [view], [style]"
    return f"[who or what] [doing what], [where, next to what] {_style_words(name)}"


def _without_frame(answer: str) -> str:
    """The answer without thoughts, chat tags and markdown; lines are kept."""
    text = _THOUGHT.sub(" ", answer)
    text = _THOUGHT_END.split(text)[-1]  # some templates open the thought in the prompt
    text = _TURN.split(text)[-1]
    text = _BARE_TURN.sub("", _TAG.sub(" ", _TURN_END.split(text.lstrip() or " ")[0]))
    for pattern, new in _MARKDOWN:
        text = pattern.sub(new, text)
    return text


def _without_talk(text: str) -> str:
    """One line without introductions, closing offers and quotation marks."""
    text = " ".join(_CHATTER.sub("", text).split())
    for _ in range(6):  # "Sure! Here is a caption: The image shows ..." is three of them
        before = text
        if match := _PREAMBLE.match(text):
            text = text[match.end() :]
        if text[:1] in _QUOTES and (end := text.rfind(_QUOTES[text[0]], 1)) > 0:
            rest = text[end + 1 :].strip(" .")
            # what follows a quoted caption is talk about it; a quotation that only begins the caption stays
            if not rest or len(text[1:end].split()) >= 5:
                text = text[1:end]
        text = text.strip()
        if text == before:
            break
    return text.rstrip(" .")


def _at_most(text: str, words: int) -> str:
    """The beginning of the text with at most so many words, cut after a sentence or else at a comma."""
    parts = text.split()
    if len(parts) <= words:
        return text
    short = " ".join(parts[:words])
    for ends in (r"[.!?](?=\s)", r"[,;](?=\s)"):
        cuts = [match.start() for match in re.finditer(ends, short)]
        # a cut that leaves almost nothing would throw away the description
        if cuts and len(short[: cuts[-1]].split()) >= words // 3:
            return short[: cuts[-1]]
    return short.rstrip(" ,;.")


def _subject_caption(text: str, plain: str) -> str:
    marked = mark_word(text, plain)
    if marked == text and (match := _GENERIC.search(text)):
        marked = f"{fix_article(text[: match.start()], plain)}<{plain}>{text[match.end() :]}"
    # the marker must be among the words that are kept
    marked = _at_most(marked, _MAX_WORDS)
    if f"<{plain}>" in marked:
        return marked
    prefix = f"a photo of {_a_marked(plain)}, "
    rest = _at_most(text, max(1, _MAX_WORDS - len(prefix.split())))
    return prefix + rest


def _style_caption(text: str, name: str) -> str:
    ending = _style_words(name)
    phrase = re.escape(re.sub(r"[<>]", "", ending)).replace(r"\ ", r"\s+")
    body = _STYLE_ENDING.sub("", text)
    body = re.sub(rf"(?<![\w-]){phrase}(?![\w-])", "", body, flags=_IGNORE)
    if body != text:
        body = _UNFINISHED.sub("", " ".join(body.replace(" ,", ",").split()))
    body = _at_most(body.strip(" ,;:."), max(1, _MAX_WORDS - len(ending.split()))).strip(" ,;:.")
    if not re.search(r"\w", body):
        raise DCOError(
            f"The model's answer {text[:80]!r} names the style only: type a caption that describes the image."
        )
    return f"{body} {ending}"


def clean_answer(answer: str, kind: str, name: str) -> str:
    """The answer of a vision-language model -> a caption of about 60 words at most.

    A subject comes out marked once, as `<name>`; a style caption ends with "in {name} style" (with the marker when
    `name` has one). Raises DCOError when nothing is left to use as a caption."""
    _check_kind(kind)
    plain = _plain_name(kind, name)
    # our own marker must not be taken for a tag of the chat, `<image>` for one
    text = re.sub(rf"<\s*{re.escape(plain)}\s*>", lambda _: plain, answer, flags=_IGNORE)
    text = re.sub(r"[<>]", "", _without_talk(_without_frame(text)))
    text = " ".join(text.split())
    if not re.search(r"\w", text):
        raise DCOError(
            f"The model's answer {' '.join(answer.split())[:80]!r} holds no caption: "
            "type a caption, or draft it again."
        )
    if _REFUSAL.match(text):
        raise DCOError(f"The model declined to describe the image ({text[:80]!r}): type a caption.")
    return _subject_caption(text, plain) if kind == "subject" else _style_caption(text, name)
