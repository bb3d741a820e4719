"""`my_style.safetensors=0.8`: a LoRA file with its weight, as the command line and the node write it."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import DCOError


def parse_file_weight(text: str, is_file: Callable[[str], bool]) -> tuple[str, float]:
    """ "a.safetensors=-0.5" -> name and weight; 1 without one. A name may hold "=" itself: what is a file as a whole
    has no weight, otherwise the weight stands behind the last "=".

    Raises DCOError for a weight of a file that is no number. A name that is no file is returned: who opens it knows
    best what to say."""
    if is_file(text):
        return text, 1.0
    name, found, weight = text.rpartition("=")
    if not found:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        if is_file(name):
            raise DCOError(f'{text}: "{weight}" is no weight: write FILE=NUMBER.') from None
        return text, 1.0
