"""From pictures, captions and masks to the trainer's examples, through an ImageModel, whichever it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..captions.markers import base_caption
from ..captions.preservation import preservation_prompts
from ..data.buckets import BucketedImage, bucket_size, bucket_step, fit, latent_mask
from ..data.folders import Picture
from ..errors import DCOError
from ..files.checksummed import read_sealed, write_sealed
from ..files.content_key import content_key
from ..files.tensor_memory import memory_of
from ..models.image_model import ImageModel
from ..network.denoiser import Denoiser
from ..suggested_scales import suggested_scales
from ..training.examples import Conditioning, Example
from ..training.previews import PreviewPrompt, Previews
from .generation import generate
from .pictures import TrainingPictures
from .vocabulary import Vocabulary

# What a network that reads them is told of size and crop: those of each picture, or (resolution, resolution, 0, 0,
# resolution, resolution) whatever the picture, as in the authors' code.
SIZES = ("real", "fixed")


@dataclass(frozen=True)
class Preparation:
    """How pictures become examples. resolution in pixels; square: a centred square of each picture instead of
    aspect-ratio buckets. size_conditioning: one of SIZES. previews: prompts to show while the model trains."""

    resolution: int
    square: bool = False
    size_conditioning: str = SIZES[0]
    previews: Sequence[str] = ()


@dataclass(frozen=True)
class _Encoded:
    """A picture as the model has read it. size: what became of its size, without its pixels. own: what theta reads,
    None while tokens train; base: what phi reads, None where it is the same. shown: see ImageModel.shown_beside."""

    caption: str
    size: BucketedImage
    latent: Tensor
    std: Tensor | None
    mask: Tensor | None
    own: Any
    base: Any = None
    shown: Any = None


class PreparedPictures:
    """Encodes everything once when it is made; `examples` and `previews` then need the network alone.

    Pictures in the same memory are encoded once. content: tells these examples from all others of the same model.
    Raises DCOError for what cannot be trained.
    """

    def __init__(
        self, model: ImageModel, data: TrainingPictures, how: Preparation, words: Vocabulary | None = None
    ):
        if how.size_conditioning not in SIZES:
            raise DCOError(
                f"size_conditioning {how.size_conditioning!r} is unknown: use one of {', '.join(SIZES)}."
            )
        self._model, self._how, self._words = model, how, words or Vocabulary()
        self._config, self._generation = data.config, data.generation
        self.captions = data.captions
        self._prompt = data.class_prompt(self._words.initializers)
        pictures: dict[Any, Picture] = {}
        for picture in data.pictures:
            pictures.setdefault(_identity(picture), picture)
        places = {key: i for i, key in enumerate(pictures)}
        self._order = [places[_identity(p)] for p in data.pictures for _ in range(p.repeats)]
        bucketed = [self._fit(picture) for picture in pictures.values()]
        class_images = data.class_images if self._config.with_prior else []
        given = [self._fit(picture) for picture in class_images for _ in range(picture.repeats)]
        self._n_given = len(given)
        texts = [picture.caption for picture in pictures.values()]
        self.content = content_key(
            bucketed, texts, self._order, given, self._prompt, self._generation if self._to_make(len(texts)) else None,
            dataclasses.replace(how, previews=()), dict(self._words.fixed), dict(self._words.initializers),
        )  # fmt: skip
        self._encode(texts, bucketed, given)
        self._made = self._make(model.sampler) if model.sampler and self._to_make() else None

    @property
    def class_prompt(self) -> str:
        """Of the subject's class; empty where the objective reads none."""
        return self._prompt

    @property
    def step_shape(self) -> tuple[int, ...]:
        """[B, C, ...] of the largest latents that a step may see."""
        latents = [e.latent for e in self._encoded] + [mean for _, (mean, _) in self._given]
        return (self._config.batch_size, *max(latents, key=Tensor.numel).shape)

    def __len__(self) -> int:
        """How many pictures are learned from."""
        return len(self._encoded)

    @property
    def settings(self) -> dict[str, Any]:
        """What the file's header is to tell of pictures that come beside the references."""
        settings: dict[str, Any] = {"class_prompt": self._prompt} if self._prompt else {}
        if self._n_given:
            return settings | {"class_images": self._n_given}
        return settings | (dataclasses.asdict(self._generation) | settings if self._to_make() else {})

    # --- for the network

    def examples(
        self, denoiser: Denoiser, kept: Path | None = None, on_message: Callable[[str], None] = lambda text: None
    ) -> list[Example]:
        """The examples; repeats share one. kept: a file for what the base model makes, which is not made again if it
        is there. on_message: told what is made. Raises DCOError where the base model gives NaN or `kept` cannot be
        written."""
        rejected, class_images = self._generated(denoiser, kept, on_message)
        read = self._learned_reader()
        made = [self._example(e, latents, read) for e, latents in zip(self._encoded, rejected, strict=True)]
        examples = [made[i] for i in self._order]
        for f, (mean, std) in self._given:
            examples.append(self._class_example(mean, std, self._told_size(f)))
        for latent in class_images:
            examples.append(self._class_example(latent, None, self._told_size(self._canvas())))
        return examples

    def previews(
        self, denoiser: Denoiser, seed: int, callback: Callable[[], None] = lambda: None
    ) -> Previews:
        """Pictures of the preview prompts, at the size of the first reference and with nothing cut off."""
        first, read = self._encoded[0], self._learned_reader()
        x0 = first.latent
        size = _whole(self._told_size(first.size))
        scales = suggested_scales(self._model.family, self._model.prediction)
        assert scales is not None  # of every prediction that can be trained
        empty = self._read(self._empty, size, x0)
        prompts = [
            PreviewPrompt(text, self._theta(text, own, size, x0, None, read), self._read(base, size, x0), empty)
            for text, own, base in self._preview_texts
        ]
        return Previews(
            denoiser, prompts, x0.shape, seed, w_rg=scales.w_rg, w_text=scales.w_text, device=x0.device,
            callback=callback,
        )  # fmt: skip

    def _example(self, e: _Encoded, rejected: Sequence[Tensor], read: Any) -> Example:
        size = self._told_size(e.size)
        x0 = e.latent.clone()  # a host makes it in inference mode, where it could not be changed
        preserved = self._config.objective == "output-preservation"
        return Example(
            x0,
            self._theta(e.caption, e.own, size, x0, e.shown, read),
            base_conditioning=self._read(e.base, size, x0, e.shown),
            std=None if e.std is None else e.std.clone(),
            class_conditioning=self._read(self._class, size, x0, e.shown) if preserved else None,
            empty_conditioning=self._empty_for(size, x0, e.shown),
            mask=None if e.mask is None else e.mask.to(x0).clone(),
            rejected=[latent.clone() for latent in rejected],
            preserved=[self._read(text, size, x0, e.shown) for text in self._preserved],
        )

    def _class_example(self, latent: Tensor, std: Tensor | None, size: BucketedImage) -> Example:
        x0 = latent.clone()
        return Example(
            x0, self._read(self._class, size, x0), std=None if std is None else std.clone(),
            empty_conditioning=self._empty_for(size, x0), prior=True,
        )  # fmt: skip

    def _empty_for(self, size: BucketedImage, x0: Tensor, shown: Any = None) -> Any:
        return self._read(self._empty, size, x0, shown) if self._config.caption_dropout else None

    def _learned_reader(self) -> Callable[[str], Callable[[], Any]] | None:
        if self._words.tokens is None:
            return None
        assert self._model.learned_tokens is not None  # there would be no tokens
        return self._model.learned_tokens.trained(self._words.tokens)

    def _theta(self, caption: str, own: Any, size: BucketedImage, x0: Tensor, shown: Any, read: Any) -> Conditioning:
        """What theta reads: a function that reads the caption anew while its tokens train."""
        if read is None:
            return self._read(own, size, x0, shown)
        learned = read(caption)
        return lambda: self._read(learned(), size, x0, shown)

    def _read(self, text: Any, size: BucketedImage, x0: Tensor, shown: Any = None) -> Any:
        return None if text is None else self._model.network_input(self._model.with_size(text, size), x0, shown)

    # --- encoding

    def _fit(self, picture: Picture) -> BucketedImage:
        height, width = picture.image.shape[:2]
        size = (self._how.resolution, self._how.resolution)
        if not self._how.square:
            size = bucket_size(width, height, self._how.resolution)
        try:
            return fit(picture.image.cpu().float(), size, picture.mask)
        except DCOError as error:
            raise DCOError(f"{picture.name}: {error}") from None

    def _encode(self, texts: Sequence[str], bucketed: Sequence[BucketedImage], given: Sequence[BucketedImage]) -> None:
        model, words, previews = self._model, self._words, list(self._how.previews)
        needs_empty = bool(self._config.caption_dropout or previews or self._to_make(len(texts)))
        beside = [""] * needs_empty + [self._prompt] * bool(self._prompt)
        everything = [*texts, *previews]
        preserved = preservation_prompts(self._config.preservation_prompts, self._prompt)
        asked = [*everything, *preserved]
        read = model.encode_captions([*(base_caption(t, words.initializers) for t in asked), *beside])
        base: list[Any] = read[: len(everything)]
        self._preserved = read[len(everything) : len(asked)]
        self._empty = read[len(asked)] if needs_empty else None
        self._class = read[-1] if self._prompt else None
        own: list[Any] = base
        if words.tokens is not None:
            own = [None] * len(everything)
        elif words.fixed:
            assert model.learned_tokens is not None  # where the fixed rows are from
            own = model.learned_tokens.encode(everything, words.fixed, words.initializers)
        n = len(texts)
        self._preview_texts = list(zip(previews, own[n:], base[n:], strict=True))
        latents = model.encode_images([f.image for f in bucketed])
        self._encoded = [
            _Encoded(
                text, _without_pixels(f), mean, std, latent_mask(f.mask, mean), mine, None if mine is its else its,
                model.shown_beside(f, mean),
            )
            for text, f, (mean, std), mine, its in zip(texts, bucketed, latents, own[:n], base[:n], strict=True)
        ]  # fmt: skip
        given_latents = model.encode_images([f.image for f in given]) if given else []
        self._given = list(zip(map(_without_pixels, given), given_latents, strict=True))

    def _told_size(self, f: BucketedImage) -> BucketedImage:
        """What the network is told of a picture's size and crop."""
        side = self._how.resolution
        return f if self._how.size_conditioning == "real" else _blank(side, side)

    def _canvas(self) -> BucketedImage:
        """A square of the resolution."""
        step = bucket_step(self._how.resolution)
        side = self._how.resolution // step * step
        return _blank(side, side)

    # --- what the base model makes

    def _generated(
        self, denoiser: Denoiser, kept: Path | None, on_message: Callable[[str], None]
    ) -> tuple[list[list[Tensor]], list[Tensor]]:
        """(rejected images of every picture, class images)."""
        none: list[list[Tensor]] = [[] for _ in self._encoded]
        if not self._to_make():
            return none, []
        latents = self._made or self._sampled(denoiser, kept, on_message)
        if self._config.with_prior:
            return none, latents
        n = self._generation.rejected_images
        return [latents[i * n : (i + 1) * n] for i in range(len(self))], []

    def _sampled(self, denoiser: Denoiser, kept: Path | None, on_message: Callable[[str], None]) -> list[Tensor]:
        key = content_key(
            self._model.content(), self.content, self._config.objective, self._config.seed, denoiser.schedule
        )
        device = self._encoded[0].latent.device
        saved = read_sealed(kept) if kept is not None else None
        if saved is not None and saved[1].get("key") == key:
            return [saved[0][f"{i:06d}"].to(device) for i in range(len(saved[0]))]
        on_message(f"The base model makes {self._to_make()} first.")

        def sample(text, empty, size, seeds, *, w_text, steps, shown=None) -> list[Tensor]:
            shape = self._latent_shape(size)
            return generate(denoiser, text, empty, shape, seeds, w_text=w_text, steps=steps, device=device)

        latents = self._make(sample)
        if kept is not None:
            write_sealed(kept, {f"{i:06d}": x for i, x in enumerate(latents)}, {"key": key})
        return latents

    def _to_make(self, pictures: int | None = None) -> str:
        """In words; "" if nothing."""
        if self._config.objective == "mapo":
            n = len(self) if pictures is None else pictures
            return f"{self._generation.rejected_images * n} rejected images"
        if self._config.with_prior and not self._n_given:
            return f'{self._generation.class_images} class images of "{self._prompt}"'
        return ""

    def _make(self, sample: Callable[..., list[Tensor]]) -> list[Tensor]:
        """Class images of a square, or rejected images of each picture's size, with nothing cut off."""
        if self._config.with_prior:
            wanted = [(self._class, self._canvas(), None)]
            count = self._generation.class_images
        else:
            wanted = [(e.own if e.base is None else e.base, _whole(e.size), e.shown) for e in self._encoded]
            count = self._generation.rejected_images
        asked = self._generation.generation_w_text
        made = []
        for i, (text, f, shown) in enumerate(wanted):
            first = self._config.seed + 7919 * (i + 1)
            made += sample(
                self._model.with_size(text, f), self._model.with_size(self._empty, f), f.target_size,
                range(first, first + count), w_text=self._model.w_text if asked is None else asked,
                steps=self._generation.generation_steps, shown=shown,
            )  # fmt: skip
        return made

    def _latent_shape(self, size: tuple[int, int]) -> list[int]:
        """Of a picture of this size in pixels."""
        first = self._encoded[0]
        height = first.size.target_size[0]
        return [first.latent.shape[0], *(side * first.latent.shape[1] // height for side in size)]


def _identity(picture: Picture) -> Any:
    mask = None if picture.mask is None else memory_of(picture.mask)
    return memory_of(picture.image), mask, picture.caption


def _blank(height: int, width: int) -> BucketedImage:
    """A picture of that size of which nothing was cut off, without pixels of its own."""
    return BucketedImage(torch.zeros(1).expand(height, width, 3), None, (height, width), (0, 0))


def _whole(f: BucketedImage) -> BucketedImage:
    return _blank(*f.target_size)


def _without_pixels(f: BucketedImage) -> BucketedImage:
    """The same sizes; pixels of all pictures together may fill the memory."""
    return dataclasses.replace(_whole(f), original_size=f.original_size, crop=f.crop)
