"""Writing safetensors files whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import DCOError


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file: one that is already there stays intact until the new one is complete on disk.
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
            save_file(copies, temporary, dict(metadata))
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise DCOError(
            f"Cannot write {path} ({error}): check free space and permissions of the folder."
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power loss; Windows has no such call and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
