"""LoRA files: safetensors in, safetensors out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import DCOError
from .atomic import save_tensors
from .embeddings import from_bundle
from .state_dict import from_tensors, to_tensors
from .tensors import LoraWeights

# Header entries that describe the bytes of the file they were read from, so they are not written again.
_STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash", "lora_adapter_metadata")


def read_lora(path: str | os.PathLike[str]) -> LoraWeights:
    """Read a LoRA file in any of the spellings of keys.py (see from_tensors).

    Raises DCOError for a file that is missing, damaged or no safetensors, and for contents that from_tensors
    refuses.
    """
    tensors, metadata = _load(Path(path))
    return from_tensors(tensors, str(path), metadata)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
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
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = file.keys()
            return {key: file.get_tensor(key) for key in keys}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise DCOError(
            f"{path} is no complete safetensors file ({error}): download or save it again."
        ) from error


def write_lora(
    path: str | os.PathLike[str],
    weights: LoraWeights,
    *,
    keys: str | Mapping[str, str] = "kohya",
    dtype: torch.dtype | str | None = None,
) -> None:
    """Write `weights` to `path`, whole or not at all: a file that is already there stays intact until the new
    one is complete on disk.

    keys, dtype: as in to_tensors.

    Raises DCOError for an empty LoRA, a folder that cannot be written, and what to_tensors refuses.
    """
    if not weights.layers and not from_bundle(weights.other):
        raise DCOError(f"The LoRA for {path} has no layers: there is nothing to save.")
    tensors = to_tensors(weights, keys=keys, dtype=dtype)
    metadata = {key: str(value) for key, value in weights.metadata.items() if key not in _STALE}
    save_tensors(path, tensors, metadata)


def unique_path(folder: str | os.PathLike[str], stem: str, suffix: str = ".safetensors") -> Path:
    """`folder/stem_00001.safetensors`, with the number after the highest one in use, as the host counts."""
    folder = Path(folder)
    pattern = re.compile(re.escape(stem) + r"_(\d+)_?" + re.escape(suffix), re.IGNORECASE)
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    used = [int(match[1]) for match in map(pattern.fullmatch, names) if match]
    return folder / f"{stem}_{max(used, default=0) + 1:05}{suffix}"
