"""What a run is made of, as one number: a run goes on from a checkpoint only if all of it is the same."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SAMPLE = 1024
_PIECE = 2**16


def content_key(*parts: Any) -> str:
    """SHA-256 (hex) over tensors (dtype, shape, all values), texts, numbers, None, and mappings, sequences and
    dataclasses of them."""
    digest = hashlib.sha256()
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()


def memory_of(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor's values lie and how: equal for repeats of one picture, which need not be read twice. Compare
    only tensors that are alive."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def content_keys(tensors: Sequence[Tensor]) -> list[str]:
    """The content_key of each tensor; those in the same memory are read once."""
    known: dict[tuple[Any, ...], str] = {}
    for tensor in tensors:
        place = memory_of(tensor)
        if place not in known:
            known[place] = content_key(tensor)
    return [known[memory_of(tensor)] for tensor in tensors]


def network_fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and a sample of the values (up to 1024 evenly spaced ones of each
    tensor): tells checkpoints apart in a moment where all their bytes would take long."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        flat = _bytes(tensor)
        step = max(1, flat.numel() // _SAMPLE)
        head = f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode()
        digest.update(head + flat[::step].cpu().numpy().tobytes())
    return digest.hexdigest()


def files_fingerprint(*places: Path) -> str:
    """SHA-256 (hex) over files, those in folders with their names in them: their sizes and up to three pieces of 64 KiB
    (the beginning, the middle, the end), so that a model of many gigabytes takes a moment. Raises OSError for a place
    that is not there."""
    digest = hashlib.sha256()
    for place in places:
        files = sorted(f for f in place.rglob("*") if f.is_file()) if place.is_dir() else [place]
        for file in files:
            name = file.relative_to(place).as_posix() if file != place else file.name
            status = file.stat()
            digest.update(f"file {name} {_pieces(file, status.st_size, status.st_mtime_ns)} ".encode())
    return digest.hexdigest()


@functools.lru_cache(4096)
def _pieces(file: Path, size: int, changed: int) -> str:
    """changed: tells a file from the one that was there before (the cache compares it)."""
    digest = hashlib.sha256(f"{size} ".encode())
    with file.open("rb") as opened:
        for start in sorted({0, max(0, size // 2 - _PIECE // 2), max(0, size - _PIECE)}):
            opened.seek(start)
            digest.update(opened.read(_PIECE))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Tensor:
    """A tensor's values as uint8 [n]; the storage of kinds that have no plain view (quantised)."""
    tensor = tensor.detach()
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        tensor = getattr(tensor, "_qdata", tensor)
    return tensor.reshape(-1).contiguous().view(torch.uint8) if tensor.numel() else tensor.new_empty(0)


def _update(digest: Any, part: Any) -> None:
    if isinstance(part, Tensor):
        digest.update(f"tensor {part.dtype} {tuple(part.shape)} ".encode())
        digest.update(_bytes(part).cpu().numpy().tobytes())
    elif isinstance(part, Mapping):
        digest.update(f"mapping {len(part)} ".encode())
        for key in sorted(part, key=str):
            _update(digest, str(key))
            _update(digest, part[key])
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        _update(digest, {f.name: getattr(part, f.name) for f in dataclasses.fields(part)})
    elif isinstance(part, (list, tuple)):
        _sequence(digest, part)
    else:
        text = repr(part)
        digest.update(f"{type(part).__name__} {len(text)} {text} ".encode())


def _sequence(digest: Any, part: Sequence[Any]) -> None:
    digest.update(f"sequence {len(part)} ".encode())
    for item in part:
        _update(digest, item)
