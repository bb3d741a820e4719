"""What inpainting models see beside x_t: the mask and the masked picture, as the host makes them for sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nodes import InpaintModelConditioning


def takes_mask(model, latent: Tensor) -> bool:
    """Whether MODEL is an inpainting model of pictures: what it concatenates to x_t depends on a mask. latent: a VAE
    latent [C, H, W]; video families [C, T, H, W] take frames instead."""
    if latent.ndim != 3:
        return False
    empty = torch.zeros_like(latent[None], dtype=torch.float32)
    height, width = (8 * side for side in latent.shape[-2:])
    nothing, everything = (
        model.model.concat_cond(
            noise=empty, device=empty.device, concat_latent_image=empty,
            concat_mask=torch.full((1, 1, height, width), value, device=empty.device),
        )
        for value in (0.0, 1.0)
    )  # fmt: skip
    return nothing is not None and not torch.equal(nothing, everything)


def entries(vae, image: Tensor, mask: Tensor) -> dict[str, Any]:
    """The entries of a CONDITIONING that Inpaint Model Conditioning makes of an image [H, W, 3] and its mask [H, W],
    1 where it is to be painted."""
    ((_, made),), _, _ = InpaintModelConditioning().encode(
        [[None, {}]], [], image[None], vae, mask[None], noise_mask=False
    )
    return made
