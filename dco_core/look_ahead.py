"""The look-ahead reference: phi is frozen, so what it says about the next draws can be had in one call.

Only its errors, one number a draw, are kept. The losses are the same as with one call of phi a step (window 1),
up to the rounding of a larger batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .denoiser import Denoiser
from .examples import Draw, Example
from .objectives import batch_errors

DEFAULT_ROWS = 8


def automatic_window(denoiser: Denoiser, examples: Sequence[Example], batch_size: int) -> int:
    """How many batches phi looks at in one call: as many as the denoiser has room for (`rows_at_once`, where it can
    tell), DEFAULT_ROWS samples at most."""
    rows_at_once = getattr(denoiser, "rows_at_once", None)
    largest = max((e.latent for e in examples), key=lambda x: x.numel())
    rows = DEFAULT_ROWS if rows_at_once is None else min(DEFAULT_ROWS, rows_at_once(tuple(largest.shape)))
    return max(1, rows // batch_size)


def possible(examples: Sequence[Example]) -> bool:
    """Whether phi reads the same in every step: not where it shares a caption of tokens in training."""
    return not any(e.base_conditioning is None and callable(e.conditioning) for e in examples)


def with_reference(
    denoiser: Denoiser,
    examples: Sequence[Example],
    batches: Iterator[Sequence[Draw]],
    window: int,
) -> Iterator[tuple[Sequence[Draw], Tensor]]:
    """Every batch with phi's errors [B] on it, which are had for `window` batches at once."""
    while ahead := list(itertools.islice(batches, window)):
        with torch.no_grad():
            draws = [draw for batch in ahead for draw in batch]
            errors = batch_errors(denoiser, examples, draws, adapter=False)
        yield from zip(ahead, errors.split([len(batch) for batch in ahead]), strict=True)
