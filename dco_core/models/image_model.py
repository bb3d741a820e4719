"""What training on a folder needs of a text-to-image model: its encoders, its network, its names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from ..data.buckets import Fitted
from ..network.denoiser import NetworkDenoiser
from ..network.lora_layers import AdapterConfig


class ImageModel(Protocol):
    """family: the base's name in a LoRA's header. prediction: of the network. default_resolution: in pixels.
    square: only squares of that size can be drawn. reads_sizes: the network is told size and crop, as SDXL's is.
    w_text: the text guidance that suits it."""

    family: str
    prediction: str
    default_resolution: int
    square: bool
    reads_sizes: bool
    w_text: float

    def encode_images(self, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        """Images [H, W, 3] in 0..1 -> (mean, std) of the latents [C, h, w] in the network's own scale."""
        ...

    def decode_latents(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents [C, h, w] in the network's own scale -> images [H, W, 3] in 0..1, on the CPU."""
        ...

    def encode_captions(self, captions: Sequence[str]) -> list[Any]:
        """One conditioning a caption, without markers."""
        ...

    def with_size(self, conditioning: Any, fitted: Fitted) -> Any:
        """The conditioning with size and crop, where the network reads them."""
        ...

    def denoiser(self, config: AdapterConfig | None) -> NetworkDenoiser: ...

    def kohya_names(self) -> Mapping[str, str]:
        """{canonical key: kohya's name} for LoRA files."""
        ...

    def canonical(self, module: str) -> str:
        """The canonical key of a module of the network."""
        ...

    def content(self) -> str:
        """Tells this model from every other (content.network_fingerprint)."""
        ...

    def offload_encoders(self) -> None:
        """Free what only encoding needs."""
        ...
