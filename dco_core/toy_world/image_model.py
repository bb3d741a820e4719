"""The Toy World's bases as ImageModels, for training from the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.buckets import BucketedImage
from ..errors import DCOError
from ..files.content_key import content_key
from ..files.fingerprints import network_fingerprint
from ..lora import LoraLayer, LoraWeights
from ..lora.started import started_layers
from ..network.lora_layers import AdapterConfig
from ..network.weight_stream import check_streaming
from ..suggested_scales import TOY_WORLD
from .bases import DEFAULT_BASE
from .learned_tokens import ToyTokens
from .model import ToyDenoiser, encode, load_text_encoder, load_unet
from .renderer import PIXELS_PER_CELL, SIZE


class ToyWorldModel:
    """One of the two bases. Images are 256 x 256 pixels; a latent is the mean of 8 x 8 of them."""

    family = "ToyWorld"
    default_resolution = SIZE * PIXELS_PER_CELL
    square = True
    reads_sizes = False
    w_text = TOY_WORLD.w_text
    sampler = None

    def __init__(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, base: str = DEFAULT_BASE
    ) -> None:
        """dtype: of the network's weights; captions are read in fp32. base: "epsilon" or "flow"; DCOError for another
        name."""
        self.prediction = base  # which is its name, too
        self._device = torch.device(device)
        self._unet = load_unet(base).to(self._device, dtype)
        self._text_encoder = load_text_encoder().to(self._device)
        self.learned_tokens = ToyTokens(self._text_encoder)

    def encode_images(self, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        return [
            (F.avg_pool2d(image.movedim(-1, 0)[None] * 2 - 1, PIXELS_PER_CELL)[0].to(self._device), None)
            for image in images
        ]

    def decode_latents(self, latents: Sequence[Tensor]) -> list[Tensor]:
        up = (F.interpolate(latent[None].float().cpu(), scale_factor=float(PIXELS_PER_CELL))[0] for latent in latents)
        return [(image.clamp(-1, 1).movedim(0, -1) + 1) / 2 for image in up]

    def encode_captions(self, captions: Sequence[str]) -> list[Tensor]:
        return list(encode(self._text_encoder, captions))

    def with_size(self, conditioning: Tensor, bucketed: BucketedImage) -> Tensor:
        return conditioning

    def shown_beside(self, bucketed: BucketedImage, latent: Tensor) -> None:
        return None

    def network_input(self, conditioning: Tensor, latent: Tensor, shown: object = None) -> Tensor:
        return conditioning

    def started_layers(self, start: LoraWeights) -> dict[str, LoraLayer]:
        modules = {self.canonical(name): name for name, _ in self._unet.named_modules()}
        return started_layers(start, modules, "the Toy World")

    def denoiser(
        self, config: AdapterConfig | None, step_shape: Sequence[int] = (), stream_weights: str = "auto"
    ) -> ToyDenoiser:
        check_streaming(stream_weights)
        if stream_weights == "on":
            raise DCOError("The Toy World is far too small to be streamed: leave stream_weights out.")
        return ToyDenoiser(config, self._unet)

    def kohya_names(self) -> Mapping[str, str]:
        return {}

    def canonical(self, module: str) -> str:
        return "lora_unet_" + module.replace(".", "_")

    def content(self) -> str:
        weights = network_fingerprint([*self._unet.named_parameters(), *self._text_encoder.named_parameters()])
        return content_key(weights, self.prediction)  # both bases have the same weights

    def offload_encoders(self, *, texts: bool = True, images: bool = True) -> None:
        pass
