"""Captions and pictures, encoded by the host's CLIP and VAE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...dco_core.errors import DCOError
from .progress import raise_if_interrupted

Conditioning = list  # the host's CONDITIONING: [[tensor, options], ...]


def encode_captions(clip, captions: Sequence[str]) -> list[Conditioning]:
    """One CONDITIONING a caption; equal captions share one."""
    if clip is None:
        raise DCOError(
            "The CLIP input is empty: the checkpoint has no text encoder. Load one with a CLIP loader."
        )
    encoded: dict[str, Conditioning] = {}
    for text in captions:
        raise_if_interrupted()
        if text not in encoded:
            encoded[text] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return [encoded[text] for text in captions]


def square(image: Tensor, resolution: int) -> Tensor:
    """Resize the shorter edge to `resolution` and crop the centre: [H, W, C] in 0..1 -> [1, resolution, resolution, 3].

    The authors crop at random; the centre is their option `--center_crop`."""
    image = image[..., :3].movedim(-1, 0)[None].float()
    if image.shape[1] == 1:
        image = image.expand(-1, 3, -1, -1)
    h, w = image.shape[-2:]
    scale = resolution / min(h, w)
    size = (max(resolution, round(h * scale)), max(resolution, round(w * scale)))
    if size != (h, w):
        image = F.interpolate(image, size=size, mode="bilinear", antialias=True)
    top, left = (size[0] - resolution) // 2, (size[1] - resolution) // 2
    return image[..., top : top + resolution, left : left + resolution].movedim(1, -1)


def encode_images(vae, images: Sequence[Tensor], resolution: int) -> list[Tensor]:
    """One latent [C, H, W] an image [H, W, C], in the VAE's scale."""
    latents = []
    for i, image in enumerate(images):
        raise_if_interrupted()
        if not torch.isfinite(image).all():
            raise DCOError(f"Image {i + 1} holds NaN or infinity: check the node that made it.")
        latents.append(vae.encode(square(image, resolution))[0])
    return latents
