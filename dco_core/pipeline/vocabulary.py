"""What the markers of a run's captions stand for: rows in training, rows of a LoRA to go on from, or words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..captions.markers import markers
from ..errors import DCOError
from ..lora import LoraWeights, from_bundle, initializers_in
from ..models.image_model import ImageModel, TokenRows
from ..training.learned_tokens import LearnedTokens, token_specs

# What trains: the LoRA with markers read as words, with a token for each marker, or the tokens alone.
LEARNED_TOKENS = ("off", "with-lora", "alone")


@dataclass(frozen=True)
class TokenConfig:
    """learned_tokens: one of LEARNED_TOKENS. initializers, vectors: see token_specs."""

    learned_tokens: str = LEARNED_TOKENS[0]
    initializers: str = ""
    vectors: int = 0

    def check(self) -> None:
        """Raise DCOError for a value that cannot be."""
        if self.learned_tokens not in LEARNED_TOKENS:
            raise DCOError(
                f"learned_tokens {self.learned_tokens!r} is unknown: use one of {', '.join(LEARNED_TOKENS)}."
            )
        if self.vectors < 0:
            raise DCOError(f"vectors is {self.vectors}: use a number of vectors per token, or 0 to count by itself.")

    @property
    def on(self) -> bool:
        """Whether tokens train."""
        return self.learned_tokens != LEARNED_TOKENS[0]

    @property
    def alone(self) -> bool:
        """Whether tokens train without a LoRA: Textual Inversion."""
        return self.learned_tokens == "alone"


@dataclass(frozen=True)
class Vocabulary:
    """tokens: the rows in training, or None. fixed: rows that a LoRA to go on from brought along and that do not train.
    initializers: what the base model reads for each of them."""

    tokens: LearnedTokens | None = None
    fixed: TokenRows = field(default_factory=dict)
    initializers: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> TokenRows:
        """As they are now."""
        return self.fixed if self.tokens is None else self.tokens.tensors()

    @property
    def vectors(self) -> dict[str, int]:
        """Vectors per token."""
        return {name: max(map(len, by_encoder.values())) for name, by_encoder in self.rows().items()}


def kept_vocabulary(captions: Sequence[str], start: LoraWeights | None) -> Vocabulary:
    """The Vocabulary of a run that trains no tokens: captions may use those of the LoRA it goes on from."""
    known = from_bundle(start.other) if start else {}
    used = {name for text in captions for name in markers(text)} & set(known)
    words = initializers_in(start.metadata, list(known)) if start else {}
    return Vocabulary(None, {name: known[name] for name in used}, {name: words[name] for name in used})


def learned_vocabulary(
    model: ImageModel, captions: Sequence[str], seed: int, initializers: str = "", vectors: int = 0,
    start: LoraWeights | None = None,
) -> Vocabulary:  # fmt: skip
    """The Vocabulary of a run that trains a token for each marker. initializers, vectors: see token_specs. Raises
    DCOError for a model whose text encoders cannot learn, and for what token_specs refuses."""
    if model.learned_tokens is None:
        raise DCOError(
            f"The text encoders of this model ({model.family}) cannot learn tokens here: turn learned tokens off. The "
            "LoRA learns the subject without them."
        )
    known = from_bundle(start.other) if start else {}
    words = initializers_in(start.metadata, list(known)) if start else {}
    specs = token_specs(captions, initializers, vectors, words)
    tokens = model.learned_tokens.start(specs, seed, known)
    return Vocabulary(tokens, {}, tokens.initializers)
