"""Prompts whose meaning training is to leave alone."""

from __future__ import annotations

from ..errors import DCOError

BLANK, CLASS, BUNDLED = "blank", "class", "bundled"

# Things, people, places and looks that a subject or style often spills into.
PROMPTS = (
    "a photo of a man", "a photo of a woman", "a portrait of a child", "a group of people at a table",
    "a photo of a dog", "a photo of a cat", "a horse in a field", "a bird on a branch", "a fish in an aquarium",
    "a teddy bear on a bed", "a red car on a street", "a bicycle against a wall", "a train at a station",
    "a sailing boat at sea", "a cup of coffee on a table", "a bowl of fruit", "a vase of flowers on a windowsill",
    "a pair of shoes", "a backpack on a bench", "a wooden chair in an empty room", "a house with a garden",
    "a city street at night", "a mountain lake in the morning", "a forest in autumn", "a beach at sunset",
    "a desert under a blue sky", "snow on a village", "the inside of a kitchen", "a bookshelf full of books",
    "a clock on a tower", "an oil painting of a landscape", "a pencil drawing of a hand", "a watercolour of a flower",
    "an illustration of a castle", "a black and white photo of a bridge", "a logo of a star", "a close-up of a leaf",
    "a statue in a park", "a plate of pasta", "a guitar on a sofa",
)  # fmt: skip


def preservation_lines(text: str) -> list[str]:
    """The entries of preservation_prompts: prompts, or `blank` (the empty prompt), `class` (that of the subject's
    class) and `bundled` (PROMPTS), on lines of their own or between semicolons. DCOError where there is nothing
    between them."""
    parts = (part.strip() for part in ";".join(text.splitlines()).split(";"))
    found = list(dict.fromkeys(filter(None, parts)))
    if text.strip() and not found:
        raise DCOError(
            f'preservation_prompts "{text.strip()}" has no prompt: write blank, class, bundled, or prompts of your own '
            "between semicolons or on lines."
        )
    return found


def preservation_prompts(text: str, class_prompt: str = "") -> list[str]:
    """The prompts, each once, in their order. class_prompt: what `class` stands for."""
    named = {BLANK: ("",), CLASS: (class_prompt,), BUNDLED: PROMPTS}
    return list(dict.fromkeys(prompt for line in preservation_lines(text) for prompt in named.get(line, (line,))))
