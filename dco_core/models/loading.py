"""The models that `--model` names, and the devices that `--device` names."""

from __future__ import annotations

import torch

from ..errors import DCOError
from ..toy_world.bases import BASES, DEFAULT_BASE
from .host_model import SCHEMES, HostFiles
from .image_model import ImageModel

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


_NO_FILES = HostFiles()


def load_model(
    name: str, device: str | None = None, precision: str | None = None, files: HostFiles = _NO_FILES
) -> ImageModel:
    """The ImageModel that --model names, on a device (see usable_device) with weights of a precision (None: fp32, or
    what ComfyUI chooses for its models): toy-world:BASE (bases.py; toy-world alone is the base epsilon),
    diffusers:FOLDER, checkpoint:FILE or unet:FILE. files: what comes beside a model that ComfyUI reads. Raises DCOError
    for a name that is none."""
    kind, colon, rest = name.partition(":")
    toy = kind == "toy-world" and rest in (BASES if colon else ("",))
    if not toy and not (kind in ("diffusers", *SCHEMES) and rest):
        known = ", ".join(f"toy-world:{base}" for base in BASES)
        raise DCOError(
            f"--model {name} is unknown: use toy-world, {known}, diffusers:FOLDER, checkpoint:FILE or unet:FILE."
        )
    found = usable_device(device)
    if kind in SCHEMES:
        from .host_model import load as load_host_model

        return load_host_model(kind, rest, found, PRECISIONS[precision] if precision else None, files)
    if files.any:
        raise DCOError(f"--clip, --clip-type and --vae are for models that ComfyUI reads, not {name}: leave them out.")
    dtype = PRECISIONS[precision or "fp32"]
    if toy:
        from ..toy_world.image_model import ToyWorldModel

        return ToyWorldModel(found, dtype, rest or DEFAULT_BASE)
    from .diffusers_model import load

    return load(rest, found, dtype)


def usable_device(asked: str | None) -> str:
    """The device that --device names; None: the GPU if there is one. Raises DCOError for a name that is none and for a
    device that is not there."""
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise DCOError(f"--device {asked} is unknown: use cpu, cuda, or cuda:1 for the second GPU.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise DCOError(
                f"--device {asked}: torch {torch.__version__} finds no GPU: use --device cpu, or install a driver and "
                "a torch for CUDA."
            )
        if (device.index or 0) >= count:
            raise DCOError(f"--device {asked} is not there: use cuda:0 to cuda:{count - 1}, or cpu.")
        return asked
    try:
        torch.ones(1, device=device).item()
    except Exception:  # each backend says in its own way that it is not there
        raise DCOError(f"--device {asked} cannot be used with this torch: use cpu or cuda.") from None
    return asked
