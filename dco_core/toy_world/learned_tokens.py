"""Learned tokens in the Toy World's text encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..captions.markers import split_at_markers
from ..training.learned_tokens import LearnedTokens, TokenSpec, known_rows, started
from .text_encoder import TextEncoder
from .tokenizer import BEGIN, END, MAX_TOKENS, PAD, UNKNOWN, VOCABULARY, token_ids

ENCODER = "toy_world"  # its name in files

TokenRows = Mapping[str, Mapping[str, Tensor]]  # {token name: {encoder: [n, width]}}


class ToyTokens:
    """A TokenReader (models/image_model.py)."""

    def __init__(self, text_encoder: TextEncoder):
        self._encoder, self._table = text_encoder, _Words(text_encoder)

    def start(self, specs: Sequence[TokenSpec], seed: int, known: TokenRows) -> LearnedTokens:
        return started(specs, seed, known, {ENCODER: self._table})

    def encode(self, captions: Sequence[str], rows: TokenRows, initializers: Mapping[str, str]) -> list[Tensor]:
        with torch.no_grad():
            return [self._read(caption, self._checked(rows), initializers) for caption in captions]

    def trained(self, tokens: LearnedTokens) -> Callable[[str], Callable[[], Tensor]]:
        tokens.to(self._table.weight.device)
        rows = self._checked(tokens.rows())
        return lambda caption: lambda: self._read(caption, rows, tokens.initializers)

    def _checked(self, rows: TokenRows) -> dict[str, Tensor]:
        width = self._table.weight.shape[1]
        return {name: known_rows(by_encoder, name, ENCODER, width) for name, by_encoder in rows.items()}

    def _read(self, caption: str, rows: Mapping[str, Tensor], initializers: Mapping[str, str]) -> Tensor:
        """A caption's conditioning [20, 128], with `rows` in place of their markers."""
        table = self._table.weight
        entries: list[Tensor] = []
        for piece, marker in split_at_markers(caption):
            if marker and piece in rows:
                entries += rows[piece].to(table)
            else:
                entries += table[token_ids(initializers.get(piece, piece) if marker else piece)]
        entries = [table[BEGIN], *entries[: MAX_TOKENS - 2], table[END]]
        entries += [table[PAD]] * (MAX_TOKENS - len(entries))
        return self._encoder(embeddings=torch.stack(entries)[None])[0]


class _Words:
    """The word table (a TextTable)."""

    def __init__(self, text_encoder: TextEncoder):
        self.weight = text_encoder.token_embedding.weight

    def has_token(self, text: str) -> bool:
        return text in VOCABULARY

    def ids(self, words: str) -> list[int]:
        ids = token_ids(words)
        return [] if UNKNOWN in ids else ids

    def rows(self, ids: Sequence[int]) -> Tensor:
        return self.weight[list(ids)]
