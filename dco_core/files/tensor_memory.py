"""Which tensors are the same memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def memory_of(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor's values lie and how: equal for repeats of one picture, which need not be read twice. Compare
    only tensors that are alive."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device
