"""Tensors with JSON values beside them in a safetensors file that is read back exactly as it was written, or not
at all: the format itself does not notice a byte that the disk changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .atomic import save_tensors
from .content_key import content_key

_ABOUT, _SEAL = "dco.about", "dco.seal"


def write_sealed(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write the file whole or not at all. Raises DCOError where it cannot be written."""
    text = json.dumps(about)
    save_tensors(path, tensors, {_ABOUT: text, _SEAL: content_key(text, tensors)})


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, about) of a file; None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            # cloned: what safetensors gives is mapped from the file, which may be removed while it is in use
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
        whole = header[_SEAL] == content_key(header[_ABOUT], tensors)
        return (tensors, json.loads(header[_ABOUT])) if whole else None
    except (SafetensorError, OSError, KeyError, ValueError):
        return None


def read_about(path: Path) -> dict[str, Any] | None:
    """What is beside the tensors, which are not looked at; None if the file is missing or its head damaged."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return json.loads((file.metadata() or {})[_ABOUT])
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
