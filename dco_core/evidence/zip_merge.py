"""ZipLoRA of two trained LoRAs on the references that they were trained on (Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..lora import LoraWeights
from ..merging import ZipLora, merge_with
from ..models.image_model import ImageModel
from ..pipeline.examples import Preparation, PreparedPictures
from ..pipeline.pictures import FolderPictures
from ..training.config import TrainingConfig
from ..training.zip_lora import ZipSettings, names_by, zip_mergers


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
    how = Preparation(resolution or model.default_resolution, square=True)
    prepared = [
        PreparedPictures(model, FolderPictures(folder, TrainingConfig()), how) for folder in folders
    ]
    denoiser = model.denoiser(None)
    examples = [part.examples(denoiser) for part in prepared]
    settings = ZipSettings(steps=steps, seed=seed)
    names = [names_by(model.canonical, denoiser.network, lora) for lora in loras]
    found = zip_mergers(denoiser, names, loras, examples, settings)
    losses: dict[str, float] = {}
    for when, values in (("first", found.losses[0]), ("last", found.losses[-1])):
        losses |= {
            f"{kind}_{when}": v for kind, v in zip(("content", "style", "similarity"), values, strict=True)
        }
    return merge_with(ZipLora(found.mergers), loras, [1.0, 1.0]), losses
