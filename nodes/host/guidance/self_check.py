"""Proof at run time that the LoRA does not leak into the base rows: once in a run, the same batch without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ....dco_core.errors import DCOError
from .adapter_hooks import BatchRows, Dose

# The same kernels on the same shapes: what differs more than rounding of the input is a leak.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
_LOW_PRECISION = 1e-2
# Batches of other sizes, which kernels round otherwise.
_OTHER_BATCH = {torch.float32: 1e-4, torch.float64: 1e-8}
_LOW_PRECISION_OTHER_BATCH = 3e-2


def _differs(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    a, b = a.double(), b.double()
    return bool((a - b).norm() > _TOLERANCE.get(dtype, _LOW_PRECISION) * b.norm())


def prediction_differs(a: Tensor, b: Tensor, x: Tensor, dtype: torch.dtype) -> bool:
    """Whether two denoised images, from batches of other sizes, differ by more than rounding in `dtype`. It is the
    network's output that rounding is a share of: that is what they took off the latent x."""
    a, b, x = a.double(), b.double(), x.double()
    return bool((a - b).norm() > _OTHER_BATCH.get(dtype, _LOW_PRECISION_OTHER_BATCH) * (b - x).norm())


def base_rows_leak(
    rows: BatchRows,
    call: Callable[[Mapping[int, Dose]], list[Tensor]],
    on: Mapping[int, Dose],
    off: Mapping[int, Dose],
    pairs: Sequence[tuple[Tensor, Tensor]],
) -> None:
    """DCOError that names the first layer whose base rows saw the LoRA, where predictions differ.

    call: doses by condition index -> predictions, the network run in the same batches either way.
    pairs: of each base row, the predictions of call(on) and of call(off), the same rows at strength 0.
    """
    if not any(_differs(a, b, rows.dtype) for a, b in pairs):
        return
    traces = []
    for doses in (on, off):
        rows.trace = []
        try:
            call(doses)
            traces.append(rows.trace)
        finally:
            rows.trace = None
    first = next(
        (name for (name, a), (_, b) in zip(*traces, strict=True) if _differs(a, b, rows.dtype)),
        "a later layer",
    )
    raise DCOError(
        f"Reward guidance stopped: the LoRA leaks into the base model's rows at {first}. A patch on the model mixes "
        "the rows of a batch there: take that patch off, or set low_memory, which evaluates every row on its own. If "
        "it only draws random numbers of its own, set self_check to false."
    )
