"""Writing safetensors files whole or not at all."""

from __future__ import annotations

import json
import os
import struct
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import DCOError


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file: one that is already there stays intact until the new one is complete on disk. Equal
    contents are equal bytes.
    Raises DCOError for a folder that cannot be written."""
    path = Path(path)
    # safetensors refuses tensors that share memory, and writes what is contiguous
    copies = {
        key: t.detach().cpu().clone(memory_format=torch.contiguous_format) for key, t in tensors.items()
    }
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(copies, temporary, dict(metadata))
            temporary.chmod(mode)  # safetensors keeps its files to their owner; folders of models are shared
            with temporary.open("rb+") as file:
                _sort_header(file)
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise DCOError(
            f"Cannot write {path} ({error}): check free space and permissions of the folder."
        ) from error


def _sort_header(file: BinaryIO) -> None:
    """Sort the metadata of a fresh file: safetensors writes it in an order that changes from run to run, and equal
    contents should be equal bytes."""
    (size,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(size))
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    # the same text in another order, so it fits in its place
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
    if len(text) == size:
        file.seek(8)
        file.write(text)
        file.flush()


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power loss; Windows has no such call and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
