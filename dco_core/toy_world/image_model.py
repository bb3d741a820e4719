"""The Toy World's bases as ImageModels, for training from the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adapters import AdapterConfig
from ..buckets import Fitted
from ..content import network_fingerprint
from .canvas import PIXELS_PER_CELL, SIZE
from .model import DEFAULT_BASE, ToyDenoiser, encode, load_text_encoder, load_unet


class ToyWorldModel:
    """One of the two bases. Images are 512 x 512 pixels; a latent is the mean of 8 x 8 of them."""

    family = "ToyWorld"
    default_resolution = SIZE * PIXELS_PER_CELL
    square = True
    w_text = 2.0

    def __init__(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, base: str = DEFAULT_BASE
    ) -> None:
        """dtype: of the network's weights; captions are read in fp32. base: "epsilon" or "flow"."""
        self.prediction = base
        self._device = torch.device(device)
        self._unet = load_unet(base).to(self._device, dtype)
        self._text_encoder = load_text_encoder(base).to(self._device)

    def encode_images(self, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        return [
            (F.avg_pool2d(image.movedim(-1, 0)[None] * 2 - 1, PIXELS_PER_CELL)[0].to(self._device), None)
            for image in images
        ]

    def decode_latents(self, latents: Sequence[Tensor]) -> list[Tensor]:
        up = (
            F.interpolate(latent[None].float().cpu(), scale_factor=float(PIXELS_PER_CELL))[0]
            for latent in latents
        )
        return [(image.clamp(-1, 1).movedim(0, -1) + 1) / 2 for image in up]

    def encode_captions(self, captions: Sequence[str]) -> list[Tensor]:
        return list(encode(self._text_encoder, captions))

    def with_size(self, conditioning: Tensor, fitted: Fitted) -> Tensor:
        return conditioning

    def denoiser(self, config: AdapterConfig | None) -> ToyDenoiser:
        return ToyDenoiser(config, self._unet)

    def kohya_names(self) -> Mapping[str, str]:
        return {}

    def canonical(self, module: str) -> str:
        return "lora_unet_" + module.replace(".", "_")

    def content(self) -> str:
        return network_fingerprint([*self._unet.named_parameters(), *self._text_encoder.named_parameters()])

    def offload_encoders(self) -> None:
        pass
