"""The look-ahead reference: phi is frozen, so what it says about the next draws can be had in one call.

Only its errors, one number a draw, are kept, and the predictions that theta is held to (holding.py). The losses are the
same as with one call of phi a step (window 1), up to the rounding of a larger batch.

The layers before the first adapted one give the same for theta and phi. They are computed for both all the same: they
are 0.4 to 2.6 % of a step (benchmarks/reference_pass.py --prefix), which is all that sharing them could save, and every
family would have to be cut in two.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..network.denoiser import Denoiser
from .config import TrainingConfig
from .draws import Draw
from .examples import Example
from .holding import Reference, reference_of
from .memory import estimate, free_memory
from .objectives import references_of
from .reference_ahead import ReferenceAhead
from .reference_cache import ReferenceCache

DEFAULT_ROWS = 8
# A step must not need more memory for phi than theta needs anyway. Without gradient a row holds 0.05 to 0.08 of what a
# step of one row keeps; where theta's blocks are checkpointed, three batches of phi are as much as theta's step at
# its peak (UNets shaped as SD1.5 and SDXL, 128 and 512 px: benchmarks/reference_pass.py).
CHECKPOINTED_WINDOW = 3
_SHARE, _SHARE_CHECKPOINTED = 0.1, 1.0


def automatic_window(denoiser: Denoiser, examples: Sequence[Example], config: TrainingConfig) -> int:
    """How many batches phi looks at in one call: DEFAULT_ROWS samples at most, as many as half of the free memory has
    room for, and no more than theta's own step needs."""
    largest = max((e.latent for e in examples), key=lambda x: x.numel())
    room = denoiser.rows_at_once(largest.shape)
    if room is None:
        room = _rows_in_free_memory(denoiser, examples, config)
    window = max(1, min(DEFAULT_ROWS, room) // config.batch_size)
    return min(window, CHECKPOINTED_WINDOW) if denoiser.checkpointed else window


def _rows_in_free_memory(denoiser: Denoiser, examples: Sequence[Example], config: TrainingConfig) -> int:
    free = free_memory(examples[0].latent.device)
    if free is None:
        return DEFAULT_ROWS
    one = estimate(denoiser, examples, dataclasses.replace(config, batch_size=1)).activations
    return int(free / 2 / max(1, one * (_SHARE_CHECKPOINTED if denoiser.checkpointed else _SHARE)))


def possible(examples: Sequence[Example]) -> bool:
    """Whether phi reads the same in every step: not where it shares a caption of tokens in training."""
    return not any(e.base_conditioning is None and callable(e.conditioning) for e in examples)


def not_cached(examples: Sequence[Example], config: TrainingConfig, recorded: bool) -> str:
    """Why phi's errors cannot be those of an earlier run, as a sentence; "" where they can, and where the objective
    asks phi for nothing. recorded: the draws are given."""
    if config.objective == "output-preservation":
        return "The base model runs in every step: output-preservation compares its predictions, which are not kept."
    if config.is_dco and recorded:
        return "The base model runs in every step: draws that are given are of no series that could be found again."
    if config.mask_prior or config.preservation_prompts:
        return "The base model runs anew: mask_prior and preservation compare its predictions, which are not kept."
    if config.is_dco and not possible(examples):
        return "The base model runs in every step: it reads tokens in training."
    return ""


class _Window(NamedTuple):
    """Batches that phi looks at in one call. draws: on their references; ends: of each batch among them."""

    number: int
    batches: list[Sequence[Draw]]
    draws: list[Draw]
    ends: list[int]


def with_reference(
    denoiser: Denoiser,
    examples: Sequence[Example],
    batches: Iterator[Sequence[Draw]],
    config: TrainingConfig,
    window: int,
    cache: ReferenceCache | None = None,
    first: int = 0,
    ahead: ReferenceAhead | None = None,
) -> Iterator[tuple[Sequence[Draw], Reference]]:
    """Every batch with phi on its references, which is had for `window` batches at once. cache: where errors of earlier
    runs are; first: the number of the first of these windows in it. ahead: phi on another device, which looks at a
    window while the caller uses the one before."""
    windows, asked = itertools.tee(_windows(examples, batches, window, first))
    looked: Iterator[Reference | None]
    if ahead is None:
        looked = (_look(denoiser, examples, w, config, cache) for w in asked)
    else:
        known = (None if cache is not None and cache.get(w.number) is not None else w.draws for w in asked)
        looked = ahead.references(known, examples, config)
    for w, found in zip(windows, looked, strict=True):
        if found is None:
            assert cache is not None
            errors = cache.get(w.number)
            assert errors is not None
            found = Reference(errors, [None] * len(w.draws), [None] * len(w.draws))
        elif cache is not None:
            cache.put(w.number, found.errors)
        for batch, start, stop in zip(w.batches, [0, *w.ends], w.ends, strict=False):
            if ahead is not None:
                ahead.check()
            yield batch, found.part(start, stop)


def _windows(
    examples: Sequence[Example], batches: Iterator[Sequence[Draw]], window: int, first: int
) -> Iterator[_Window]:
    for number in itertools.count(first):
        taken = list(itertools.islice(batches, window))
        if not taken:
            return
        asked = [references_of(examples, batch) for batch in taken]
        ends = list(itertools.accumulate(len(batch) for batch in asked))
        yield _Window(number, taken, [d for batch in asked for d in batch], ends)


def _look(
    denoiser: Denoiser, examples: Sequence[Example], window: _Window, config: TrainingConfig,
    cache: ReferenceCache | None,
) -> Reference | None:  # fmt: skip
    """None where the cache has it."""
    if cache is not None and cache.get(window.number) is not None:
        return None
    return reference_of(denoiser, examples, window.draws, config)
