"""Captions: `<dog>` marks what is to be learned."""

from __future__ import annotations

import re

_MARKER = re.compile(r"<([^<>]+)>")


def base_caption(caption: str) -> str:
    """What the pretrained model reads: every marker as its plain words, `a <dog> on grass` -> `a dog on grass`."""
    return _MARKER.sub(lambda match: match[1].strip(), caption)
