"""safetensors files tensor by tensor: the library reads and writes whole files, sums of LoRAs need not fit into memory.

The format: 8 bytes with the length of the header (little-endian), the header (JSON, may end in spaces), the tensors.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import DCOError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ENTRY_ROOM = 200  # of a header entry beside its name: dtype, up to five sizes, two offsets
_MOST_SIZES = 8  # a 3D convolution has 5
_MOST_NUMBERS = 2**40
_LATE_ROOM = 4096  # for header entries that are only known in the end


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for. metadata: the header's.

    Read by hand: safe_open(...).get_slice maps the file, so that a merge held both inputs (673 MiB instead of 21 for
    722 layers of SDXL), or, opened anew for each tensor, took six times the CPU time; and reading a mapped file that is
    cut short meanwhile kills the process. Where memory allows, lora.file.read_lora reads through safe_open."""

    def __init__(self, path: Path):
        """Raises DCOError for a file that is missing, damaged or no safetensors."""
        self.path = path
        self._state = _state(path)
        header = read_header(path)
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self._entries: dict[str, dict[str, Any]] = header
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
        self._start = 8 + length

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, key: str) -> Tensor:
        entry = self._entries[key]
        begin, end = entry["data_offsets"]
        data = torch.empty(end - begin, dtype=torch.uint8)
        if end > begin:
            with self.path.open("rb") as file:
                file.seek(self._start + begin)
                whole = file.readinto(data.numpy().data) == end - begin
                if not whole or _state(file.fileno()) != self._state:
                    raise DCOError(
                        f"{self.path} was changed while it was read: try again when nothing writes to it."
                    )
        return data.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])

    def meta(self, key: str) -> Tensor:
        """The tensor without its values: shape and dtype."""
        entry = self._entries[key]
        return torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="meta")


def _state(file: Path | int) -> tuple[int, ...] | None:
    """Changes when a file is written to or another one takes its place; None for one that is not there."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_header(path: Path) -> dict[str, Any]:
    """The header of a file, checked: {key: {dtype, shape, data_offsets}} and `__metadata__`. No tensor is read.

    Raises DCOError for a file that is missing, damaged, no safetensors, holds a key twice or an unknown dtype."""
    if not path.is_file():
        raise DCOError(f"There is no LoRA file {path}: check the name, or refresh the list with R.")
    try:
        with path.open("rb") as file:
            start = file.read(9)
            # a header of 128 bytes starts with \x80 too, but the ninth byte of a safetensors file is a brace
            if start.startswith((b"PK\3\4", b"\x80")) and start[8:] != b"{":
                raise DCOError(
                    f"{path} is a pickle, which can run code when it is opened: convert it to safetensors."
                )
            with safe_open(path, framework="pt", device="cpu"):
                pass  # the library's own checks of the header
            (length,) = struct.unpack("<Q", start[:8])
            file.seek(8)
            header = json.loads(file.read(length), object_pairs_hook=lambda pairs: _unique(path, pairs))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, DCOError):
            raise
        raise DCOError(
            f"{path} is no complete safetensors file ({error}): download or save it again."
        ) from error
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise DCOError(f"{path}: {key} is of type {entry['dtype']}: use a LoRA in fp32, fp16 or bf16.")
        # without numbers a tensor can have any shape, which torch then cannot make
        shape = entry["shape"]
        if len(shape) > _MOST_SIZES or math.prod(max(1, n) for n in shape) > _MOST_NUMBERS:
            sizes = ", ".join(map(str, shape[:5])) + (", ..." if len(shape) > 5 else "")
            raise DCOError(
                f"{path}: {key} has the shape [{sizes}], as no tensor of a LoRA: download or save it again."
            )
    return header


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise DCOError(f"{path} holds {twice} twice: it is damaged, download or save it again.")
    return found


class TensorWriter:
    """Writes a safetensors file from tensors that come one by one, where the library's save_file wants all at once. The
    header stands first in the file and may be known last: room is left for it, and what it does not need are
    spaces."""

    def __init__(self, file: BinaryIO, room: int):
        """room: bytes for the header, as from header_room or len(header_text(...))."""
        self._file, self._room, self._end = file, room, 0
        self._entries: dict[str, dict[str, Any]] = {}
        self._reserved: set[str] = set()
        file.seek(8 + room)

    def reserve(self, name: str, like: Tensor) -> None:
        """Keep the next place for a tensor of this type and shape that is added later."""
        self._entries[name] = _entry(like, self._end)
        self._end += like.nbytes
        self._reserved.add(name)
        self._file.seek(8 + self._room + self._end)

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a tensor, or put it into its reserved place. Narrow types go after wide ones: readers need aligned
        values."""
        tensor = tensor.detach().cpu().contiguous()
        if name in self._reserved:
            self._file.seek(8 + self._room + self._entries[name]["data_offsets"][0])
            self._file.write(_bytes(tensor))
            self._file.seek(8 + self._room + self._end)
            return
        if self._end % tensor.element_size() or name in self._entries:
            raise ValueError(f"{name} ({tensor.dtype}) would be at byte {self._end}, or is there already")
        self._entries[name] = _entry(tensor, self._end)
        self._end += tensor.nbytes
        self._file.write(_bytes(tensor))

    def finish(self, metadata: Mapping[str, str]) -> None:
        text = header_text(self._entries, metadata)
        if len(text) > self._room:
            raise ValueError(f"the header has {len(text)} bytes, room was left for {self._room}")
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._room) + text.ljust(self._room))
        self._file.flush()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def entries_of(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Header entries of tensors that stand in the file in this order."""
    entries, end = {}, 0
    for name, tensor in tensors.items():
        entries[name] = _entry(tensor, end)
        end += tensor.nbytes
    return entries


def _entry(tensor: Tensor, begin: int) -> dict[str, Any]:
    return {
        "dtype": _NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "data_offsets": [begin, begin + tensor.nbytes],
    }


def header_text(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """JSON of a header, ending in spaces so that the tensors begin at a multiple of 8."""
    head = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    text = json.dumps({**head, **entries}, separators=(",", ":"), ensure_ascii=False).encode()
    return text.ljust(-(-len(text) // 8) * 8)


def header_room(names: Iterable[str], metadata: Mapping[str, str]) -> int:
    """Bytes that are enough for the header of these tensors, with 4096 to spare for what is known last."""
    nothing = {name: "" for name in names}
    room = len(header_text(nothing, metadata)) + _ENTRY_ROOM * len(nothing) + _LATE_ROOM
    return -(-room // 8) * 8
