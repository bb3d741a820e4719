"""Text in lines: for sheets (widths from a Pillow font) and for charts (widths from matplotlib)."""

from __future__ import annotations

from collections.abc import Callable


def wrapped(text: str, width: Callable[[str], float], room: float, lines: int | None = None) -> list[str]:
    """The text in lines that are at most `room` wide, at least one line; a word that is too long is broken.

    width: how wide a text is, such as `font.getlength`. lines: at most so many; dots stand for what is left out."""
    found = [""]
    for word in text.split():
        joined = f"{found[-1]} {word}".strip()
        if width(joined) <= room:
            found[-1] = joined
            continue
        if found[-1]:
            found.append("")
        for letter in word:
            if found[-1] and width(found[-1] + letter) > room:
                found.append("")
            found[-1] += letter
    if lines is None or len(found) <= lines:
        return found
    last = found[lines - 1]
    while last and width(last + "...") > room:
        last = last[:-1]
    return [*found[: lines - 1], last.rstrip() + "..."]
