"""The one exception of the core, and how other people's text is read and shown."""

import json
from typing import Any


def printable(text: str) -> str:
    """Other people's text on one line: line breaks, control codes of terminals and the like as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Text of several lines, each of them printable: for whatever goes to a terminal, a log or a node."""
    return "\n".join(map(printable, text.split("\n")))


def shortened(value: object) -> str:
    """A value out of a file for a message: printable, and never longer than a line."""
    text = (
        printable(repr(value))
        if isinstance(value, (str, int, float, type(None)))
        else f"a {type(value).__name__}"
    )
    return text if len(text) <= 60 else f"{text[:57]}..."


def parsed_json(text: str | bytes) -> Any:
    """json.loads for text of a file. ValueError for all that is none, what is nested too deep among it."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


class DCOError(ValueError):
    """Something the user can put right. The message is one sentence that names the value and the remedy, on one
    printable line whatever it quotes; nodes show it as it is."""

    def __init__(self, message: str):
        super().__init__(printable(message))

    def __reduce__(self):
        return _again, (str(self),)


def _again(message: str) -> DCOError:
    return DCOError(message)


# The host puts the class's full name before the sentence. As one of the built-in exceptions it is "DCOError" alone,
# without the path of modules, in the frontend and in logs; __reduce__ lets it travel between processes all the same.
DCOError.__module__ = "builtins"
