"""The host in this process, with the pack in it, for tests and benchmarks: no server, no queue."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch

from .environment import ROOT, comfyui_path
from .host_launcher import declare_torchvision_schemas

_PACK = "comfyui_dco"
_kept: list[Any] = []


def start() -> Path:
    """Make `comfy` importable, on the CPU where there is no GPU; where the host lies."""
    path = comfyui_path()
    _kept.append(declare_torchvision_schemas())
    sys.path.insert(0, str(path))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    package = types.ModuleType(_PACK)
    package.__path__ = [str(ROOT)]
    sys.modules[_PACK] = package
    return path


def pack(module: str) -> types.ModuleType:
    """A module of the pack as it is inside the host, such as "nodes.host.training.network"."""
    if "nodes" in module and f"{_PACK}.nodes" not in sys.modules:  # the nodes themselves are not wanted
        package = types.ModuleType(f"{_PACK}.nodes")
        package.__path__ = [str(ROOT / "nodes")]
        sys.modules[f"{_PACK}.nodes"] = package
    return importlib.import_module(f"{_PACK}.{module}")
