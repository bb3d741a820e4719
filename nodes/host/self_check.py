"""Proof at run time that the LoRA does not leak into the base rows: once in a run, the same batch without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...dco_core.errors import DCOError
from .adapters import Rows

# The same kernels on the same shapes: what differs more than rounding of the input is a leak.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
_LOW_PRECISION = 1e-2


def _differs(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    a, b = a.double(), b.double()
    return bool((a - b).norm() > _TOLERANCE.get(dtype, _LOW_PRECISION) * b.norm())


def check_base_rows(
    rows: Rows, call: Callable[[Mapping[int, float]], list[Tensor]], strengths: Mapping[int, float]
) -> list[Tensor]:
    """The predictions of call(strengths), after comparing those without a LoRA to call at strength 0. Raises DCOError
    that names the first layer whose base rows saw the LoRA.

    call: strengths by condition index -> predictions, the network run in the same batches either way.
    """
    # The real call last: whoever keeps what the network said (step caches) keeps that of the LoRA.
    plain = call(dict.fromkeys(strengths, 0.0))
    outputs = call(strengths)
    leaking = [
        i for i in range(len(outputs)) if i not in strengths and _differs(outputs[i], plain[i], rows.dtype)
    ]
    if not leaking:
        return outputs
    traces = []
    for on in (strengths, dict.fromkeys(strengths, 0.0)):
        rows.trace = []
        try:
            call(on)
            traces.append(rows.trace)
        finally:
            rows.trace = None
    first = next(
        (name for (name, a), (_, b) in zip(*traces, strict=True) if _differs(a, b, rows.dtype)),
        "a later layer",
    )
    raise DCOError(
        f"Reward guidance stopped: the LoRA leaks into the base model's rows at {first}. A patch on the model mixes "
        "the rows of a batch there; take it off, or set low_memory, which evaluates every row on its own."
    )
