"""What a run is made of, as one number: a run goes on from a checkpoint only if all of it is the same."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .tensor_memory import memory_of


def content_key(*parts: Any) -> str:
    """SHA-256 (hex) over tensors (dtype, shape, all values), texts, numbers, None, and mappings, sequences and
    dataclasses of them."""
    digest = hashlib.sha256()
    for part in parts:
        update_digest(digest, part)
    return digest.hexdigest()


def content_keys(tensors: Sequence[Tensor]) -> list[str]:
    """The content_key of each tensor; those in the same memory are read once."""
    known: dict[tuple[Any, ...], str] = {}
    for tensor in tensors:
        place = memory_of(tensor)
        if place not in known:
            known[place] = content_key(tensor)
    return [known[memory_of(tensor)] for tensor in tensors]


def plain_tensor(tensor: Tensor) -> tuple[Tensor, Any]:
    """A plain tensor with the values, and what is beside it: of a quantised kind the storage and its scales."""
    tensor = tensor.detach()
    if type(tensor) in (Tensor, torch.nn.Parameter) or not hasattr(tensor, "_qdata"):
        return tensor, None
    return tensor._qdata, getattr(tensor, "_params", None)


def tensor_bytes(tensor: Tensor) -> Tensor:
    """A plain tensor's values as uint8 [n]."""
    return tensor.reshape(-1).contiguous().view(torch.uint8) if tensor.numel() else tensor.new_empty(0)


def update_digest(digest: Any, part: Any) -> None:
    if isinstance(part, Tensor):
        plain, beside = plain_tensor(part)
        digest.update(f"tensor {part.dtype} {tuple(part.shape)} ".encode())
        digest.update(tensor_bytes(plain).cpu().numpy().tobytes())
        if beside is not None:
            update_digest(digest, beside)
    elif isinstance(part, Mapping):
        digest.update(f"mapping {len(part)} ".encode())
        for key in sorted(part, key=str):
            update_digest(digest, str(key))
            update_digest(digest, part[key])
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        update_digest(digest, {f.name: getattr(part, f.name) for f in dataclasses.fields(part)})
    elif isinstance(part, (list, tuple)):
        _sequence(digest, part)
    else:
        text = repr(part)
        digest.update(f"{type(part).__name__} {len(text)} {text} ".encode())


def _sequence(digest: Any, part: Sequence[Any]) -> None:
    digest.update(f"sequence {len(part)} ".encode())
    for item in part:
        update_digest(digest, item)
