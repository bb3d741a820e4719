"""Learned tokens in the CLIP text encoders of a diffusers pipeline.

The pipeline itself reads the prompt. For that moment its tokenizers are told where a marker's rows stand, with the id
of a common token in each of their places, and a hook on the embedding puts the rows there. So the tables stay as they
are, and the place of the end token, where the prompt is pooled, is found as always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..captions.markers import base_caption, split_at_markers
from ..training.learned_tokens import LearnedTokens, TokenSpec, known_rows, started
from .image_model import TokenRows


class PipelineTokens:
    """A TokenReader (image_model.py). read: the pipeline's reading of a prompt without markers, with gradient.
    encoders: {its name in files: (the pipeline's tokenizer, its text encoder, as attributes are named)}."""

    def __init__(self, pipeline: Any, encoders: Mapping[str, tuple[str, str]], read: Callable[[str], Any]):
        self._pipeline, self._encoders, self._read = pipeline, encoders, read

    def start(self, specs: Sequence[TokenSpec], seed: int, known: TokenRows) -> LearnedTokens:
        tables = {
            name: _Table(getattr(self._pipeline, tokenizer), getattr(self._pipeline, encoder))
            for name, (tokenizer, encoder) in self._encoders.items()
        }
        return started(specs, seed, known, tables)

    def encode(self, captions: Sequence[str], rows: TokenRows, initializers: Mapping[str, str]) -> list[Any]:
        with torch.no_grad():
            return [self._encoded(caption, rows, initializers) for caption in captions]

    def trained(self, tokens: LearnedTokens) -> Callable[[str], Callable[[], Any]]:
        for _, encoder in self._encoders.values():
            getattr(self._pipeline, encoder).requires_grad_(False)
        tokens.to(self._pipeline.device)
        return lambda caption: lambda: self._encoded(caption, tokens.rows(), tokens.initializers)

    def _encoded(self, caption: str, rows: TokenRows, initializers: Mapping[str, str]) -> Any:
        with self._told_of(rows, initializers):
            return self._read(caption)

    @contextmanager
    def _told_of(self, rows: TokenRows, initializers: Mapping[str, str]) -> Iterator[None]:
        """Inside, the pipeline reads `rows` in place of their markers, and other markers as their words."""
        before, hooks = {}, []
        try:
            for name, (tokenizer, encoder) in self._encoders.items():
                embedding = getattr(self._pipeline, encoder).get_input_embeddings()
                width = embedding.weight.shape[1]
                own = {token: known_rows(by_encoder, token, name, width) for token, by_encoder in rows.items()}
                marked = _MarkedTokenizer(getattr(self._pipeline, tokenizer), own, initializers)
                before[tokenizer] = getattr(self._pipeline, tokenizer)
                vars(self._pipeline)[tokenizer] = marked  # a pipeline writes what is set into its configuration
                hooks.append(embedding.register_forward_hook(marked.fill))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for tokenizer, original in before.items():
                vars(self._pipeline)[tokenizer] = original


class _MarkedTokenizer:
    """A CLIP tokenizer that knows markers, for one prompt at a time."""

    def __init__(self, tokenizer: Any, rows: Mapping[str, Tensor], initializers: Mapping[str, str]):
        self._tokenizer, self._rows, self._initializers = tokenizer, rows, initializers
        special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        self._stand_in = next(i for i in range(4) if i not in special)
        self._places: list[tuple[int, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(
        self, prompt: str | list[str], padding: str = "longest", max_length: int | None = None, **_: Any
    ) -> SimpleNamespace:
        """As pipelines call it: padded and cut off at max_length, or as long as it is."""
        (text,) = [prompt] if isinstance(prompt, str) else prompt
        entries = self._entries(text)
        if max_length is not None:
            entries = entries[: max_length - 2]
            self._places = [(1 + i, e) for i, e in enumerate(entries) if isinstance(e, Tensor)]
        ids = [self._stand_in if isinstance(e, Tensor) else e for e in entries]
        ids = [self._tokenizer.bos_token_id, *ids, self._tokenizer.eos_token_id]
        padded = (max_length or len(ids)) - len(ids)
        return SimpleNamespace(
            input_ids=torch.tensor([ids + [self._tokenizer.pad_token_id] * padded]),
            attention_mask=torch.tensor([[1] * len(ids) + [0] * padded]),
        )

    def _entries(self, text: str) -> list[int | Tensor]:
        """Token ids, and rows where a marker's vectors stand."""
        entries: list[int | Tensor] = []
        words = ""
        for piece, marker in split_at_markers(text):
            if marker and piece in self._rows:
                entries += [*self._ids(words), *self._rows[piece]]
                words = ""
            else:
                words += base_caption(f"<{piece}>", self._initializers) if marker else piece
        return [*entries, *self._ids(words)]

    def _ids(self, words: str) -> list[int]:
        return _plain_ids(self._tokenizer, words)

    def fill(self, module: Any, inputs: Any, embedded: Tensor) -> Tensor:
        """Forward hook of the embedding: what it gives [1, n, width], with the rows in their places."""
        if not self._places:
            return embedded
        at = torch.tensor([place for place, _ in self._places], device=embedded.device)
        rows = torch.stack([row for _, row in self._places]).to(embedded)
        return embedded.index_copy(1, at, rows[None])


class _Table:
    """An encoder's embedding table (a TextTable)."""

    def __init__(self, tokenizer: Any, encoder: Any):
        self._tokenizer, self.weight = tokenizer, encoder.get_input_embeddings().weight.detach()

    def has_token(self, text: str) -> bool:
        return text in self._tokenizer.get_vocab()

    def ids(self, words: str) -> list[int]:
        ids = _plain_ids(self._tokenizer, words)
        return [] if self._tokenizer.unk_token_id in ids else ids

    def rows(self, ids: Sequence[int]) -> Tensor:
        return self.weight[list(ids)]


def _plain_ids(tokenizer: Any, words: str) -> list[int]:
    """The ids of some words, without begin and end."""
    return list(tokenizer(words, add_special_tokens=False).input_ids) if words.strip() else []
