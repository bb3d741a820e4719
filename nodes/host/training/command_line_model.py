"""The host's MODEL, CLIP and VAE as an ImageModel outside of a prompt: what the host does around a node is done
here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....dco_core.files.content_key import content_key
from ....dco_core.network.lora_layers import AdapterConfig
from .image_model import HostImageModel
from .network import HostDenoiser, load_for_training


class CommandLineModel(HostImageModel):
    """Encodes in inference mode, as the host runs nodes. Training begins with `denoiser` and lasts as long as the
    program: no context that a garbage collector could close later, in the midst of another model's training."""

    def __init__(self, model, clip, vae):
        super().__init__(model, clip, vae)
        self._texts: list[str] = []
        self._trains_texts = False

    def encode_captions(self, captions: Sequence[str]) -> list[Any]:
        self._texts += captions
        with torch.inference_mode():
            return super().encode_captions(captions)

    def encode_images(self, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        with torch.inference_mode():
            return super().encode_images(images)

    def decode_latents(self, latents: Sequence[Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            return super().decode_latents(latents)

    def shown_beside(self, bucketed: Any, latent: Tensor) -> Any:
        with torch.inference_mode():
            return super().shown_beside(bucketed, latent)

    def _sample(self, *arguments: Any, **options: Any) -> list[Tensor]:
        with torch.inference_mode():
            return super()._sample(*arguments, **options)

    def offload_encoders(self, *, texts: bool = True, images: bool = True) -> None:
        """The host moves its models by itself; the text encoder stays where tokens train."""
        self._trains_texts = not texts

    def denoiser(
        self, config: AdapterConfig | None, step_shape: Sequence[int] = (), stream_weights: str = "auto"
    ) -> HostDenoiser:
        comfy.model_management.in_training = True  # the host's fused kernels (rope, int8) have no gradient
        clip = self._clip if self._trains_texts else None
        self._denoiser = load_for_training(
            self._model, config, clip, stream_weights=stream_weights, step_shape=step_shape
        )
        return self._denoiser

    def content(self) -> str:
        """Of the model, and of what the tokenizer makes of the captions: embedding files among it."""
        return content_key(super().content(), self.text_tokens(sorted(set(self._texts))))
