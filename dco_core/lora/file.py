"""LoRA files: safetensors in, safetensors out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..errors import DCOError
from ..files.atomic import save_tensors, stream_tensors
from ..files.safetensors_file import TensorFile, header_room, read_header
from .embeddings import from_bundle
from .peft_header import HEADER, PeftHeader
from .state_dict import from_tensors, stream_of, to_tensors
from .tensors import LazyLayers, LoraTensors, LoraWeights

# Header entries that describe the bytes of the file they were read from, so they are not written again.
_STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash", HEADER)


def read_lora(path: str | os.PathLike[str]) -> LoraWeights:
    """Read a LoRA file in any of the spellings of keys.py and the adapter types of adapter_types.py (see from_tensors).

    Raises DCOError for a file that is missing, damaged or no safetensors, and for contents that from_tensors
    refuses.
    """
    return from_tensors(read_tensors(path), str(path), peft=PeftHeader.beside(Path(path)))


def has_peft_configuration(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> bool:
    """Whether a configuration of peft beside the tensors, or in the header, tells their strength, which readers of the
    tensors alone do not know."""
    return HEADER in metadata or PeftHeader.beside(Path(path)) is not None


def read_tensors(path: str | os.PathLike[str]) -> LoraTensors:
    """The tensors of a safetensors file as they are, memory-mapped, with its header. Raises DCOError as read_lora."""
    path = Path(path)
    metadata = read_header(path).get("__metadata__") or {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return LoraTensors({key: file.get_tensor(key) for key in file.keys()}, metadata)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise DCOError(
            f"{path} is no complete safetensors file ({error}): download or save it again."
        ) from error


def open_lora(path: str | os.PathLike[str]) -> LoraWeights:
    """read_lora for files that need not fit into memory: names, types and shapes are checked now, the layers are read
    one by one whenever they are asked for, and checked for NaN then."""
    file = TensorFile(Path(path))
    return from_tensors(file, str(path), file.metadata, peft=PeftHeader.beside(Path(path)))


def write_lora(
    path: str | os.PathLike[str],
    weights: LoraWeights,
    *,
    keys: str | Mapping[str, str] = "kohya",
    dtype: torch.dtype | str | None = None,
    late: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Write `weights` to `path`, whole or not at all: a file that is already there stays intact until the new
    one is complete on disk. LazyLayers with a dtype are written one by one as they are made.

    keys, dtype: as in to_tensors. late: further header entries, asked for when all layers are written (4 kB).

    Raises DCOError for an empty LoRA, a folder that cannot be written, and what to_tensors refuses.
    """
    if not weights.layers and not weights.vectors and not from_bundle(weights.other):
        raise DCOError(f"The LoRA for {path} has no layers: there is nothing to save.")
    metadata = {key: str(value) for key, value in weights.metadata.items() if key not in _STALE}
    if isinstance(weights.layers, LazyLayers) and dtype is not None:
        stream = stream_of(weights, keys, dtype)
        room = header_room(stream.names(), metadata)
        stream_tensors(
            path, stream.tensors(), stream.wide(), stream.numbers(), room, lambda: {**metadata, **late()}
        )
    else:
        tensors = to_tensors(weights, keys=keys, dtype=dtype)
        save_tensors(path, tensors, {**metadata, **late()})
