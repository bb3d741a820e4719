"""Warnings that are said once in a session of the host, however many pictures they hold for."""

from __future__ import annotations

import logging

from ....dco_core.errors import printable_lines

_said: set[str] = set()


def say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        logging.warning("DCO: %s", printable_lines(text))
