"""The one exception of the core, and other people's text made fit to be shown."""


def printable(text: str) -> str:
    """Other people's text on one line: line breaks, control codes of terminals and the like as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Text of several lines, each of them printable: for whatever goes to a terminal, a log or a node."""
    return "\n".join(map(printable, text.split("\n")))


class DCOError(ValueError):
    """Something the user can put right. The message is one sentence that names the value and the remedy, on one
    printable line whatever it quotes; nodes show it as it is."""

    def __init__(self, message: str):
        super().__init__(printable(message))
