"""The Toy World's tokenizer: one token a word."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from .world import FACTORS, TOY, Scenes

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


def caption_ids(scenes: Scenes, named: dict[str, Tensor], photo: Tensor) -> Tensor:
    """`tokenize` of the captions of B scenes without any string, on their device, for base training.

    named: of every factor whether the caption names it, bool [B]. photo: which begin with "a photo of", bool [B].
    Returns ids int64 [B, 20]."""
    device, n = scenes.shape.device, len(scenes)

    def words(text: str, where: Tensor) -> list[Tensor]:
        return [torch.where(where, _IDS[word], PAD) for word in text.split()]

    def phrases(factor: str, where: Tensor) -> list[Tensor]:
        rows = [[_IDS[word] for word in phrase.split()] for phrase in FACTORS[factor]]
        longest = max(map(len, rows))
        table = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], device=device)
        chosen = table[getattr(scenes, factor)]
        return [torch.where(where, chosen[:, i], PAD) for i in range(longest)]

    always = torch.ones(n, dtype=torch.bool, device=device)
    slots = [torch.full((n,), BEGIN, device=device), *words("a photo of", photo), *words("a", always)]
    slots += phrases("size", named["size"])
    slots += phrases("colour", named["colour"] & (scenes.shape != TOY))
    slots += phrases("shape", named["shape"]) + words("thing", ~named["shape"])
    slots += phrases("position", named["position"]) + phrases("background", named["background"])
    slots += words("in", named["style"]) + phrases("style", named["style"]) + words("style", named["style"])
    slots.append(torch.full((n,), END, device=device))
    ids = torch.stack(slots, 1)
    order = (ids == PAD).long().argsort(dim=1, stable=True)  # words first, in their order
    ids = ids.gather(1, order)[:, :MAX_TOKENS]
    return torch.nn.functional.pad(ids, (0, MAX_TOKENS - ids.shape[1]), value=PAD)
