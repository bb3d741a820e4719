"""Text in pictures."""

from __future__ import annotations


def wrapped(text: str, font, room: float) -> list[str]:
    """The text in lines of at most `room` pixels in a Pillow font, at least one; a word that is too long is broken."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= room:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > room:
                lines.append("")
            lines[-1] += letter
    return lines
