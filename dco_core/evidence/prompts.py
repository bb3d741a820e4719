"""Evaluation prompts as templates with a slot `{}`, from evaluation_prompts.json.

    customization   the subject in new places and with new attributes, in the style of the references
    stylization     the subject in other styles
    style           other things in the style that was learned: `{}` is the style
    merge           my subject in my style: `{}` is the subject, `{style}` the style

Customization and stylization of objects and live subjects are Table 2 of the paper word for word (its one misspelling,
"ocea", mended). The paper shows these as examples of 50 a kind, and takes 190 prompts from PartiPrompts for style;
those for style here are short things and living beings such as PartiPrompts begins with, and those for merge put Table
2's attributes into "A [subject] in [style]" (Sec. 5.3). The Toy World's name every factor of the picture, so that each
can be checked; none of customization and stylization is on the beach, where the references are.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import DCOError

PROMPT_TYPES = ("customization", "stylization", "style", "merge")
CATEGORIES = ("object", "live subject", "toy world")
STYLE_SLOT = "{style}"
NEAR, FAR, OTHERS = "near", "far", "others"  # prompts that change some of the references, all of it, and show others


@functools.cache
def _prompts() -> dict[str, dict[str, list[str]]]:
    return json.loads(Path(__file__).with_name("evaluation_prompts.json").read_text(encoding="utf-8"))


def evaluation_prompts(kind: str, category: str) -> list[str]:
    """The templates of a kind (one of PROMPT_TYPES) for a category (one of CATEGORIES); British spelling and
    underscores are read too. DCOError for any other."""
    kind = _known("kind", kind.replace("isation", "ization"), PROMPT_TYPES)
    return list(_prompts()[kind][_known("category", category, CATEGORIES)])


def _known(what: str, value: str, known: Sequence[str]) -> str:
    plain = re.sub(r"[\s_-]+", " ", value).strip().lower()
    if plain not in known:
        raise DCOError(
            f'There are no evaluation prompts of the {what} "{value}": use one of {", ".join(known)}.'
        )
    return plain


def read_prompts(file: Path) -> list[str]:
    """Prompts of one's own, one a line. DCOError for a file without any and for one that is no text."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DCOError(f"{file} cannot be read as text ({error}): write one prompt a line, in UTF-8.") from None
    if not (prompts := [line for line in lines if line]):
        raise DCOError(f"{file} has no prompts: write one a line.")
    return prompts


def fill(templates: Sequence[str], word: str, style: str | None = None) -> list[str]:
    """The prompts with `word` in the slot `{}` and `style` in `{style}`; either may be a marker such as `<dog>`. "A"
    becomes "An" before a vowel. DCOError for an empty word, for a template without a slot, and for a style that is
    missing."""
    return [_filled(template, word, style) for template in templates]


def _filled(template: str, word: str, style: str | None) -> str:
    if "{}" not in template:
        raise DCOError(
            f'The prompt "{template}" has no slot: write {{}} where the subject or the style goes.'
        )
    for slot, value in (("{}", word), (STYLE_SLOT, style)):
        if slot in template:
            template = _put(template, slot, (value or "").strip())
    return template


def _put(template: str, slot: str, value: str) -> str:
    if not value.strip("<> "):
        what = "style" if slot == STYLE_SLOT else "word"
        raise DCOError(f'The {what} for "{template}" is empty: give one, such as "dog" or "<dog>".')
    if value.strip("< ")[:1].lower() in "aeiou":
        template = re.sub(rf"\b([Aa]) (?={re.escape(slot)})", r"\1n ", template)
    return template.replace(slot, value)
