"""Checkpoints of a training that are kept as LoRA files, and what is measured of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.buckets import BucketedImage
from ..errors import DCOError
from ..lora import LoraLayer, LoraWeights, read_lora, write_lora
from ..models.image_model import ImageModel
from ..network.denoiser import NetworkDenoiser
from ..network.lora_layers import AdapterConfig
from ..pipeline.examples import Preparation, PreparedPictures
from ..pipeline.generation import GenerationConfig
from ..pipeline.pictures import FolderPictures
from ..training.config import TrainingConfig
from ..training.examples import Example
from .pictures import draw_latents
from .side_by_side import SideBySide
from .study import STOPPED, Study

LORA = "lora.safetensors"
_KEY = "dco_job"


def lora_file(folder: Path, checkpoint: int | str, last: int) -> Path:
    """The LoRA of a checkpoint; that of the end is lora.safetensors."""
    return folder / (LORA if checkpoint == last else f"lora-{checkpoint}.safetensors")


def keep(path: Path, model: ImageModel, layers: Mapping[str, LoraLayer], key: str) -> None:
    """Write a checkpoint of the job of that key."""
    named = {model.canonical(name): layer for name, layer in layers.items()}
    write_lora(path, LoraWeights(named, {}, {_KEY: key}))


def is_of(path: Path, key: str) -> bool:
    """Whether a checkpoint is there and of the job of that key."""
    try:
        return read_lora(path).metadata.get(_KEY) == key
    except (DCOError, OSError):
        return False


def examples_of(
    model: ImageModel, folder: Path, config: TrainingConfig, study: Study, denoiser: NetworkDenoiser
) -> list[Example]:
    """The references in a folder as examples, with what the base model makes for the objective."""
    generation = GenerationConfig(class_images=study.class_images, generation_w_text=study.w_text)
    how = Preparation(study.resolution or model.default_resolution, square=True)
    return PreparedPictures(model, FolderPictures(folder, config, generation), how).examples(denoiser)


def prompt_examples(
    model: ImageModel, denoiser: NetworkDenoiser, prompts: Sequence[str], study: Study, seed: int
) -> list[Example]:
    """Pictures that the base model draws of prompts beyond the references, as examples with these prompts."""
    latents = draw_latents(
        model, denoiser, prompts, 0.0, w_text=study.w_text, steps=study.sampling_steps, pictures=1, seed=seed,
        resolution=study.resolution, at_once=study.pictures_at_once,
    )  # fmt: skip
    side = study.resolution or model.default_resolution
    bucketed = BucketedImage(torch.zeros(side, side, 3), None, (side, side), (0, 0))
    read = zip(latents, model.encode_captions(prompts), strict=True)
    return [Example(latent, model.network_input(model.with_size(text, bucketed), latent)) for latent, text in read]


def train_together(
    model: ImageModel,
    folders: Sequence[Path],
    jobs: Sequence[tuple[Path, str]],
    configs: Sequence[TrainingConfig],
    adapters: Sequence[AdapterConfig],
    checkpoints: Sequence[int],
    study: Study,
) -> list[dict[str, Any]]:
    """Train several runs side by side and keep their checkpoints. folders: of references; jobs: (folder, key) of each.
    Returns what training.csv says of each."""
    plain = model.denoiser(None)
    examples = [
        examples_of(model, folder, config, study, plain)
        for folder, config in zip(folders, configs, strict=True)
    ]
    starts = [model.denoiser(adapter).lora() for adapter in adapters]
    seeds = [config.seed for config in configs]
    device = examples[0][0].latent.device
    runs = SideBySide(plain, starts, examples, seeds, configs[0], device)
    last = configs[0].steps

    def on_step(step: int) -> None:
        if step in checkpoints:
            for i, (folder, key) in enumerate(jobs):
                keep(lora_file(folder, step, last), model, runs.denoiser.lora_of(i), key)

    runs.run(on_step)
    if runs.stopped:
        for i, (folder, key) in enumerate(jobs):
            keep(lora_file(folder, STOPPED, last), model, runs.denoiser.lora_of(i, runs.stopped), key)
    return [
        {
            "objective": config.objective, "steps": config.steps,
            "beta": config.beta if config.is_dco else None,
            "stopped_at": at if runs.stopped else None,
        }
        for config, at in zip(configs, runs.stopped_at, strict=True)
    ]  # fmt: skip
