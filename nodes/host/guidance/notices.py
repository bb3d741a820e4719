"""Warnings that are shown once in a session of the host, however many pictures they hold for."""

from __future__ import annotations

import logging

from ....dco_core.errors import printable_lines

_shown: set[str] = set()


def say_once(text: str) -> None:
    if text not in _shown:
        _shown.add(text)
        logging.warning("DCO: %s", printable_lines(text))
