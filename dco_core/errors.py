"""The one exception of the core."""


def printable(text: str) -> str:
    """Other people's text on one line: line breaks, control codes of terminals and the like as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class DCOError(ValueError):
    """Something the user can put right. The message is one sentence that names the value and the remedy;
    nodes show it as it is."""
