"""From a folder of pictures with captions to a LoRA file, without any host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .adapters import AdapterConfig
from .buckets import Fitted, bucket_size, fit, latent_mask
from .caption_check import check_captions, report
from .captions import base_caption, class_prompt
from .checkpoints import Checkpoints
from .config import TrainingConfig
from .content import content_key
from .dataset import Picture, load_folder
from .errors import DCOError
from .examples import Example
from .image_model import ImageModel
from .lora import LoraWeights, write_lora
from .memory import estimate
from .trained_header import TrainedHeader
from .trainer import Training

_NEED_GENERATION = ("dreambooth-prior", "mapo")


class FolderTraining:
    """A Training on a folder's pictures, encoded once, with the file it is to become.

    resolution: in pixels, None for the model's own. square: a centred square of each picture instead of
    aspect-ratio buckets. compiled, gradient_checkpointing: of the network's blocks. notes: what to tell the user
    before the run. Raises DCOError for what cannot be trained, before anything is written.
    """

    def __init__(
        self,
        model: ImageModel,
        data: Path,
        output: Path,
        config: TrainingConfig,
        adapter: AdapterConfig,
        checkpoints: Checkpoints | None = None,
        resolution: int | None = None,
        square: bool = False,
        compiled: bool = False,
        gradient_checkpointing: bool = False,
    ):
        if config.objective in _NEED_GENERATION:
            raise DCOError(
                f"The objective {config.objective} needs images made by the base model, which the command line does "
                "not make yet: use the DCO LoRA Trainer node."
            )
        self._model, self._adapter, self._output = model, adapter, output
        self._resolution = resolution or model.default_resolution
        self._square = square or model.square
        if model.square and self._resolution != model.default_resolution:
            raise DCOError(
                f"This model draws {model.default_resolution} px, not {self._resolution}: leave the resolution out."
            )
        pictures = load_folder(data, require_captions=True)
        self._captions = [picture.caption for picture in pictures]
        fitted = [self._fit(picture) for picture in pictures]
        content = content_key(
            model.content(), adapter, fitted, self._captions, [p.repeats for p in pictures], compiled
        )
        examples = self._examples(pictures, fitted, config)
        model.offload_encoders()
        denoiser = model.denoiser(adapter)
        if compiled:
            denoiser.compile_blocks()
        if gradient_checkpointing:
            denoiser.checkpoint_blocks()
        self.training = Training(
            denoiser,
            examples,
            config,
            checkpoints=checkpoints,
            content=content,
            watch_speed=True,
        )
        self.notes = [
            f"{len(pictures)} pictures, {self._resolution} px. A step needs {estimate(denoiser, examples, config)}.",
            report(check_captions(self._captions, kind="auto"), self._captions),
            *self.training.notes,
        ]

    def _fit(self, picture: Picture) -> Fitted:
        height, width = picture.image.shape[:2]
        size = (self._resolution, self._resolution)
        if not self._square:
            size = bucket_size(width, height, self._resolution)
        try:
            return fit(picture.image, size, picture.alpha)
        except DCOError as error:
            raise DCOError(f"{picture.name}: {error}") from None

    def _examples(
        self, pictures: Sequence[Picture], fitted: Sequence[Fitted], config: TrainingConfig
    ) -> list[Example]:
        class_words = class_prompt(self._captions)
        texts = [*map(base_caption, self._captions), "", class_words]
        *own, empty, class_text = self._model.encode_captions(texts)
        latents = self._model.encode_images([f.image for f in fitted])
        needs_class = config.objective == "output-preservation" and class_words
        examples = []
        for picture, f, text, (mean, std) in zip(pictures, fitted, own, latents, strict=True):
            example = Example(
                mean,
                self._model.with_size(text, f),
                std=std,
                mask=latent_mask(f.mask, mean),
                empty_conditioning=self._model.with_size(empty, f),
                class_conditioning=self._model.with_size(class_text, f) if needs_class else None,
            )
            examples += [example] * picture.repeats
        return examples

    def save(self) -> None:
        """Write the LoRA as it is now, whole or not at all; the same run writes the same bytes. Raises DCOError where
        it cannot be written."""
        with self.training.result():
            layers = self.training.denoiser.lora()
        header = TrainedHeader(
            config=self.training.config,
            rank=self._adapter.rank,
            alpha=self._adapter.effective_alpha,
            layers=self._adapter.layers,
            family=self._model.family,
            prediction=self._model.prediction,
            captions=self._captions,
            other={
                "resolution": self._resolution,
                "square": self._square,
                "layer_filter": self._adapter.name_filter,
                "dropout": self._adapter.dropout,
            },
        )
        weights = LoraWeights(
            {self._model.canonical(name): layer for name, layer in layers.items()},
            {},
            header.entries(self._output.stem, self.training.step, {}, dated=False),
        )
        write_lora(self._output, weights, keys=dict(self._model.kohya_names()) or "kohya")


def checkpoint_folder(output: Path) -> Path:
    """Where the checkpoints of a run lie: beside the file it is to become."""
    return output.with_name(output.name + ".checkpoints")
