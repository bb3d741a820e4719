"""Models that ComfyUI reads, for the command line: every family that the trainer node trains, through the same code.

This package imports no host. The pack's folder nodes/host does, and is imported here only where --model names such a
model. It is a part of a package inside ComfyUI, so it becomes one here too, with this very dco_core in it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import DCOError
from .image_model import ImageModel

SCHEMES = ("checkpoint", "unet")
_CORE = Path(__file__).parents[1]
_ROOT = _CORE.parent
_PACK = "dco_pack"


@dataclass(frozen=True)
class HostFiles:
    """What --clip, --clip-type and --vae name: text encoders and VAE in files of their own."""

    clip: Sequence[str] = ()
    clip_type: str = ""
    vae: str = ""

    @property
    def any(self) -> bool:
        return bool(self.clip or self.clip_type or self.vae)


def load(
    scheme: str, file: str, device: str, dtype: torch.dtype | None, others: HostFiles
) -> ImageModel:
    """The model in a checkpoint, or in a file of the network alone. file: a path, or a name in ComfyUI's folders.
    dtype: of the network's weights; None: as ComfyUI chooses. Raises DCOError without a ComfyUI and for files that it
    cannot read."""
    if scheme == "unet" and not (others.clip and others.vae):
        missing = "--clip FILE" if not others.clip else "--vae FILE"
        raise DCOError(
            f"--model unet:{file} is a network without text encoder and VAE: add {missing}, as in ComfyUI's loaders."
        )
    root = _comfyui(f"--model {scheme}:")
    command_line = _pack_module("nodes.host.command_line", root)
    return command_line.load(root, scheme, file, device, dtype, others)


def _comfyui(asked: str) -> Path:
    """The ComfyUI that COMFYUI_PATH names, or in whose custom_nodes the pack lies."""
    named = os.environ.get("COMFYUI_PATH", "").strip()
    if not named and _ROOT.parent.name == "custom_nodes":
        named = str(_ROOT.parents[1])
    if not named:
        raise DCOError(
            f"{asked} reads models as ComfyUI does, and there is none: set COMFYUI_PATH to its folder, the one with "
            "main.py in it, and use its Python."
        )
    path = Path(named).expanduser().resolve()
    if not ((path / "main.py").is_file() and (path / "comfy").is_dir()):
        raise DCOError(
            f"COMFYUI_PATH is {named}, which is no ComfyUI: name the folder with main.py and comfy in it."
        )
    return path


def _pack_module(name: str, comfyui: Path) -> Any:
    if not (_ROOT / "nodes" / "host").is_dir():
        raise DCOError(f"There is no {_ROOT / 'nodes' / 'host'}: download the whole of ComfyUI-DCO.")
    if _PACK not in sys.modules:
        sys.path.insert(0, str(comfyui))  # first: the pack's folder has a `nodes` too
        sys.meta_path.insert(0, _SameCore())
        for package, folder in ((_PACK, _ROOT), (f"{_PACK}.nodes", _ROOT / "nodes")):  # the nodes are not wanted
            module = types.ModuleType(package)
            module.__path__ = [str(folder)]
            sys.modules[package] = module
    try:
        return importlib.import_module(f"{_PACK}.{name}")
    except ImportError as error:
        raise DCOError(
            f"ComfyUI in {comfyui} cannot be imported ({error}): use the Python that runs it."
        ) from error


class _SameCore(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds dco_pack.dco_core as the dco_core that runs already: two of them would know each other's classes not."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        inside = fullname == f"{_PACK}.dco_core" or fullname.startswith(f"{_PACK}.dco_core.")
        return importlib.machinery.ModuleSpec(fullname, self) if inside else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = importlib.import_module(__package__.split(".models")[0] + spec.name[len(f"{_PACK}.dco_core") :])
        self._own = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._own  # the import system has put that of the other name in its place
