"""Which files a run was made from, as one number."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

WHOLE = 2**28  # bytes of a file up to which all of it is read
_PIECE, _EVERY = 2**12, 2**22  # of larger ones: a piece in each stretch of that many bytes
_READ = 2**20


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
