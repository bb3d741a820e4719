"""The Toy World as the host's MODEL, CLIP and VAE, without touching the host's tables of model families."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import SimpleNamespace

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from torch import Tensor

from ...dco_core.errors import DCOError
from ...dco_core.toy_world import model as toy
from ...dco_core.toy_world.bases import DEFAULT_BASE, EpsilonUNet, schedule_of
from ...dco_core.toy_world.renderer import PIXELS_PER_CELL, SIZE
from ...dco_core.toy_world.text_encoder import WIDTH, TextEncoder
from ...dco_core.toy_world.tokenizer import BEGIN, END, MAX_TOKENS, PAD, UNKNOWN, VOCABULARY, token_ids
from ...dco_core.toy_world.unet import UNet

PIXELS = SIZE * PIXELS_PER_CELL


class _LatentFormat(comfy.latent_formats.LatentFormat):
    latent_channels = 3
    spacial_downscale_ratio = PIXELS_PER_CELL
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class ToyWorld(comfy.supported_models_base.BASE):
    unet_config = {"disable_unet_model_creation": True}
    unet_extra_config: dict = {}
    # flow reads the first two; epsilon has the host's defaults, which are Stable Diffusion's
    sampling_settings = {"shift": 1.0, "multiplier": 1000}
    latent_format = _LatentFormat
    memory_usage_factor = 0.05


class _HostUNet(UNet):
    """The core UNet with the host's calling convention: timesteps are flow times x 1000."""

    dtype = torch.float32

    def forward(self, x: Tensor, t: Tensor, context: Tensor, **_) -> Tensor:
        _check_canvas(x)
        return super().forward(x, t / 1000, context)


class _HostEpsilonUNet(EpsilonUNet):
    """The same for the epsilon base: timesteps are indices."""

    dtype = torch.float32

    def forward(self, x: Tensor, t: Tensor, context: Tensor, **_) -> Tensor:
        _check_canvas(x)
        return super().forward(x, t, context)


_KINDS = {
    "epsilon": (_HostEpsilonUNet, comfy.model_base.ModelType.EPS),
    "flow": (_HostUNet, comfy.model_base.ModelType.FLOW),
}


def _check_canvas(x: Tensor) -> None:
    if x.shape[-2:] != (SIZE, SIZE):
        w, h = x.shape[-1] * PIXELS_PER_CELL, x.shape[-2] * PIXELS_PER_CELL
        raise DCOError(
            f"The Toy World draws {PIXELS} x {PIXELS} pixels, not {w} x {h}: set width and height of the latent to "
            f"{PIXELS}."
        )


def check_sizes(model, sizes: Sequence[tuple[int, int]]) -> None:
    """DCOError where MODEL is the Toy World and pictures to train on are no squares of its size. sizes: (height, width)
    of each."""
    if isinstance(model.model.diffusion_model, UNet):
        for height, width in sizes:
            if (height, width) != (PIXELS, PIXELS):
                remedy = f"resolution to {PIXELS}" if height == width else "crop to square"
                raise DCOError(
                    f"The Toy World draws {PIXELS} x {PIXELS} pixels, but an image comes to {width} x {height}: set "
                    f"{remedy}."
                )


def _model(base: str) -> comfy.model_patcher.ModelPatcher:
    schedule_of(base)  # which knows the bases
    kind, predicts = _KINDS[base]
    network = kind()
    network.load_state_dict(toy.load_unet(base).state_dict())
    model = comfy.model_base.BaseModel(ToyWorld(ToyWorld.unet_config), predicts)
    model.diffusion_model = network.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


class _WordTokenizer:
    """The interface that the host's SDTokenizer asks of a Hugging Face tokenizer."""

    unk_token_id = UNKNOWN

    @classmethod
    def from_pretrained(cls, _path: str, **_) -> _WordTokenizer:
        return cls()

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [BEGIN, *token_ids(text), END]}

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(VOCABULARY)}

    def decode(self, ids, **_) -> str:
        return " ".join(VOCABULARY[i] for i in ids)


class _SDTokenizer(comfy.sd1_clip.SDTokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data={}):
        super().__init__(
            tokenizer_path="", max_length=MAX_TOKENS, pad_with_end=False, pad_token=PAD,
            embedding_directory=embedding_directory, embedding_size=WIDTH, embedding_key="toy_world",
            tokenizer_class=_WordTokenizer, tokenizer_data=tokenizer_data,
        )  # fmt: skip


class _Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data={}):
        super().__init__(embedding_directory, tokenizer_data, name="toy_world", tokenizer=_SDTokenizer)


class _Embedding:
    """The host calls it like its own embedding layer, and asks its weight for the device."""

    def __init__(self, embedding: torch.nn.Embedding):
        self.embedding, self.weight = embedding, embedding.weight

    def __call__(self, ids: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return self.embedding(ids).to(out_dtype)


class _Transformer(torch.nn.Module):
    """The core text encoder with the host's calling convention."""

    def __init__(self, config, dtype, device, operations):
        super().__init__()
        self.text_encoder = TextEncoder()
        self.num_layers = len(self.text_encoder.layers)

    def get_input_embeddings(self):
        return _Embedding(self.text_encoder.token_embedding)

    def forward(self, ids, attention_mask=None, embeds=None, **_):
        hidden = self.text_encoder(embeddings=embeds)
        return hidden, hidden


class _SDClipModel(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(
            device=device, max_length=MAX_TOKENS, textmodel_json_config={}, dtype=dtype, model_class=_Transformer,
            special_tokens={"start": BEGIN, "end": END, "pad": PAD}, model_options=model_options,
        )  # fmt: skip


class _ClipModel(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device, dtype, model_options, name="toy_world", clip_model=_SDClipModel)


def _clip(embedding_directory) -> comfy.sd.CLIP:
    target = SimpleNamespace(params={}, clip=_ClipModel, tokenizer=_Tokenizer)
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=embedding_directory,
        model_options={"dtype": torch.float32},
        disable_dynamic=True,
    )
    clip.load_sd(
        {f"text_encoder.{name}": value for name, value in toy.load_text_encoder().state_dict().items()}
    )
    return clip


class _PixelAutoencoder(torch.nn.Module):
    """Latents are small pictures: encoding averages 8x8 pixels, decoding enlarges smoothly."""

    def encode(self, pixels: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(pixels, PIXELS_PER_CELL)

    def decode(self, latent: Tensor, **_) -> Tensor:
        return torch.nn.functional.interpolate(latent, scale_factor=float(PIXELS_PER_CELL), mode="bicubic")


class _VAE(comfy.sd.VAE):
    def __init__(self):
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)  # the host warns that it was given no weights: there are none
        try:
            super().__init__(sd={})
        finally:
            logging.disable(previous)
        self.first_stage_model = _PixelAutoencoder()
        self.latent_channels = 3
        self.memory_used_encode = lambda shape, dtype: 64 * shape[2] * shape[3]
        self.memory_used_decode = lambda shape, dtype: 64 * shape[2] * shape[3] * PIXELS_PER_CELL**2
        self.device = comfy.model_management.vae_device()
        self.vae_dtype = torch.float32
        self.output_device = comfy.model_management.intermediate_device()
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )


def load(
    embedding_directory, base: str = DEFAULT_BASE
) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE of a base of the Toy World ("epsilon" or "flow"; DCOError for another name); `embedding:name`
    in prompts is read from embedding_directory."""
    return _model(base), _clip(embedding_directory), _VAE()
