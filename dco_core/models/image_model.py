"""What preparing and training need of a text-to-image model: its encoders, its network, its names, and what only some
models can do. Diffusers pipelines, the Toy World and the host's MODEL, CLIP and VAE all are one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from ..data.buckets import BucketedImage
from ..lora import LoraLayer, LoraWeights
from ..network.denoiser import NetworkDenoiser
from ..network.lora_layers import AdapterConfig
from ..training.learned_tokens import LearnedTokens, TokenSpec

TokenRows = Mapping[str, Mapping[str, Tensor]]  # {token name: {encoder: [n, width]}}


class TokenReader(Protocol):
    """What a model with learned tokens can do."""

    def start(self, specs: Sequence[TokenSpec], seed: int, known: TokenRows) -> LearnedTokens:
        """The rows of new tokens: those of their initialisers in the text encoders' tables, or the `known` ones of a
        LoRA to go on from. Raises DCOError for text encoders that cannot learn, and for words they do not know."""
        ...

    def encode(self, captions: Sequence[str], rows: TokenRows, initializers: Mapping[str, str]) -> list[Any]:
        """One conditioning a caption, with `rows` in place of their markers; other markers read as their words."""
        ...

    def trained(self, tokens: LearnedTokens) -> Callable[[str], Callable[[], Any]]:
        """For rows in training: a caption -> a function that encodes it with the rows as they then are, with
        gradient. Call it once the network is ready for training."""
        ...


class Sampler(Protocol):
    """A sampler of the model's own, for pictures that the base model makes before training."""

    def __call__(
        self, text: Any, empty: Any, size: tuple[int, int], seeds: Sequence[int], *, w_text: float, steps: int,
        shown: Any = None,
    ) -> list[Tensor]:  # fmt: skip
        """One latent [C, h, w] a seed, in the network's own scale, of a conditioning, at size (height, width) in
        pixels. shown: see ImageModel.shown_beside."""
        ...


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

    @property
    def learned_tokens(self) -> TokenReader | None:
        """None for a model whose text encoders cannot learn."""
        ...

    @property
    def sampler(self) -> Sampler | None:
        """None for a model whose pictures are sampled with its denoiser."""
        ...

    def encode_images(self, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        """Images [H, W, 3] in 0..1 -> (mean, std) of the latents [C, h, w] in the network's own scale; std None for an
        encoder without one."""
        ...

    def decode_latents(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents [C, h, w] in the network's own scale -> images [H, W, 3] in 0..1, on the CPU."""
        ...

    def encode_captions(self, captions: Sequence[str]) -> list[Any]:
        """One conditioning a caption, without markers."""
        ...

    def with_size(self, conditioning: Any, bucketed: BucketedImage) -> Any:
        """The conditioning with size and crop, where the network reads them."""
        ...

    def shown_beside(self, bucketed: BucketedImage, latent: Tensor) -> Any:
        """What an inpainting model is shown of a masked picture beside x_t, for `network_input`; None for others.
        latent: of the picture."""
        ...

    def network_input(self, conditioning: Any, latent: Tensor, shown: Any = None) -> Any:
        """A conditioning as the denoiser takes it, for latents of this size. Call it once the network is ready for
        training."""
        ...

    def started_layers(self, start: LoraWeights) -> dict[str, LoraLayer]:
        """The layers of a LoRA to go on from, by the names of the network's modules. DCOError for one of another
        model."""
        ...

    def denoiser(
        self, config: AdapterConfig | None, step_shape: Sequence[int] = (), stream_weights: str = "auto"
    ) -> NetworkDenoiser:
        """The network with a LoRA (None: without). step_shape: of the latents [B, C, ...] of a step, for a model that
        has to fit beside them. stream_weights: one of network/weight_stream.py's STREAMING."""
        ...

    def kohya_names(self) -> Mapping[str, str]:
        """{canonical key: kohya's name} for LoRA files."""
        ...

    def canonical(self, module: str) -> str:
        """The canonical key of a module of the network."""
        ...

    def content(self) -> str:
        """Tells this model from every other (fingerprints.network_fingerprint)."""
        ...

    def offload_encoders(self, *, texts: bool = True, images: bool = True) -> None:
        """Free what encoding needs: the text encoders, what encodes and decodes images, or both."""
        ...
