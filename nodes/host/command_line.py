"""The host's models for `python -m dco_core train`, without its server: loaded as its loader nodes do, trained as the
trainer node does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...dco_core.errors import DCOError
from ...dco_core.models.host_model import HostFiles


def load(
    root: Path, scheme: str, file: str, device: str, dtype: torch.dtype | None, others: HostFiles
) -> Any:
    """An ImageModel. root: of the host, importable already. scheme: "checkpoint", or "unet" for a network alone."""
    from comfy.cli_args import args

    chosen = torch.device(device)
    args.cpu = chosen.type == "cpu"  # read when the host's memory management is imported
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    import comfy.sd
    import folder_paths

    _read_extra_paths(root)
    embeddings = folder_paths.get_folder_paths("embeddings")
    options = {} if dtype is None else {"dtype": dtype}
    kind = "checkpoints" if scheme == "checkpoint" else "diffusion_models"
    path = _found(f"--model {scheme}:", file, kind)
    clip = vae = None
    try:
        if scheme == "checkpoint":
            model, clip, vae = comfy.sd.load_checkpoint_guess_config(
                path, embedding_directory=embeddings, model_options=options
            )[:3]
        else:
            model = comfy.sd.load_diffusion_model(path, model_options=options)
    except Exception as error:  # damaged files raise whatever their readers do
        raise DCOError(f"ComfyUI cannot load {path}: {_first_line(error)}") from error
    if others.clip:
        paths = [_found("--clip ", name, "text_encoders") for name in others.clip]
        try:
            clip = comfy.sd.load_clip(paths, embeddings, _clip_type(others.clip_type))
        except Exception as error:
            raise DCOError(f"ComfyUI cannot load {', '.join(paths)} as text encoder: {_first_line(error)}") from error
    if others.vae:
        vae = _vae(_found("--vae ", others.vae, "vae"))
    for part, what, option in ((model, "network", "--model"), (clip, "text encoder", "--clip"), (vae, "VAE", "--vae")):
        if part is None:
            raise DCOError(f"{path} holds no {what}: name a file that does, with {option}.")
    from .training.command_line_model import CommandLineModel

    return CommandLineModel(model, clip, vae)


def _vae(path: str) -> Any:
    import comfy.sd
    import comfy.utils

    try:
        weights, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
        vae = comfy.sd.VAE(sd=weights, metadata=metadata)
        vae.throw_exception_if_invalid()
    except Exception as error:
        raise DCOError(f"ComfyUI cannot load {path} as VAE: {_first_line(error)}") from error
    return vae


def _clip_type(name: str) -> Any:
    """The host's CLIPType of a name as its CLIP loaders have it."""
    from comfy.sd import CLIPType

    types = {kind.name.lower(): kind for kind in CLIPType}
    known = name.lower() or "stable_diffusion"
    if known == "sdxl":  # as DualCLIPLoader calls it
        known = "stable_diffusion"
    if known not in types:
        raise DCOError(f"--clip-type {name} is unknown: use one of {', '.join(sorted([*types, 'sdxl']))}.")
    return types[known]


def _found(option: str, name: str, kind: str) -> str:
    """The path of a file: as it is written, or in one of the host's folders of that kind."""
    import folder_paths

    if Path(name).expanduser().is_file():
        return str(Path(name).expanduser())
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        folders = ", ".join(folder_paths.get_folder_paths(kind))
        raise DCOError(f"{option}{name} is not there, and not in ComfyUI's folders ({folders}): name a file.")
    return path


def _read_extra_paths(root: Path) -> None:
    """The folders that the host's own start reads from its extra_model_paths.yaml."""
    extra = root / "extra_model_paths.yaml"
    if extra.is_file():
        from utils.extra_config import load_extra_path_config

        load_extra_path_config(str(extra))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
