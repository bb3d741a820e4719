"""ZipLoRA of two trained LoRAs on the references that they were trained on (Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..lora import LoraWeights
from ..merging import ZipLora, ZipSettings, merge_with, optimise
from ..models.image_model import ImageModel
from ..pipeline.examples import FolderExamples, FolderPictures
from ..training.config import TrainingConfig


def zip_merge(
    model: ImageModel,
    loras: Sequence[LoraWeights],
    folders: Sequence[Path],
    steps: int,
    seed: int,
    resolution: int | None,
) -> tuple[LoraWeights, dict[str, float]]:
    """The merge with optimised columns, and its losses at the first and the last step. folders: references of the
    subject and of the style, with captions; the model's encoders are not needed afterwards."""
    size = resolution or model.default_resolution
    data = [
        FolderExamples(model, FolderPictures(folder, TrainingConfig()), size, True) for folder in folders
    ]
    denoiser = model.denoiser(None)
    names = {
        model.canonical(name): name
        for name, module in denoiser.network.named_modules()
        if hasattr(module, "weight")
    }
    content, style = ({names[key]: layer for key, layer in lora.layers.items()} for lora in loras)
    subject, styled = (part.examples(denoiser) for part in data)
    found = optimise(denoiser, content, style, subject, styled, ZipSettings(steps=steps, seed=seed))
    mergers = {model.canonical(name): pair for name, pair in found.mergers.items()}
    losses: dict[str, float] = {}
    for when, values in (("first", found.losses[0]), ("last", found.losses[-1])):
        losses |= {
            f"{kind}_{when}": v for kind, v in zip(("content", "style", "similarity"), values, strict=True)
        }
    return merge_with(ZipLora(mergers), loras, [1.0, 1.0]), losses
