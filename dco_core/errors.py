"""The one exception of the core."""


class DCOError(ValueError):
    """Something the user can put right. The message is one sentence that names the value and the remedy;
    nodes show it as it is."""
