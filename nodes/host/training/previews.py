"""Latents as pictures while a model trains: without a VAE, by the host's previewers."""

from __future__ import annotations

from collections.abc import Callable

import comfy.utils
import folder_paths
import latent_preview  # the host's
import numpy as np
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor

from .noise import latent_scale

Pixels = np.ndarray  # uint8 [H, W, 3]
NOTHING = ExecutionBlocker(None)  # an output that what follows it quietly waits for


def live(model) -> Callable[[Tensor], Pixels] | None:
    """What turns an x0 [C, ...] of MODEL's noise into a picture while it trains, without a VAE in memory: the
    TAESD decoder if it lies in models/vae_approx, otherwise the latent format's linear estimate, enlarged to the size
    in pixels. None for a latent format that has neither.

    The host's preview method does not matter: its default is "none", and whoever asks a trainer for previews wants
    to see them.
    """
    latent_format = model.model.latent_format
    asked = args.preview_method
    args.preview_method = _method(latent_format)
    try:  # the setting is read while the previewer is made, in this thread alone
        previewer = latent_preview.get_previewer(model.load_device, latent_format)
    finally:
        args.preview_method = asked
    if previewer is None:
        return None

    def picture(latent: Tensor) -> Pixels:
        with torch.no_grad():
            own = latent_scale(model) * latent[None].float()
            image = previewer.decode_latent_to_preview(own.to(model.load_device))
        ratio = latent_format.spacial_downscale_ratio
        height, width = latent.shape[-2] * ratio, latent.shape[-1] * ratio
        return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))

    return picture


def _method(latent_format) -> LatentPreviewMethod:
    """TAESD where its decoder is there. The decoders of video formats are models that the host would load, and to
    make room it would send away the model in training."""
    name = latent_format.taesd_decoder_name
    if name is None or name in getattr(latent_preview, "VIDEO_TAES", ()):
        return LatentPreviewMethod.Latent2RGB
    there = any(file.startswith(name) for file in folder_paths.get_filename_list("vae_approx"))
    return LatentPreviewMethod.TAESD if there else LatentPreviewMethod.Latent2RGB


def show(bar: comfy.utils.ProgressBar, step: int, total: int, image: Pixels) -> None:
    """The picture on the running node, with its progress. It is sent as it is: the host's --preview-size is meant for
    one picture, not for a row of them."""
    bar.update_absolute(step, total, preview=("JPEG", Image.fromarray(image), None))
