"""The English words that the caption check goes by: views, styles, places, and identifiers that are no words."""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _any_of(text: str) -> re.Pattern[str]:
    """A pattern for any of the whole words; `_` in a word stands for a space, a hyphen or nothing."""
    words = "|".join(word.replace("_", r"[\s-]?") for word in text.split())
    return re.compile(rf"(?<![\w-])(?:{words})(?![\w])", re.IGNORECASE)


MARKER = re.compile(r"<([^<>]*\w[^<>]*)>")
BRACKETS = re.compile(r"\[[^\[\]]*\]")

# identifiers from DreamBooth tutorials; short abbreviations that people write are left out
_RARE_WORDS = _words("sks ohwx okwx zwx zwxx shs bnha olis ukj xyz zxc qwx xjy xjq lkj zkz vtn sksdog")
_RARE_SHAPE = re.compile(
    r"\[(?:[A-Za-z]\d*\*?|\*)\]|<(?:[A-Za-z]\d*_?\*?|\*|new\d+)>|(?<![\w*])[A-Za-z]{1,2}\d*_?\*(?![\w*])"
)
_LATIN = re.compile(r"(?<!\w)[A-Za-z][A-Za-z0-9]*(?!\w)")

VIEW = _any_of(
    "close_up closed_up close-ups side_view front_view rear_view back_view view views viewed viewpoint perspective "
    "portrait angle angled low_angle high_angle wide_angle eye_level from_above from_below from_behind "
    "from_the_(?:side|front|back|left|right|top) seen_from wide aerial bird's_eye birds_eye top_down overhead "
    "full_body half_body upper_body full_length headshot profile shot framing framed centered centred cropped "
    "zoomed fish_?eye telephoto flat_?lay facing macro depth_of_field bokeh three_quarter looking_at_the_camera "
    "(?:on|at|to|in)_the_(?:left|right|middle|center|centre|foreground)"
)
_MEDIUM = (
    "style styled painting painted watercolou?r cartoon illustration illustrated illustrations macro drawing drawn "
    "sketch 3d_render render rendering rendered cgi anime manga comic pixel_art line_art clip_?art vector_art "
    "line_drawing woodcut linocut engraving etching lithograph oil_painting acrylic gouache pastel crayon charcoal "
    "origami mosaic collage claymation low_poly isometric ukiyo-e cubis[mt] impressionis[mt] surrealis[mt] minimalist "
    "pop_art graffiti mural fresco embroidery stained_glass papercut paper_cut screen_?print risograph screenshot "
    "artwork photography black_and_white monochrome sepia polaroid cinematic hyperrealistic photorealistic realistic"
)
STYLE = _any_of(f"photo photos photograph photographs photographic snapshot selfie {_MEDIUM}")
NAMED_STYLE = _any_of(_MEDIUM)

BACKGROUND_WORD = _any_of(
    "background backgrounds backdrop backdrops outdoors outdoor indoors indoor surroundings surrounded scenery "
    "landscape scene"
)
PLACE = re.compile(
    r"(?<![\w-])(?:in front of|in the (?:middle|center|centre|corner) of|on (?:the )?(?:top|side|edge) of"
    r"|on the (?:left|right) side of|at the (?:edge|foot|end|top|bottom) of|next to|close to|underneath|beneath"
    r"|under|behind|besides?|near|by (?=an?\b|the\b)|against|inside|outside|within|alongside|along|amongst?|amidst?"
    r"|between|around|across|atop|upon|through|onto|into|above|below|over|in|on|at)"
    r"((?:\s+[\w'-]+){1,4})",
    re.IGNORECASE,
)
# what may follow "in", "on" or "at" and yet says nothing about the surroundings
NO_PLACE = _words(
    "left right middle center centre camera viewer lens side focus profile motion detail details style view shot angle "
    "level portrait close-up closeup photo picture image photograph color colour monochrome film foreground frame "
    "hat dress costume sweater coat suit shirt jacket uniform collar glasses sunglasses scarf leash legs leg paws paw "
    "feet back head face mouth hand hands arm arms neck all it them him her"
)
STOP = _words(
    "a an the and or but with without of in on at by to from for as is are was were be being that which who whose "
    "while it its his her their this these those front under behind near next inside outside over above below "
    "against beside around through between into onto upon sits sit stands stand lies lie lays looks look wears "
    "holds has have runs walks sleeps rests poses works plays up down very some two three sitting standing"
)
LEAD = re.compile(
    r"(?<!\w)(?:photos?|photographs?|pictures?|images?|paintings?|drawings?|illustrations?|renders?|renderings?"
    r"|sketch|portraits?|shot|view|close-?up|cartoon|snapshot|selfie) of\b",
    re.IGNORECASE,
)


def _is_rare(word: str) -> bool:
    """Whether a word of letters and digits is an identifier: `sks`, `ohwx2`, `xjq7`; not `3d`, `mp3`, `GTX1080`."""
    low = word.lower()
    if word == "TOK" or low in _RARE_WORDS or low.rstrip("0123456789") in _RARE_WORDS:
        return True
    groups = re.findall(r"\d+|[a-z]+", low)
    if len(groups) < 2 or word.isupper():
        return False
    consonants = re.fullmatch(r"[^aeiou\d]{3,}", groups[0])
    return bool(len(groups) == 2 and consonants) or (len(groups) >= 4 and low not in ("r2d2", "r2d2s"))


def rare_spans(text: str) -> list[tuple[int, int]]:
    spans = [match.span() for match in _RARE_SHAPE.finditer(text)]
    for match in re.finditer(r"<[^<>]*>|\[[^\[\]]*\]", text):
        words = re.findall(r"[^\W_]+", match[0])
        if words and all(map(_is_rare, words)):
            spans.append(match.span())
    for match in _LATIN.finditer(text):
        inside = any(a <= match.start() and match.end() <= b for a, b in spans)
        if not inside and _is_rare(match[0]):
            spans.append(match.span())
    return sorted(set(spans))
