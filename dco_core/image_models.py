"""The models that `--model` names."""

from __future__ import annotations

import torch

from .errors import DCOError
from .image_model import ImageModel

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_model(name: str, device: str | None = None, precision: str = "fp32") -> ImageModel:
    """The ImageModel that --model names. Raises DCOError for a name that is none."""
    kind, _, folder = name.partition(":")
    if kind == "toy-world":
        from .toy_world.image_model import ToyWorldModel

        return ToyWorldModel(device or "cpu", PRECISIONS[precision], folder or "epsilon")
    if kind == "diffusers" and folder:
        from .diffusers_model import load

        found = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return load(folder, found, PRECISIONS[precision])
    raise DCOError(f"--model {name} is unknown: use toy-world, toy-world:flow, or diffusers:FOLDER.")
