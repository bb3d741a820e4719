"""The Toy World's tokenizer: one token a word."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from .world import FACTORS

MAX_TOKENS = 20
PAD, BEGIN, END, UNKNOWN = range(4)
_SPECIAL = ("<pad>", "<begin>", "<end>", "<unknown>")
_FRAME = "a an the photo picture of thing style with and two".split()


def _vocabulary() -> tuple[str, ...]:
    words = list(_FRAME)
    for names in FACTORS.values():
        for phrase in names:
            words += phrase.split()
    return _SPECIAL + tuple(dict.fromkeys(words))


VOCABULARY = _vocabulary()
_IDS = {word: i for i, word in enumerate(VOCABULARY)}
_WORD = re.compile(r"[a-z]+")


def token_ids(text: str) -> list[int]:
    """Word ids without begin, end and padding; letter case and punctuation do not matter."""
    return [_IDS.get(word, UNKNOWN) for word in _WORD.findall(text.lower())]


def tokenize(texts: list[str]) -> Tensor:
    """Texts -> ids int64 [B, 20]: begin, words, end, padding. Words past the 18th are cut off."""
    rows = torch.full((len(texts), MAX_TOKENS), PAD, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        ids = [BEGIN, *token_ids(text)[: MAX_TOKENS - 2], END]
        row[: len(ids)] = torch.tensor(ids)
    return rows
