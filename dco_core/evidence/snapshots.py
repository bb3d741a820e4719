"""Checkpoints of a training that are kept as LoRA files, and what is measured of one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.buckets import BucketedImage
from ..errors import DCOError
from ..lora import LoraLayer, LoraWeights, bundled, read_lora, write_lora
from ..models.image_model import ImageModel
from ..network.denoiser import NetworkDenoiser
from ..network.lora_layers import AdapterConfig
from ..pipeline.examples import Preparation, PreparedPictures
from ..pipeline.generation import GenerationConfig
from ..pipeline.pictures import FolderPictures
from ..pipeline.vocabulary import Vocabulary, kept_vocabulary
from ..training.calibration import with_beta
from ..training.config import TrainingConfig
from ..training.examples import Example
from .pictures import draw_latents, encoded_prompts
from .side_by_side import SideBySide
from .study import STOPPED, Study

LORA = "lora.safetensors"
_KEY = "dco_job"
NO_WORDS = Vocabulary()


def lora_file(folder: Path, checkpoint: int | str, last: int) -> Path:
    """The LoRA of a checkpoint; that of the end is lora.safetensors."""
    return folder / (LORA if checkpoint == last else f"lora-{checkpoint}.safetensors")


def keep(
    path: Path, model: ImageModel, layers: Mapping[str, LoraLayer], key: str, words: Vocabulary = NO_WORDS
) -> None:
    """Write a checkpoint of the job of that key, with the rows of its tokens."""
    named = {model.canonical(name): layer for name, layer in layers.items()}
    rows = words.rows()
    header = {_KEY: key} | ({"dco.tokens": json.dumps(dict(words.initializers))} if rows else {})
    write_lora(path, LoraWeights(named, bundled(rows), header))


def is_of(path: Path, key: str) -> bool:
    """Whether a checkpoint is there and of the job of that key."""
    try:
        return read_lora(path).metadata.get(_KEY) == key
    except (DCOError, OSError):
        return False


def examples_of(
    model: ImageModel, folder: Path, config: TrainingConfig, study: Study, denoiser: NetworkDenoiser,
    lora: LoraWeights | None = None,
) -> list[Example]:  # fmt: skip
    """The references in a folder as examples, with what the base model makes for the objective. lora: whose tokens
    theta reads."""
    generation = GenerationConfig(class_images=study.class_images, generation_w_text=study.w_text)
    how = Preparation(study.resolution or model.default_resolution, square=True)
    pictures = FolderPictures(folder, config, generation)
    words = kept_vocabulary(pictures.captions, lora)
    return PreparedPictures(model, pictures, how, words).examples(denoiser)


def base_latents(
    model: ImageModel, denoiser: NetworkDenoiser, prompts: Sequence[str], study: Study, seed: int
) -> list[Tensor]:
    """What the base model draws of the prompts, a latent each."""
    return draw_latents(
        model, denoiser, prompts, 0.0, w_text=study.w_text, steps=study.sampling_steps, pictures=1, seed=seed,
        resolution=study.resolution, at_once=study.pictures_at_once,
    )  # fmt: skip


def prompt_examples(
    model: ImageModel, prompts: Sequence[str], latents: Sequence[Tensor], study: Study, lora: LoraWeights | None = None
) -> list[Example]:
    """Pictures that the base model has drawn of prompts beyond the references, as examples with these prompts. lora:
    whose tokens theta reads."""
    side = study.resolution or model.default_resolution
    bucketed = BucketedImage(torch.zeros(side, side, 3), None, (side, side), (0, 0))
    read = zip(latents, *encoded_prompts(model, prompts, lora), strict=True)
    return [
        Example(latent, *(model.network_input(model.with_size(text, bucketed), latent) for text in texts))
        for latent, *texts in read
    ]


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
    starts, settled = [], []
    for adapter, config, own in zip(adapters, configs, examples, strict=True):
        denoiser = model.denoiser(adapter)
        starts.append(denoiser.lora())
        settled.append(with_beta(config, denoiser, own))
    seeds = [config.seed for config in configs]
    betas = [config.beta for config in settled if config.beta is not None] if configs[0].beta is None else []
    plain, device = model.denoiser(None), examples[0][0].latent.device
    runs = SideBySide(plain, starts, examples, seeds, configs[0], device, betas)
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
        for config, at in zip(settled, runs.stopped_at, strict=True)
    ]  # fmt: skip
