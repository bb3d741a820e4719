"""What a run is made of, as one number: a run goes on from a checkpoint only if all of it is the same."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

_ROW = 1024  # words of 8 bytes; what is left over of a tensor is taken as it is
_ROWS_AT_ONCE = 128  # 1 MiB, which stays in a core's cache for the second sum
_SUMMED_ON = ("cpu", "cuda", "xpu")  # others may lack sums of 64-bit integers

WHOLE = 2**28  # bytes of a file up to which all of it is read
_PIECE, _EVERY = 2**12, 2**22  # of larger ones: a piece in each stretch of that many bytes
_READ = 2**20


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
    """SHA-256 (hex) over names, dtypes, shapes and sums over all values of each tensor.

    Every byte counts: the tensor's bytes are laid out as 64-bit words in rows of 1024, and the sum of every row and of
    every column (modulo 2^64) goes into the hash. A change of one element always shows, one of many escapes only if
    it leaves all these sums alone, which noise, another model or a LoRA baked in does not. One pass over the memory, a
    tenth of the time of hashing it (5 GB of weights: about a second on one CPU core)."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        plain, beside = _plain(tensor)
        for sums in _sums(plain):
            digest.update(sums.cpu().numpy().tobytes())
        _update(digest, beside)
    return digest.hexdigest()


def files_fingerprint(*places: Path) -> str:
    """SHA-256 (hex) over files, those in folders with their names in them. All of a file up to 256 MiB is read. Of a
    larger one, so that a model of many gigabytes takes a moment: the size and a piece of 4 KiB in every 4 MiB, which
    in a safetensors file means the header and at least one piece of every tensor. Raises OSError for a place that is
    not there."""
    digest = hashlib.sha256()
    for place in places:
        files = sorted(f for f in place.rglob("*") if f.is_file()) if place.is_dir() else [place]
        for file in files:
            name = file.relative_to(place).as_posix() if file != place else file.name
            status = file.stat()
            changed = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            digest.update(f"file {name} {_file_digest(file, status.st_size, changed)} ".encode())
    return digest.hexdigest()


@functools.lru_cache(4096)
def _file_digest(file: Path, size: int, changed: tuple[int, ...]) -> str:
    """changed: tells a file from the one that was there before (the cache compares it)."""
    digest = hashlib.sha256(f"{size} ".encode())
    with file.open("rb") as opened:
        for start, end in [(0, size)] if size <= WHOLE else _pieces(opened, size):
            opened.seek(start)
            while start < end and (piece := opened.read(min(_READ, end - start))):
                digest.update(piece)
                start += len(piece)
    return digest.hexdigest()


def _pieces(opened: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what is read of a large file: the header and the middle of every stretch of every tensor of a
    safetensors file, the middle of every stretch of any other, the end of both."""
    for start, end in _parts(opened, size):
        count = -(-(end - start) // _EVERY)
        for i in range(count):
            first, last = start + (end - start) * i // count, start + (end - start) * (i + 1) // count
            middle = max(first, (first + last - _PIECE) // 2)
            yield middle, min(last, middle + _PIECE)
    yield size - _PIECE, size


def _parts(opened: BinaryIO, size: int) -> list[tuple[int, int]]:
    """(start, end) of the header's pieces and of each tensor in a safetensors file; of the whole file in any other."""
    length = int.from_bytes(opened.read(8), "little")
    begin = 8 + length
    if not 2 <= length <= min(size - 8, WHOLE):
        return [(0, size)]
    try:
        header = json.loads(opened.read(length))
        offsets = sorted(
            tuple(entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__"
        )
        if all(0 <= first <= last <= size - begin for first, last in offsets):
            head = [(start, min(start + _PIECE, begin)) for start in range(0, begin, _PIECE)]
            return head + [(begin + first, begin + last) for first, last in offsets]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return [(0, size)]


def _plain(tensor: Tensor) -> tuple[Tensor, Any]:
    """A plain tensor with the values, and what is beside it: of a quantised kind the storage and its scales."""
    tensor = tensor.detach()
    if type(tensor) in (Tensor, torch.nn.Parameter) or not hasattr(tensor, "_qdata"):
        return tensor, None
    return tensor._qdata, getattr(tensor, "_params", None)


def _bytes(tensor: Tensor) -> Tensor:
    """A plain tensor's values as uint8 [n]."""
    return tensor.reshape(-1).contiguous().view(torch.uint8) if tensor.numel() else tensor.new_empty(0)


def _sums(tensor: Tensor) -> Iterator[Tensor]:
    """Sums of the rows and of the columns of a tensor's bytes as int64 [rows, 1024], and the bytes left over."""
    flat = _bytes(tensor)
    if flat.device.type not in _SUMMED_ON:
        flat = flat.cpu()
    if flat.numel() and (flat.storage_offset() % 8 or flat.data_ptr() % 8):
        flat = flat.clone()  # words of 8 bytes lie at multiples of 8
    whole = flat.numel() // (8 * _ROW) * (8 * _ROW)
    if whole:
        words = flat[:whole].view(torch.int64).view(-1, _ROW)
        columns = words.new_zeros(_ROW)
        for part in words.split(_ROWS_AT_ONCE if words.device.type == "cpu" else len(words)):
            columns += part.sum(0)
            yield part.sum(1)
        yield columns
    yield flat[whole:]


def _update(digest: Any, part: Any) -> None:
    if isinstance(part, Tensor):
        plain, beside = _plain(part)
        digest.update(f"tensor {part.dtype} {tuple(part.shape)} ".encode())
        digest.update(_bytes(plain).cpu().numpy().tobytes())
        if beside is not None:
            _update(digest, beside)
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
