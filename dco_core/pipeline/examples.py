"""From a folder of pictures with captions to the trainer's examples, through an ImageModel; pictures that an
objective needs from the base model are made by it or come from a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..captions.markers import base_caption, class_prompt
from ..data.buckets import Fitted, bucket_size, bucket_step, fit, latent_mask
from ..data.folders import Picture, load_folder, made_smaller
from ..errors import DCOError
from ..files.checksummed import read_sealed, write_sealed
from ..files.fingerprints import content_key
from ..models.image_model import ImageModel
from ..network.denoiser import Denoiser
from ..training.config import TrainingConfig
from ..training.examples import Example
from .generation import GenerationConfig, generate

# What a network that reads them is told of size and crop: those of each picture, or (resolution, resolution, 0, 0,
# resolution, resolution) whatever the picture, as in the authors' code.
SIZES = ("real", "fixed")


class FolderPictures:
    """What a run learns from, read from folders and checked before there is a model.

    class_data: a folder of class images, in place of generated ones; their captions do not matter.
    pictures, captions: what is learned. class_images: of class_data. prompt: of the class, "" where the objective needs
    none. Raises DCOError for what cannot be trained.
    """

    def __init__(
        self, data: Path, config: TrainingConfig, generation: GenerationConfig | None = None,
        class_data: Path | None = None,
    ):  # fmt: skip
        self.config, self.generation = config, generation or GenerationConfig()
        config.check()
        self.generation.check()
        if class_data is not None and not config.with_prior:
            raise DCOError(
                f"Class images are for the objectives dreambooth-prior and dco-prior, not {config.objective}: "
                "leave --class-data out."
            )
        self.pictures = load_folder(data, require_captions=True)
        self.captions = [picture.caption for picture in self.pictures]
        self.prompt = self._class_prompt()
        self.class_images = [] if class_data is None else load_folder(class_data)

    @property
    def notes(self) -> list[str]:
        """What was read otherwise than it is in the files."""
        return made_smaller([*self.pictures, *self.class_images])

    def _class_prompt(self) -> str:
        if not (self.config.with_prior or self.config.objective == "output-preservation"):
            return ""
        prompt = base_caption(self.generation.class_prompt.strip() or class_prompt(self.captions))
        if not prompt:
            raise DCOError(
                f"The objective {self.config.objective} needs a class prompt and no caption marks the subject: give "
                '--class-prompt "a photo of a dog", or mark <dog>.'
            )
        return prompt


class FolderExamples:
    """Encodes everything once when it is made; `examples` then needs the network alone.

    resolution in pixels; square: a centred square of each picture instead of aspect-ratio buckets.
    size_conditioning: one of SIZES. content: tells these examples from all others of the same model.
    Raises DCOError for what cannot be trained.
    """

    def __init__(
        self, model: ImageModel, folder: FolderPictures, resolution: int, square: bool,
        size_conditioning: str = SIZES[0],
    ):  # fmt: skip
        if size_conditioning not in SIZES:
            raise DCOError(
                f"size_conditioning {size_conditioning!r} is unknown: use one of {', '.join(SIZES)}."
            )
        if size_conditioning != SIZES[0] and not model.reads_sizes:
            raise DCOError("This model reads no sizes, as SDXL does: leave --size-conditioning out.")
        self._size_conditioning = size_conditioning
        config, generation = folder.config, folder.generation
        self._model, self._config, self._generation = model, config, generation
        self._resolution, self._square = resolution, square
        self._pictures, self.captions, self._prompt = folder.pictures, folder.captions, folder.prompt
        self._fitted = [self._fit(picture) for picture in self._pictures]
        self._given = [self._fit(picture) for picture in folder.class_images for _ in range(picture.repeats)]
        made = generation if (config.with_prior or config.objective == "mapo") and not self._given else None
        self.content = content_key(
            self._fitted,
            self.captions,
            [p.repeats for p in self._pictures],
            self._given,
            self._prompt,
            made,
            size_conditioning,
        )
        self._encode()

    def __len__(self) -> int:
        """How many pictures are learned from."""
        return len(self._pictures)

    @property
    def settings(self) -> dict[str, Any]:
        """What the file's header is to tell of pictures that come beside the folder's."""
        settings: dict[str, Any] = {"class_prompt": self._prompt} if self._prompt else {}
        if self._config.with_prior and self._given:
            return settings | {"class_images": len(self._given)}
        return settings | (dataclasses.asdict(self._generation) | settings if self._to_make() else {})

    def examples(
        self, denoiser: Denoiser, kept: Path | None = None, say: Callable[[str], None] = lambda text: None
    ) -> list[Example]:
        """The examples. kept: a file for what the base model makes, which is not made again if it is there. say:
        told what is made. Raises DCOError where the base model gives NaN or `kept` cannot be written."""
        rejected, class_images = self._generated(denoiser, kept, say)
        examples = []
        for i, (picture, f, (mean, std)) in enumerate(
            zip(self._pictures, self._fitted, self._latents, strict=True)
        ):
            example = Example(
                mean,
                self._told(self._own[i], f),
                std=std,
                mask=latent_mask(f.mask, mean),
                empty_conditioning=self._told(self._empty, f),
                class_conditioning=self._told(self._class, f) if self._prompt else None,
                rejected=rejected[i],
            )
            examples += [example] * picture.repeats
        for f, (mean, std) in zip(self._given, self._given_latents, strict=True):
            examples.append(Example(mean, self._told(self._class, f), std=std, prior=True))
        for latent in class_images:
            examples.append(Example(latent, self._told(self._class, self._canvas()), prior=True))
        return examples

    def _told(self, text: Any, f: Fitted) -> Any:
        """A conditioning with what the network is told of a picture's size and crop."""
        if self._size_conditioning == "fixed":
            side = self._resolution
            f = Fitted(torch.zeros(1).expand(side, side, 3), None, (side, side), (0, 0))
        return self._model.with_size(text, f)

    # --- encoding

    def _fit(self, picture: Picture) -> Fitted:
        height, width = picture.image.shape[:2]
        size = (self._resolution, self._resolution)
        if not self._square:
            size = bucket_size(width, height, self._resolution)
        try:
            return fit(picture.image, size, picture.alpha)
        except DCOError as error:
            raise DCOError(f"{picture.name}: {error}") from None

    def _encode(self) -> None:
        texts = [*map(base_caption, self.captions), "", self._prompt]
        *self._own, self._empty, self._class = self._model.encode_captions(texts)
        self._latents = self._model.encode_images([f.image for f in self._fitted])
        self._given_latents = self._model.encode_images([f.image for f in self._given])

    # --- what the base model makes

    def _generated(
        self, denoiser: Denoiser, kept: Path | None, say: Callable[[str], None]
    ) -> tuple[list[list[Tensor]], list[Tensor]]:
        """(rejected images of every picture, class images)."""
        none: list[list[Tensor]] = [[] for _ in self._pictures]
        if not self._to_make():
            return none, []
        key = content_key(
            self._model.content(), self.content, self._config.objective, self._config.seed, denoiser.schedule
        )
        device = self._latents[0][0].device
        saved = read_sealed(kept) if kept is not None else None
        if saved is not None and saved[1].get("key") == key:
            latents = [saved[0][f"{i:06d}"].to(device) for i in range(len(saved[0]))]
        else:
            say(f"The base model makes {self._to_make()} first.")
            latents = self._make(denoiser)
            if kept is not None:
                write_sealed(kept, {f"{i:06d}": x for i, x in enumerate(latents)}, {"key": key})
        if self._config.with_prior:
            return none, latents
        n = self._generation.rejected_images
        return [latents[i * n : (i + 1) * n] for i in range(len(self))], []

    def _to_make(self) -> str:
        """In words; "" if nothing."""
        if self._config.objective == "mapo":
            return f"{self._generation.rejected_images * len(self)} rejected images"
        if self._config.with_prior and not self._given:
            return f'{self._generation.class_images} class images of "{self._prompt}"'
        return ""

    def _make(self, denoiser: Denoiser) -> list[Tensor]:
        if self._config.with_prior:
            canvas = self._canvas()
            shape = self._latent_shape(canvas)
            return self._sample(denoiser, self._class, canvas, shape, self._generation.class_images, 0)
        made = []
        for i, (text, f, (mean, _)) in enumerate(zip(self._own, self._fitted, self._latents, strict=True)):
            whole = Fitted(f.image, None, f.target_size, (0, 0))  # a picture of that size, nothing cut off
            made += self._sample(denoiser, text, whole, mean.shape, self._generation.rejected_images, i)
        return made

    def _sample(
        self, denoiser: Denoiser, text: Any, f: Fitted, shape: Sequence[int], count: int, number: int
    ) -> list[Tensor]:
        first = self._config.seed + 7919 * (number + 1)
        w_text = self._generation.generation_w_text
        return generate(
            denoiser, self._model.with_size(text, f), self._model.with_size(self._empty, f), shape,
            range(first, first + count), w_text=self._model.w_text if w_text is None else w_text,
            steps=self._generation.generation_steps, device=self._latents[0][0].device,
        )  # fmt: skip

    def _canvas(self) -> Fitted:
        """A square of the resolution."""
        step = bucket_step(self._resolution)
        side = self._resolution // step * step
        return Fitted(torch.zeros(side, side, 3), None, (side, side), (0, 0))

    def _latent_shape(self, canvas: Fitted) -> list[int]:
        mean, (height, _) = self._latents[0][0], self._fitted[0].target_size
        return [mean.shape[0], *(side * mean.shape[1] // height for side in canvas.target_size)]
