"""The host's MODEL, CLIP and VAE as one ImageModel: what prepares pictures for it needs no other way to a host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_base
import torch
from torch import Tensor

from ....dco_core.data.buckets import BucketedImage
from ....dco_core.lora import LoraLayer, LoraWeights
from ....dco_core.models.image_model import TokenReader, TokenRows
from ....dco_core.network.lora_layers import AdapterConfig
from ....dco_core.suggested_scales import suggested_scales
from ....dco_core.training.learned_tokens import LearnedTokens, TokenSpec
from .. import layer_names, sampling, toy_world
from ..connected import vae_of
from . import conditioning, inpainting, learned_tokens, network
from .model_fingerprint import model_fingerprint, prompt_tokens
from .noise import noise_of
from .resolution import own_resolution


class HostImageModel:
    """An ImageModel (dco_core/models/image_model.py). Captions and pictures are encoded before the training session,
    while the host may still move its models; `network_input` and `denoiser` belong inside it. A conditioning is the
    host's CONDITIONING; what is `shown_beside` are entries of one."""

    def __init__(self, model, clip, vae, told: Callable[[str], None] = lambda line: None):
        """told: called with a line before each picture that is encoded or made."""
        self._told = told
        self._model, self._clip, self._vae = model, clip, vae
        self._denoiser: network.HostDenoiser | None = None
        self.family = layer_names.family(model)
        self.prediction = noise_of(model.get_model_object("model_sampling")).schedule.prediction
        self.default_resolution = own_resolution(model)
        self.square = self.family == "ToyWorld"
        self.reads_sizes = isinstance(model.model, comfy.model_base.SDXL)
        scales = suggested_scales(self.family, self.prediction)
        assert scales is not None  # noise_of knows no other predictions
        self.w_text = scales.w_text
        self.learned_tokens: TokenReader | None = _Tokens(clip)
        self.sampler = self._sample

    @contextmanager
    def training(
        self, config: AdapterConfig | None, texts: bool, precision: str, stream_weights: str = "auto",
        step_shape: Sequence[int] = (),
    ) -> Iterator[network.HostDenoiser]:  # fmt: skip
        """A training session on MODEL, and on CLIP where texts are read anew in every step; see `training_session`."""
        clip = self._clip if texts else None
        session = network.training_session(self._model, config, clip, precision, stream_weights, step_shape)
        with session as self._denoiser:
            yield self._denoiser

    def started_layers(self, start: LoraWeights) -> dict[str, LoraLayer]:
        return layer_names.started_layers(self._model, start)

    def denoiser(
        self, config: AdapterConfig | None, step_shape: Sequence[int] = (), stream_weights: str = "auto"
    ) -> network.HostDenoiser:
        self._denoiser = network.HostDenoiser(self._model, config)
        return self._denoiser

    def encode_images(self, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        toy_world.check_sizes(self._model, [(image.shape[0], image.shape[1]) for image in images])
        encoded = conditioning.encode_images(self._vae, images, self._told)
        return [network.native_latent(self._model, mean, std) for mean, std in encoded]

    def decode_latents(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Call it after the training session: the host may move its models."""
        vae, pictures = vae_of(self._vae), []
        for latent in latents:
            pixels = vae.decode(network.host_latent(self._model, latent[None]))
            first = pixels.reshape(-1, *pixels.shape[-3:])[0]  # of the frames, where it is a video VAE
            pictures.append(first[..., :3].float().clamp(0, 1).cpu())
        return pictures

    def encode_captions(self, captions: Sequence[str]) -> list[Any]:
        return conditioning.encode_captions(self._clip, captions)

    def with_size(self, text: Any, bucketed: BucketedImage) -> Any:
        return conditioning.with_size(text, conditioning.real_sizes(bucketed))

    def shown_beside(self, bucketed: BucketedImage, latent: Tensor) -> Any:
        if bucketed.mask is None or not inpainting.takes_mask(self._model, latent):
            return None
        return inpainting.entries(self._vae, bucketed.image, bucketed.mask)

    def network_input(self, text: Any, latent: Tensor, shown: Any = None) -> Any:
        assert self._denoiser is not None  # called outside the training session
        # made in inference mode, where what they become could not be changed
        entries = {name: value.clone() for name, value in (shown or {}).items()}
        return self._denoiser.model_conditions(conditioning.with_size(text, entries), latent)

    def _sample(
        self, text: Any, empty: Any, size: tuple[int, int], seeds: Sequence[int], *, w_text: float, steps: int,
        shown: Any = None,
    ) -> list[Tensor]:  # fmt: skip
        positive, negative = (conditioning.with_size(c, shown or {}) for c in (text, empty))
        latents = []
        for i, seed in enumerate(seeds):
            self._told(f"The base model makes picture {i + 1} of {len(seeds)} ...")
            start = {
                "samples": torch.zeros(1, 4, size[0] // 8, size[1] // 8),
                "downscale_ratio_spacial": 8,  # the host's own spelling
            }
            done = sampling.ksample(
                self._model, seed % 2**64, steps, w_text, "euler", "normal", positive, negative, start, 1.0
            )
            latents.append(network.native_latent(self._model, done["samples"][0])[0])
        return latents

    def kohya_names(self) -> Mapping[str, str]:
        return layer_names.kohya_names(self._model)

    def canonical(self, module: str) -> str:
        return layer_names.canonical(module)

    def content(self) -> str:
        return model_fingerprint(self._model, self._clip, self._vae)

    def text_tokens(self, texts: Sequence[str]) -> list[str]:
        """What the tokenizer makes of captions: the vectors of embedding files among it."""
        return prompt_tokens(self._clip, texts)

    def offload_encoders(self, *, texts: bool = True, images: bool = True) -> None:
        """The host moves its models by itself."""


class _Tokens:
    """Learned tokens in a CLIP (a TokenReader)."""

    def __init__(self, clip):
        self._clip = clip

    def start(self, specs: Sequence[TokenSpec], seed: int, known: TokenRows) -> LearnedTokens:
        return learned_tokens.start(self._clip, specs, seed, known)

    def encode(self, captions: Sequence[str], rows: TokenRows, initializers: Mapping[str, str]) -> list[Any]:
        reader = learned_tokens.PromptReader(self._clip, rows, initializers)
        read = {text: reader.encode(text, disable_weights=True) for text in dict.fromkeys(captions)}
        return [read[text] for text in captions]

    def trained(self, tokens: LearnedTokens) -> Callable[[str], Callable[[], Any]]:
        encoder = learned_tokens.TrainingTextEncoder(self._clip, tokens)

        def read(caption: str) -> Callable[[], Any]:
            filled = encoder.tokens(caption)
            return lambda: encoder.encode(filled)

        return read
