"""Learned tokens: new rows beside the embedding tables of text encoders (Gal et al. 2022; Sec. 4.3 of the paper).

`<dog>` in a caption stands for rows that start as those of its initialiser, the word "dog", and are trained with
the LoRA or alone. The tables themselves are never touched: theta reads the rows, phi the words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..captions.markers import markers
from ..errors import DCOError


@dataclass(frozen=True)
class TokenSpec:
    """What is to be learned. name: the marker's text. initializer: the words it starts from and that phi reads;
    "" draws random rows. vectors: rows per encoder; 0 is one for each token of the initializer."""

    name: str
    initializer: str
    vectors: int = 0


def token_specs(
    captions: Sequence[str],
    initializers: str = "",
    vectors: int = 0,
    known: Mapping[str, str] | None = None,
) -> list[TokenSpec]:
    """One spec for every marker of the captions, in order of appearance.

    initializers: lines `<my_dog> = dog` for markers that do not start from their own words; a line may end in
        `, 2` for a number of vectors of its own.
    known: {name: initializer} of tokens that a LoRA to go on from has; lines win over it.
    Raises DCOError for captions without a marker and for lines that are malformed, doubled, or name no marker.
    """
    found = list(dict.fromkeys(name for text in captions for name in markers(text)))
    if not found:
        raise DCOError(
            "No caption has a marker, so there is no token to learn: write the subject as <dog>, or turn "
            "learned tokens off."
        )
    given: dict[str, TokenSpec] = {}
    for line in initializers.splitlines():
        if not line.strip():
            continue
        name, equals, words = (part.strip() for part in line.partition("="))
        name = name.removeprefix("<").removesuffix(">").strip()
        words, _, number = (part.strip() for part in words.partition(","))
        if not equals or not name or (number and not number.isdecimal()):
            raise DCOError(
                f'The initializer line "{line.strip()}" is not understood: write "<my_dog> = dog".'
            )
        if name in given:
            raise DCOError(f"The token <{name}> already exists: give each token one initializer line.")
        if name not in found:
            raise DCOError(
                f"The initializer line for <{name}> fits no caption: the markers are "
                f"{', '.join(f'<{n}>' for n in found)}."
            )
        given[name] = TokenSpec(name, words, int(number) if number else vectors)
    return [given.get(name) or TokenSpec(name, (known or {}).get(name, name), vectors) for name in found]


class TextTable(Protocol):
    """What the start of a token needs of a text encoder. weight: its embedding table [vocabulary, width]."""

    @property
    def weight(self) -> Tensor: ...

    def has_token(self, text: str) -> bool:
        """Whether the vocabulary has `text` as a token already."""
        ...

    def ids(self, words: str) -> list[int]:
        """The tokens of some words, without begin and end; [] where it does not know one of them."""
        ...

    def rows(self, ids: Sequence[int]) -> Tensor:
        """The rows [n, width] of some tokens."""
        ...


def started(
    specs: Sequence[TokenSpec], seed: int, known: Mapping[str, Mapping[str, Tensor]], tables: Mapping[str, TextTable]
) -> LearnedTokens:
    """The rows of new tokens in the encoders that `tables` names: those of their initialisers, or the `known` ones of
    a LoRA to go on from. Raises DCOError for words that an encoder does not know, for names that its vocabulary has
    already, and for known rows of another encoder."""
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, dict[str, Tensor]] = {}
    for spec in specs:
        rows[spec.name] = {}
        for encoder, table in tables.items():
            if table.has_token(f"<{spec.name}>"):
                raise DCOError(
                    f"The token <{spec.name}> already exists in {encoder}: choose another name for the marker."
                )
            if spec.name in known:
                rows[spec.name][encoder] = known_rows(known[spec.name], spec.name, encoder, table.weight.shape[1])
            elif spec.initializer:
                ids = table.ids(spec.initializer)
                if not ids:
                    raise DCOError(
                        f'The initializer "{spec.initializer}" of <{spec.name}> is not a word that {encoder} knows: '
                        "start from a common word for the subject's class, such as dog."
                    )
                rows[spec.name][encoder] = initial_rows(table.rows(ids), spec, encoder)
            else:
                rows[spec.name][encoder] = random_rows(table.weight, spec, generator)
    return LearnedTokens(rows, {spec.name: spec.initializer for spec in specs})


def known_rows(by_encoder: Mapping[str, Tensor], name: str, encoder: str, width: int) -> Tensor:
    """The rows of a token for an encoder of that width. Raises DCOError where they are of another text encoder."""
    if encoder not in by_encoder or by_encoder[encoder].shape[-1] != width:
        has = ", ".join(f"{e} of width {r.shape[-1]}" for e, r in by_encoder.items())
        raise DCOError(
            f"The token <{name}> has rows for {has}, this text encoder is {encoder} of width {width}: "
            "load the checkpoint that it was trained on."
        )
    return by_encoder[encoder]


def initial_rows(words: Tensor, spec: TokenSpec, encoder: str) -> Tensor:
    """The start of a token: the rows `words` [m, width] of its initializer in an encoder's table, repeated in
    order up to spec.vectors. Raises DCOError where there are more words than rows to hold them."""
    n = spec.vectors or len(words)
    if len(words) > n:
        raise DCOError(
            f'The initializer "{spec.initializer}" of <{spec.name}> is {len(words)} tokens in {encoder}, not '
            f"{n}: give <{spec.name}> at least {len(words)} vectors (0 counts by itself), or initialise it from a "
            "shorter word."
        )
    return words[torch.arange(n) % len(words)].float().clone()


def random_rows(table: Tensor, spec: TokenSpec, generator: torch.Generator) -> Tensor:
    """The start of a token without initializer: normal with the table's standard deviation. (The authors then
    rescale it to that number as a norm, which is far too short; the drawn norm is kept here.)"""
    rows = torch.randn(spec.vectors or 1, table.shape[1], generator=generator)
    return rows * table.float().std().item()


class LearnedTokens:
    """The rows of all new tokens in all encoders.

    rows: {token name: {encoder: [n, width]}}, encoders named as in embedding files: clip_l, clip_g, ...
    initializers: {token name: words}, what the base caption says in its place.
    Trainable, fp32 whatever the encoder's precision; each row keeps the norm it starts with.
    """

    def __init__(self, rows: Mapping[str, Mapping[str, Tensor]], initializers: Mapping[str, str]):
        self.initializers = dict(initializers)
        self._rows = {
            name: {e: nn.Parameter(r.detach().float().clone()) for e, r in by_encoder.items()}
            for name, by_encoder in rows.items()
        }
        self._norms = {key: p.detach().norm(dim=1, keepdim=True) for key, p in self.parameters().items()}

    def rows(self) -> Mapping[str, Mapping[str, nn.Parameter]]:
        """{token name: {encoder: [n, width]}}, the parameters themselves."""
        return self._rows

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{n}.{e}": p for n, by_encoder in self._rows.items() for e, p in by_encoder.items()}

    @torch.no_grad()
    def keep_norms(self) -> None:
        """Rescale every row to the norm it started with, as the authors do after each step."""
        for key, p in self.parameters().items():
            p.mul_(self._norms[key].to(p) / p.norm(dim=1, keepdim=True).clamp(min=1e-12))

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Copies of the rows as they are now, on the CPU: {token name: {encoder: [n, width]}}."""
        return {n: {e: p.detach().cpu().clone() for e, p in rows.items()} for n, rows in self._rows.items()}

    def to(self, device: torch.device) -> None:
        """Move the rows; the parameters stay the same objects."""
        for p in self.parameters().values():
            p.data = p.data.to(device)
