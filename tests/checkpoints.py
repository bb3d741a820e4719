"""Small random checkpoints which the unmodified host loads as SD1.5 and as SDXL.

The host reads the model family from exact tensor shapes (comfy/model_detection.py), so widths and text
encoders keep their true size; levels and blocks are as few as the detection allows. Almost every tensor is a
strided view over a few shared buffers: 15 MB on disk stand for 0.9 billion parameters.

What the weights do:
  UNet  variance-preserving noise, and eight channels ("lanes") that carry +x and -x from the first to the last
        convolution, so that eps is roughly x plus a part that depends on time, prompt and every attention.
  CLIP  variance-preserving noise in all layers.
  VAE   TAESD layout; encodes the mean colour of each 8x8 px block and paints it back.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

WIDTH = 320  # model_channels of both families
EMB = 4 * WIDTH
LATENTS = 4
LANES = 2 * LATENTS
LANE_GAIN = 5.0
BUFFER = 2**17  # numbers in each shared buffer
VOCABULARY, POSITIONS = 49408, 77
TEXT_LAYERS = 12, 32  # of CLIP-L and of CLIP-G
HOST_TEXT_LAYERS = 3, 3  # of the hosts under test, by tests/host/custom_nodes/dco_shallow_text_encoders.py


@dataclass(frozen=True)
class UNetShape:
    """One level of `depth` residual blocks; the numbers count transformer blocks after each of them."""

    depth: tuple[int, ...]
    depth_middle: int
    depth_output: tuple[int, ...]  # first output block first; one more than `depth`
    context: int
    adm: int | None
    linear: bool  # projections around the transformer are linear (SDXL) or 1x1 convolutions (SD1.5)


SD15_UNET = UNetShape((1,), 1, (1, 0), context=768, adm=None, linear=False)
# (0, 2, 5) is KOALA 700M, the SDXL family with the fewest residual blocks
SDXL_UNET = UNetShape((0, 2, 5), 1, (1, 0, 0, 0), context=2048, adm=2816, linear=True)


class Noise:
    """Draws normal tensors as overlapping views over one buffer per standard deviation.

    Rows of a view overlap at a stride that differs between tensors, so no two tensors are equal.
    """

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.buffers: dict[float, torch.Tensor] = {}

    def normal(self, shape: tuple[int, ...], std: float) -> torch.Tensor:
        """A [rows, ...] tensor with entries of standard deviation `std`."""
        if std not in self.buffers:
            self.buffers[std] = torch.randn(BUFFER, generator=self.generator) * std
        rows, row = shape[0], math.prod(shape[1:])
        widest = (BUFFER - row) // rows
        step = self._integer(max(1, widest // 4), max(1, widest // 2))
        offset = self._integer(0, BUFFER - row - step * (rows - 1))
        inner = [math.prod(shape[i + 1 :]) for i in range(1, len(shape))]
        return self.buffers[std].as_strided(shape, (step, *inner), offset)

    def weight(self, shape: tuple[int, ...], gain: float = 1.0) -> torch.Tensor:
        """A [out, in, ...] weight which turns inputs of variance 1 into outputs of variance gain^2."""
        return self.normal(shape, gain / math.sqrt(math.prod(shape[1:])))

    def _integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))


def constant(shape: tuple[int, ...], value: float) -> torch.Tensor:
    return torch.tensor(value).expand(shape)


def write_sd15(
    path: str | os.PathLike[str], seed: int = 0, text_layers: tuple[int, int] = TEXT_LAYERS
) -> Path:
    """Write a checkpoint that CheckpointLoaderSimple loads as SD1.5: UNet 23 M, CLIP 123 M, VAE 2.4 M.
    text_layers: of CLIP-L and of CLIP-G, as the host that loads it has them.

    The suffix decides the form; both load as the same model:
      .ckpt         views over shared buffers, 10 MB. For a host on the CPU, which copies every tensor while
                    loading; a host on a GPU may keep the views, and weights would then share memory.
      .safetensors  independent tensors (UNet and VAE float32, text encoder float16), 0.35 GB.
    Raises ValueError for another suffix.
    """
    return _write(sd15_tensors(seed, text_layers), Path(path))


def write_sdxl(
    path: str | os.PathLike[str], seed: int = 0, text_layers: tuple[int, int] = TEXT_LAYERS
) -> Path:
    """Write a checkpoint that CheckpointLoaderSimple loads as SDXL: UNet 61 M, CLIP 123 + 695 M, VAE 2.4 M.

    As `write_sd15`; 15 MB as .ckpt, 1.9 GB as .safetensors.
    """
    return _write(sdxl_tensors(seed, text_layers), Path(path))


def sd15_tensors(seed: int = 0, text_layers: tuple[int, int] = TEXT_LAYERS) -> Tensors:
    """All tensors of the SD1.5 checkpoint under their file names."""
    noise = Noise(seed)
    return (
        _prefixed("model.diffusion_model.", unet(noise, SD15_UNET))
        | _prefixed("cond_stage_model.transformer.text_model.", clip_l(noise, layers=text_layers[0]))
        | _prefixed("first_stage_model.", vae(latent_scale=0.18215))
    )


def sdxl_tensors(seed: int = 0, text_layers: tuple[int, int] = TEXT_LAYERS) -> Tensors:
    """All tensors of the SDXL checkpoint under their file names."""
    noise = Noise(seed)
    return (
        _prefixed("model.diffusion_model.", unet(noise, SDXL_UNET))
        | _prefixed("conditioner.embedders.0.transformer.text_model.", clip_l(noise, layers=text_layers[0]))
        | _prefixed("conditioner.embedders.1.model.", clip_g(noise, layers=text_layers[1]))
        | _prefixed("first_stage_model.", vae(latent_scale=0.13025))
    )


def _write(tensors: Tensors, path: Path) -> Path:
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors}, path)
    elif path.suffix == ".safetensors":
        # the host keeps text encoders in float16 whatever the file holds
        text = ("cond_stage_model.", "conditioner.")
        save_file(
            {
                name: tensor.to(torch.float16 if name.startswith(text) else torch.float32).clone(
                    memory_format=torch.contiguous_format
                )
                for name, tensor in tensors.items()
            },
            path,
        )
    else:
        raise ValueError(f"a checkpoint cannot be written as {path.name!r}: use .ckpt or .safetensors")
    return path


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _layer(name: str, weight: torch.Tensor) -> Tensors:
    return {f"{name}.weight": weight, f"{name}.bias": constant(weight.shape[:1], 0.0)}


def _norm(name: str, channels: int) -> Tensors:
    return {f"{name}.weight": constant((channels,), 1.0), f"{name}.bias": constant((channels,), 0.0)}


# ---- UNet: comfy/ldm/modules/diffusionmodules/openaimodel.py ----


def unet(noise: Noise, shape: UNetShape) -> Tensors:
    """UNetModel of one level, [B, 4, H, W] -> [B, 4, H, W]."""
    first = noise.weight((WIDTH, LATENTS, 3, 3)).clone()
    last = noise.weight((LATENTS, WIDTH, 3, 3), 0.3).clone()
    first[:LANES], last[:, :LANES] = 0.0, 0.0
    for c in range(LATENTS):
        # silu(x) - silu(-x) = x: two lanes of opposite sign pass the last activation unchanged
        first[c, c, 1, 1], first[LATENTS + c, c, 1, 1] = LANE_GAIN, -LANE_GAIN
        last[c, c, 1, 1], last[c, LATENTS + c, 1, 1] = 0.9, -0.9

    tensors = _layer("time_embed.0", noise.weight((EMB, WIDTH)))
    tensors |= _layer("time_embed.2", noise.weight((EMB, EMB), 1.5))
    if shape.adm:
        tensors |= _layer("label_emb.0.0", noise.weight((EMB, shape.adm)))
        tensors |= _layer("label_emb.0.2", noise.weight((EMB, EMB), 1.5))
    tensors |= _layer("input_blocks.0.0", first)
    for i, depth in enumerate(shape.depth, start=1):
        tensors |= _res_block(noise, f"input_blocks.{i}.0", WIDTH)
        tensors |= _transformer(noise, f"input_blocks.{i}.1", depth, shape)
    tensors |= _res_block(noise, "middle_block.0", WIDTH)
    tensors |= _transformer(noise, "middle_block.1", shape.depth_middle, shape)
    tensors |= _res_block(noise, "middle_block.2", WIDTH)
    for i, depth in enumerate(shape.depth_output):
        tensors |= _res_block(noise, f"output_blocks.{i}.0", 2 * WIDTH)
        tensors |= _transformer(noise, f"output_blocks.{i}.1", depth, shape)
    return tensors | _norm("out.0", WIDTH) | _layer("out.2", last)


def _res_block(noise: Noise, name: str, channels: int) -> Tensors:
    tensors = _norm(f"{name}.in_layers.0", channels)
    tensors |= _layer(f"{name}.in_layers.2", noise.weight((WIDTH, channels, 3, 3), 1.5))
    tensors |= _layer(f"{name}.emb_layers.1", noise.weight((WIDTH, EMB), 1.5))
    tensors |= _norm(f"{name}.out_layers.0", WIDTH)
    tensors |= _layer(f"{name}.out_layers.3", noise.weight((WIDTH, WIDTH, 3, 3), 0.7))
    if channels != WIDTH:
        skip = noise.weight((WIDTH, channels, 1, 1)).clone()
        skip[:LANES] = 0.0
        for lane in range(LANES):
            skip[lane, lane] = 1.0
        tensors |= _layer(f"{name}.skip_connection", skip)
    return tensors


def _transformer(noise: Noise, name: str, depth: int, shape: UNetShape) -> Tensors:
    if depth == 0:
        return {}
    projection = (WIDTH, WIDTH) if shape.linear else (WIDTH, WIDTH, 1, 1)
    tensors = _norm(f"{name}.norm", WIDTH) | _layer(f"{name}.proj_in", noise.weight(projection))
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        # sharp attention (logits of standard deviation 2 and more): a few of the 77 tokens decide
        tensors |= _attention(noise, f"{block}.attn1", WIDTH, sharpness=1.5, gain=1.0)
        tensors |= _attention(noise, f"{block}.attn2", shape.context, sharpness=1.5, gain=1.3)
        tensors |= _layer(f"{block}.ff.net.0.proj", noise.weight((8 * WIDTH, WIDTH)))
        tensors |= _layer(f"{block}.ff.net.2", noise.weight((WIDTH, 4 * WIDTH)))
        for norm in ("norm1", "norm2", "norm3"):
            tensors |= _norm(f"{block}.{norm}", WIDTH)
    return tensors | _layer(f"{name}.proj_out", noise.weight(projection, 0.6 / math.sqrt(depth)))


def _attention(noise: Noise, name: str, context: int, sharpness: float, gain: float) -> Tensors:
    return {
        f"{name}.to_q.weight": noise.weight((WIDTH, WIDTH), sharpness),
        f"{name}.to_k.weight": noise.weight((WIDTH, context), sharpness),
        f"{name}.to_v.weight": noise.weight((WIDTH, context)),
        **_layer(f"{name}.to_out.0", noise.weight((WIDTH, WIDTH), gain)),
    }


# ---- text encoders: comfy/clip_model.py; a missing layer would stay uninitialised memory ----


def clip_l(noise: Noise, width: int = 768, layers: int = TEXT_LAYERS[0]) -> Tensors:
    """CLIP ViT-L/14 text model under the names of transformers."""
    tensors = {
        "embeddings.token_embedding.weight": noise.normal((VOCABULARY, width), 1.0),
        "embeddings.position_embedding.weight": noise.normal((POSITIONS, width), 0.5),
    }
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        attention = f"{layer}.self_attn"
        tensors |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
        tensors |= _layer(f"{attention}.q_proj", noise.weight((width, width), 1.5))
        tensors |= _layer(f"{attention}.k_proj", noise.weight((width, width), 1.5))
        tensors |= _layer(f"{attention}.v_proj", noise.weight((width, width), 1.5))
        tensors |= _layer(f"{attention}.out_proj", noise.weight((width, width), 1 / math.sqrt(layers)))
        tensors |= _layer(f"{layer}.mlp.fc1", noise.weight((4 * width, width)))
        tensors |= _layer(f"{layer}.mlp.fc2", noise.weight((width, 4 * width), 1 / math.sqrt(layers)))
    return tensors | _norm("final_layer_norm", width)


def clip_g(noise: Noise, width: int = 1280, layers: int = TEXT_LAYERS[1]) -> Tensors:
    """OpenCLIP ViT-bigG/14 text model under the names of open_clip."""
    tensors = {
        "token_embedding.weight": noise.normal((VOCABULARY, width), 1.0),
        "positional_embedding": noise.normal((POSITIONS, width), 0.5),
        "text_projection": noise.weight((width, width)),
    }
    for i in range(layers):
        layer = f"transformer.resblocks.{i}"
        tensors |= _norm(f"{layer}.ln_1", width) | _norm(f"{layer}.ln_2", width)
        tensors[f"{layer}.attn.in_proj_weight"] = noise.weight((3 * width, width), 1.5)
        tensors[f"{layer}.attn.in_proj_bias"] = constant((3 * width,), 0.0)
        tensors |= _layer(f"{layer}.attn.out_proj", noise.weight((width, width), 1 / math.sqrt(layers)))
        tensors |= _layer(f"{layer}.mlp.c_fc", noise.weight((4 * width, width)))
        tensors |= _layer(f"{layer}.mlp.c_proj", noise.weight((width, 4 * width), 1 / math.sqrt(layers)))
    return tensors | _norm("ln_final", width)


# ---- VAE: comfy/taesd/taesd.py ----

VAE_WIDTH = 64
# z = CONTRAST * COLOUR (rgb - 1/2): orthonormal columns, so the transpose decodes
COLOUR = torch.tensor([[1, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1]]) / 2
CONTRAST = 4.0
ENCODER_BLOCKS, ENCODER_STRIDED = (1, 3, 4, 5, 7, 8, 9, 11, 12, 13), (2, 6, 10)
DECODER_BLOCKS, DECODER_CONVS = (3, 4, 5, 8, 9, 10, 13, 14, 15, 18), (7, 12, 17)


def vae(latent_scale: float) -> Tensors:
    """TAESD autoencoder: [B, 3, 8H, 8W] in [0, 1] -> block means [B, 4, H, W] -> [B, 3, 8H, 8W].

    latent_scale: the family's scale factor; the host multiplies latents by it before the UNet.
    """
    rgb_in = torch.zeros(VAE_WIDTH, 3, 3, 3)
    mean = torch.zeros(VAE_WIDTH, VAE_WIDTH, 3, 3)
    to_latent = torch.zeros(LATENTS, VAE_WIDTH, 3, 3)
    latent_in = torch.zeros(VAE_WIDTH, LATENTS, 3, 3)
    keep = torch.zeros(VAE_WIDTH, VAE_WIDTH, 3, 3)
    to_rgb = torch.zeros(3, VAE_WIDTH, 3, 3)
    to_latent[:, :3, 1, 1] = CONTRAST * COLOUR
    for c in range(3):
        rgb_in[c, c, 1, 1] = 1.0
        mean[c, c, 1:, 1:] = 0.25  # the 2x2 px under a stride-2 step
    for c in range(LATENTS):
        # rectified twice: +z and -z travel in separate channels
        latent_in[c, c, 1, 1], latent_in[LATENTS + c, c, 1, 1] = 1.0, -1.0
        to_rgb[:, c, 1, 1] = COLOUR[c] / CONTRAST
        to_rgb[:, LATENTS + c, 1, 1] = -COLOUR[c] / CONTRAST
    for c in range(LANES):
        keep[c, c, 1, 1] = 1.0

    tensors = {"vae_scale": torch.tensor(latent_scale), "vae_shift": torch.tensor(0.0)}
    tensors |= _layer("taesd_encoder.0", rgb_in) | _layer("taesd_encoder.14", to_latent)
    tensors["taesd_encoder.14.bias"] = -CONTRAST * COLOUR.sum(1) / 2
    tensors |= {f"taesd_encoder.{i}.weight": mean for i in ENCODER_STRIDED}
    tensors |= _layer("taesd_decoder.1", latent_in) | _layer("taesd_decoder.19", to_rgb)
    tensors["taesd_decoder.19.bias"] = constant((3,), 0.5)
    tensors |= {f"taesd_decoder.{i}.weight": keep for i in DECODER_CONVS}
    blocks = [f"taesd_encoder.{i}" for i in ENCODER_BLOCKS] + [f"taesd_decoder.{i}" for i in DECODER_BLOCKS]
    for conv in _block_convs(blocks):
        tensors |= _layer(conv, constant((VAE_WIDTH, VAE_WIDTH, 3, 3), 0.0))  # leaves the residual path
    return tensors


def _block_convs(blocks: list[str]) -> Iterator[str]:
    for block in blocks:
        for i in (0, 2, 4):
            yield f"{block}.conv.{i}"
