"""Captions and pictures, encoded by the host's CLIP and VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ....dco_core.data.buckets import BucketedImage
from ....dco_core.files.content_key import content_keys
from ..connected import clip_of, vae_of
from ..progress import raise_if_interrupted

Conditioning = list  # the host's CONDITIONING: [[tensor, options], ...]


def encode_captions(clip, captions: Sequence[str]) -> list[Conditioning]:
    """One CONDITIONING a caption; equal captions share one. Captions are read literally: parentheses are no
    weights."""
    clip = clip_of(clip)
    encoded: dict[str, Conditioning] = {}
    for text in captions:
        raise_if_interrupted()
        if text not in encoded:
            encoded[text] = clip.encode_from_tokens_scheduled(clip.tokenize(text, disable_weights=True))
    return [encoded[text] for text in captions]


def with_size(conditioning: Conditioning, sizes: Mapping[str, Any]) -> Conditioning:
    """The CONDITIONING with the size and crop that SDXL reads (CLIPTextEncodeSDXL's entries), or others."""
    return [[tensor, {**options, **sizes}] for tensor, options in conditioning]


def real_sizes(bucketed: BucketedImage) -> dict[str, int]:
    """Size and crop conditioning as SDXL was trained: the picture as it was, what was cut off, what is left."""
    (height, width), (top, left), (to_height, to_width) = (
        bucketed.original_size,
        bucketed.crop,
        bucketed.target_size,
    )
    return {
        "height": height, "width": width, "crop_h": top, "crop_w": left, "target_height": to_height,
        "target_width": to_width,
    }  # fmt: skip


def encode_images(
    vae, images: Sequence[Tensor], told: Callable[[str], None] = lambda _: None
) -> list[tuple[Tensor, Tensor | None]]:
    """(mean, std) of the VAE's posterior [C, h, w] for each image [H, W, 3], in the VAE's scale; std None for a
    VAE without one. Equal pictures are encoded once. told: called with a line before each of them."""
    vae = vae_of(vae)
    encoded: dict[str, tuple[Tensor, Tensor | None]] = {}
    keys = content_keys(images)
    count = len(set(keys))
    for key, image in zip(keys, images, strict=True):
        raise_if_interrupted()
        if key not in encoded:
            told(f"Encoding image {len(encoded) + 1} of {count} ...")
            with _moments(vae) as seen:
                latent = vae.encode(image[None])
            encoded[key] = _posterior(latent, seen)
    return [encoded[key] for key in keys]


@contextmanager
def _moments(vae) -> Iterator[list[Tensor]]:
    """What the VAE's encoder says before the host takes its mode: mean and log variance [1, 2C, h, w]."""
    seen: list[Tensor] = []
    regularization = getattr(vae.first_stage_model, "regularization", None)
    if not isinstance(regularization, torch.nn.Module):
        yield seen
        return
    handle = regularization.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _posterior(latent: Tensor, seen: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    mean = latent[0]
    # tiled encoding and VAEs that rearrange their latents show other shapes: then the mode has to do
    if len(seen) != 1 or seen[0].shape != (1, 2 * latent.shape[1], *latent.shape[2:]):
        return mean, None
    log_variance = seen[0][0].float().chunk(2)[1].clamp(-30.0, 20.0)
    return mean, torch.exp(0.5 * log_variance).to(mean)
