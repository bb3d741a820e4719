"""UNets with the block structure of SD1.5 and SDXL at a fraction of their width, and the encoders that go with them:
through diffusers, and with the very same weights as a MODEL of the host. All weights are random."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

TOKENS = 77
SIZES = 6 * 256  # SDXL: original size, crop and target size, 256 numbers each


@dataclass(frozen=True)
class Shape:
    """A family at `width` (1.0: real). channels: of the levels. depths: transformer blocks after each residual block
    of a level. heads: attention heads of every level, or None for `head_width` channels each; a narrow network has
    fewer heads, not narrower ones. text: (channels, layers, heads) of each text encoder."""

    family: str
    width: float
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    heads: int | None
    head_width: int
    text: tuple[tuple[int, int, int], ...]
    vae: tuple[int, ...]

    @property
    def context(self) -> int:
        return sum(channels for channels, _, _ in self.text)

    @property
    def sdxl(self) -> bool:
        return self.family == "sdxl"

    @property
    def pooled(self) -> int:
        return self.text[-1][0]


def shape_of(family: str, width: float = 0.2) -> Shape:
    """The Shape of "sd15" or "sdxl", channels rounded to what the normalisations ask for."""

    def scaled(*channels: int) -> tuple[int, ...]:
        return tuple(max(1, round(c * width / 32)) * 32 for c in channels)

    def text(channels: int, layers: int) -> tuple[int, int, int]:
        (scaled_channels,) = scaled(channels)
        return scaled_channels, layers, scaled_channels // math.gcd(64, scaled_channels)

    vae = scaled(128, 256, 512, 512)
    if family == "sd15":
        channels = scaled(320, 640, 1280, 1280)
        return Shape(
            family, width, channels, (1, 1, 1, 0), max(1, round(8 * width)), 0, (text(768, 12),), vae
        )
    head_width = math.gcd(64, scaled(320)[0])
    channels = scaled(320, 640, 1280)
    return Shape(family, width, channels, (0, 2, 10), None, head_width, (text(768, 12), text(1280, 32)), vae)


def diffusers_unet(shape: Shape, seed: int = 0) -> nn.Module:
    """A diffusers UNet2DConditionModel, frozen."""
    from diffusers import UNet2DConditionModel

    down = tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in shape.depths)
    up = tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(shape.depths))
    heads = shape.heads or tuple(c // shape.head_width for c in shape.channels)
    sizes: dict[str, Any] = {}
    if shape.sdxl:
        sizes = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shape.pooled + SIZES,
            "use_linear_projection": True,
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            block_out_channels=shape.channels,
            down_block_types=down,
            up_block_types=up,
            layers_per_block=2,
            transformer_layers_per_block=tuple(max(1, depth) for depth in shape.depths),
            attention_head_dim=heads,  # diffusers' name for the number of heads
            cross_attention_dim=shape.context,
            **sizes,
        )
    return unet.eval().requires_grad_(False)


def host_config(shape: Shape) -> dict[str, Any]:
    """The host's `unet_config` of the same network."""
    levels = len(shape.channels)
    per_block = [depth for depth in shape.depths for _ in range(2)]
    per_output = [depth for depth in shape.depths for _ in range(3)]
    config = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "dtype": torch.float32,
        "model_channels": shape.channels[0],
        "channel_mult": [c // shape.channels[0] for c in shape.channels],
        "num_res_blocks": [2] * levels, "transformer_depth": per_block, "transformer_depth_output": per_output,
        "transformer_depth_middle": shape.depths[-1] or 1,
        "num_heads": shape.heads or -1, "num_head_channels": -1 if shape.heads else shape.head_width,
        "context_dim": shape.context, "use_spatial_transformer": True, "legacy": False,
        "use_linear_in_transformer": shape.sdxl, "use_temporal_attention": False,
        "adm_in_channels": shape.pooled + SIZES if shape.sdxl else None,
    }  # fmt: skip
    if shape.sdxl:
        config["num_classes"] = "sequential"
    return config


def host_model(shape: Shape, weights: Mapping[str, torch.Tensor] | None, dtype: torch.dtype = torch.float32):
    """A MODEL of the host (started: in_process_host) with the weights of a diffusers UNet; the function that made it
    goes along, as after a loader, so that the host can make another copy."""
    import comfy.model_management as management
    import comfy.supported_models as families
    from comfy.model_patcher import ModelPatcher
    from comfy.utils import unet_to_diffusers

    config = host_config(shape)
    family = (families.SDXL if shape.sdxl else families.SD15)(dict(config))
    family.unet_config.update(config)  # over what the family adds: the real number of heads
    device = management.get_torch_device()
    cast = management.unet_manual_cast(dtype, device, family.supported_inference_dtypes)
    family.set_inference_dtype(dtype, cast, device=device)
    model = family.get_model({}, "", device=device)
    names = unet_to_diffusers(config)
    if weights:
        model.load_model_weights({names[n]: w for n, w in weights.items()}, "")
    model.eval().requires_grad_(False)
    patcher = ModelPatcher(model, load_device=device, offload_device=management.unet_offload_device())
    patcher.cached_patcher_init = (_again, (shape, model, dtype))
    return patcher


def _again(shape: Shape, model, dtype: torch.dtype, disable_dynamic: bool = True):
    copy = host_model(shape, None, dtype)
    copy.model.diffusion_model.load_state_dict(model.diffusion_model.state_dict())
    return copy


def text_encoders(shape: Shape) -> list[nn.Module]:
    """CLIP text models of transformers, frozen; the last one of SDXL has a projection."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    made = []
    for i, (channels, layers, heads) in enumerate(shape.text):
        config = CLIPTextConfig(
            hidden_size=channels, intermediate_size=4 * channels, num_hidden_layers=layers,
            num_attention_heads=heads, projection_dim=channels, max_position_embeddings=TOKENS,
        )  # fmt: skip
        made.append((CLIPTextModelWithProjection if i == 1 else CLIPTextModel)(config))
    return [encoder.eval().requires_grad_(False) for encoder in made]


def vae(shape: Shape) -> nn.Module:
    """AutoencoderKL, frozen, in fp32."""
    from diffusers import AutoencoderKL

    levels = len(shape.vae)
    made = AutoencoderKL(
        block_out_channels=shape.vae,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.13025 if shape.sdxl else 0.18215,
    )
    return made.eval().requires_grad_(False)
