"""Learned tokens in the host's text encoders: where a marker's rows stand among the tokens of a prompt, their
start, and encoding with gradient.

The host's tokenizer knows `embedding:name` and puts vectors in its place. Here a marker becomes such a name whose
vectors are looked up in memory, so the host itself decides where they stand, how they are padded and where the
prompt is pooled (at the end token).
"""

from __future__ import annotations

import copy
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.clip_model
import comfy.model_management
import comfy.sd1_clip
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ....dco_core.captions.markers import base_caption, split_at_markers
from ....dco_core.errors import DCOError
from ....dco_core.training.learned_tokens import LearnedTokens, TokenSpec, known_rows, started
from ..connected import clip_of
from .shared_weights import network_on_same_storage

# The encoders whose rows mean the same wherever the token stands: CLIP's, and the Toy World's.
_ENCODERS = ("clip_l", "clip_g", "clip_h", "toy_world")

TokenRows = Mapping[str, Mapping[str, Tensor]]  # {token name: {encoder: [n, width]}}
Tokens = dict[str, list]  # the host's: {encoder's key: [[(id or vector, weight), ...], ...]}


@dataclass(frozen=True)
class _Row:
    """Stands for one vector of a token until encoding."""

    name: str
    encoder: str
    index: int


class _Rows:
    """What the host's tokenizer asks of an embedding."""

    def __init__(self, name: str, encoder: str, n: int):
        self.name, self.encoder, self.shape = name, encoder, (n, 0)

    def __getitem__(self, index: int) -> _Row:
        return _Row(self.name, self.encoder, index)


def _tokenizers(clip) -> dict[str, comfy.sd1_clip.SDTokenizer]:
    """The tokenizers of a CLIP by the name of their embeddings. DCOError for encoders that cannot learn."""
    found = {t.embedding_key: t for t in _plain_tokenizers(clip_of(clip))}
    other = [name for name in found if name not in _ENCODERS]
    if not found or other:
        names = f"has {', '.join(other)}" if other else "is of another kind"
        raise DCOError(
            "Learned tokens need CLIP text encoders (SD1.5, SD2, SDXL) or the Toy World's; this one "
            f"{names}. Turn learned tokens off: the LoRA learns the subject without them."
        )
    return found


def _encoder(cond_stage_model, name: str):
    return getattr(cond_stage_model, name)


def prompt_limit(clip) -> int | None:
    """How many tokens the encoder reads at once, begin and end left out; None if that is not known."""
    tokenizer = next(iter(_plain_tokenizers(clip)), None)
    return None if tokenizer is None or tokenizer.max_length > 1000 else tokenizer.max_length - 2


def prompt_length(clip, text: str, vectors: Mapping[str, int] | None = None) -> int:
    """Number of tokens of a prompt, begin and end left out. vectors: of learned tokens, which count as so many;
    other markers count as their words."""
    learned, texts = vectors or {}, [""]
    rows = 0
    for piece, marker in split_at_markers(text):
        if marker and piece in learned:
            rows += learned[piece]
            texts.append("")
        else:
            texts[-1] += piece
    lengths = (sum(len(_ids(t, part)) for part in texts if part.strip()) for t in _plain_tokenizers(clip))
    return rows + max(lengths)


def _plain_tokenizers(clip) -> list[comfy.sd1_clip.SDTokenizer]:
    parts = vars(clip.tokenizer).values() if hasattr(clip, "tokenizer") else ()
    return [t for t in parts if isinstance(t, comfy.sd1_clip.SDTokenizer)]


def _ids(tokenizer, text: str) -> list[int]:
    end = -1 if tokenizer.tokenizer_adds_end_token else None
    return tokenizer.tokenizer(text)["input_ids"][tokenizer.tokens_start : end]


class _Table:
    """An encoder's embedding table (a TextTable)."""

    def __init__(self, clip, encoder: str, tokenizer):
        self._tokenizer = tokenizer
        self._embedding = _encoder(clip.cond_stage_model, encoder).transformer.get_input_embeddings()
        self.weight = self._embedding.weight

    def has_token(self, text: str) -> bool:
        return text in self._tokenizer.tokenizer.get_vocab()

    def ids(self, words: str) -> list[int]:
        ids = _ids(self._tokenizer, words)
        return [] if getattr(self._tokenizer.tokenizer, "unk_token_id", None) in ids else ids

    def rows(self, ids: Sequence[int]) -> Tensor:
        return self._embedding(torch.tensor([ids], device=self.weight.device), out_dtype=torch.float32)[0]


def start(clip, specs: Sequence[TokenSpec], seed: int, known: TokenRows | None = None) -> LearnedTokens:
    """The rows of new tokens in the CLIP's own encoders (see `started`). Raises DCOError for encoders that cannot
    learn, too."""
    tokenizers = _tokenizers(clip)
    comfy.model_management.load_models_gpu([clip.patcher])
    tables = {encoder: _Table(clip, encoder, tokenizer) for encoder, tokenizer in tokenizers.items()}
    with torch.inference_mode(False):  # rows made in inference mode could not train
        return started(specs, seed, known or {}, tables)


class PromptReader:
    """Reads prompts with markers: `<name>` for the given rows, other markers as their words.

    rows: {token name: {encoder: [n, width]}}; looked up when tokens are filled in, so rows in training can be
    handed over as they are.
    """

    def __init__(self, clip, rows: TokenRows, initializers: Mapping[str, str] | None = None):
        self.clip, self.rows, self.initializers = clip, rows, dict(initializers or {})
        self._keys = {name: f"dco-learned-{i}" for i, name in enumerate(rows)}
        self._tokenizer = copy.copy(clip.tokenizer)
        for encoder, original in _tokenizers(clip).items():
            for name, by_encoder in rows.items():
                width = (
                    _encoder(clip.cond_stage_model, encoder)
                    .transformer.get_input_embeddings()
                    .weight.shape[1]
                )
                known_rows(by_encoder, name, encoder, width)
            attribute = next(a for a, t in vars(clip.tokenizer).items() if t is original)
            setattr(self._tokenizer, attribute, self._with_rows(original, encoder))

    def _with_rows(self, original, encoder: str):
        tokenizer = copy.copy(original)
        ours = {key: _Rows(n, encoder, len(self.rows[n][encoder])) for n, key in self._keys.items()}

        def lookup(text: str):
            name, _, rest = text.partition(" ")
            return (ours[name], name, rest.strip()) if name in ours else original._try_get_embedding(text)

        tokenizer._try_get_embedding = lookup
        tokenizer.embedding_directory = original.embedding_directory or []
        return tokenizer

    def tokens(self, prompt: str, **options: Any) -> Tokens:
        """The host's tokens of a prompt, with placeholders for rows; options as the host's tokenizer takes them."""
        text = "".join(
            f" embedding:{self._keys[piece]} " if marker and piece in self._keys
            else base_caption(f"<{piece}>", self.initializers) if marker else piece
            for piece, marker in split_at_markers(prompt)
        )  # fmt: skip
        if self.clip.tokenizer_options:
            options = {"tokenizer_options": self.clip.tokenizer_options} | options
        return self._tokenizer.tokenize_with_weights(text, **options)

    def filled(self, tokens: Tokens) -> Tokens:
        """The tokens with the rows as they are now."""

        def fill(entry):
            return self.rows[entry.name][entry.encoder][entry.index] if isinstance(entry, _Row) else entry

        return {
            key: [[(fill(entry), *rest) for entry, *rest in chunk] for chunk in chunks]
            for key, chunks in tokens.items()
        }

    def encode(self, prompt: str, **options: Any) -> list:
        """A CONDITIONING of the prompt, by the host's own path."""
        return self.clip.encode_from_tokens_scheduled(self.filled(self.tokens(prompt, **options)))


class TrainingTextEncoder:
    """A CLIP that passes gradients on to token rows: a copy of its modules on the same weights, none of which
    train. Make and use it outside inference mode."""

    def __init__(self, clip, tokens: LearnedTokens):
        self.clip, self.device = clip, clip.patcher.load_device
        tokens.to(self.device)
        self.reader = PromptReader(clip, tokens.rows(), tokens.initializers)
        self.model = network_on_same_storage(clip.cond_stage_model)
        for module in self.model.modules():
            if isinstance(module, comfy.clip_model.CLIPLayer):
                module.forward = types.MethodType(_clip_layer, module)

    def tokens(self, caption: str) -> Tokens:
        """Captions are read literally: parentheses are no weights."""
        return self.reader.tokens(caption, disable_weights=True)

    def encode(self, tokens: Tokens) -> list:
        """A CONDITIONING with gradient, encoded as comfy.sd.CLIP.encode_from_tokens does."""
        self.model.reset_clip_options()
        if self.clip.layer_idx is not None:
            self.model.set_clip_options({"layer": self.clip.layer_idx})
        self.model.set_clip_options({"execution_device": self.device})
        cond, pooled, *extra = self.model.encode_token_weights(self.reader.filled(tokens))
        return [[cond, {"pooled_output": pooled} | (extra[0] if extra else {})]]


def _clip_layer(layer, x: Tensor, mask=None, optimized_attention=None) -> Tensor:
    """comfy.clip_model.CLIPLayer.forward without its in-place sums, which autograd cannot go back through;
    recomputed in the backward pass, so that no fp32 copy of a layer's half-precision weights is kept."""

    def forward(x: Tensor) -> Tensor:
        x = x + layer.self_attn(layer.layer_norm1(x), mask, optimized_attention)
        return x + layer.mlp(layer.layer_norm2(x))

    return checkpoint(forward, x, use_reentrant=False)
