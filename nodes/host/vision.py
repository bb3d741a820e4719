"""Vision models in the host: embeddings from a CLIP_VISION, and the host's memory for models of transformers.

DINOv2 (large, giant) and CLIP load with core's Load CLIP Vision and serve: their `image_embeds` are one vector an
image, for DINOv2 the class token after the last norm, as in transformers. The host looks at DINOv2's pictures at 518
pixels, transformers at 224 by default, so their scores differ a little: compare scores of one loader. SigLIP's vision
weights load too, but the host leaves their attention pooling out, and nothing it gives is SigLIP's embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ...dco_core.errors import DCOError
from ...dco_core.metrics.pretrained import BATCH


def clip_vision_embeddings(
    clip_vision, images: Sequence[Tensor], callback: Callable[[], None] = lambda: None
) -> Tensor:
    """Images [H, W, C] in 0..1, of any sizes -> fp32 [B, D] on the CPU, not normalised; the middle square of each is
    looked at. callback: called before each batch. DCOError for a model without one embedding an image."""
    found = []
    for _, group in groupby(images, key=lambda image: image.shape):
        alike = list(group)
        for i in range(0, len(alike), BATCH):
            callback()
            embeds = clip_vision.encode_image(torch.stack(alike[i : i + BATCH]), crop=True)["image_embeds"]
            if embeds is None or embeds.ndim != 2:
                kind = getattr(clip_vision, "model_type", type(clip_vision).__name__)
                raise DCOError(
                    f"The CLIP_VISION model ({kind}) has no single embedding of an image in ComfyUI: load DINOv2 or "
                    "CLIP, or disconnect clip_vision and name a transformers folder in `model`."
                )
            found.append(embeds.detach().float().cpu())
    return torch.cat(found)


@contextmanager
def on_device(model: nn.Module) -> Iterator[nn.Module]:
    """The model on the device where the host runs text encoders and vision models, which makes room for it."""
    management = comfy.model_management
    patcher = comfy.model_patcher.ModelPatcher(
        model,
        load_device=management.text_encoder_device(),
        offload_device=management.text_encoder_offload_device(),
    )
    management.load_models_gpu([patcher], force_full_load=True)
    try:
        yield model
    finally:
        patcher.detach()
