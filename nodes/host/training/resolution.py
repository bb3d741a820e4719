"""The size of pictures that a model was made for."""

from __future__ import annotations

import comfy.model_base

from ....dco_core.toy_world.unet import UNet as ToyUNet
from ..toy_world import PIXELS

# the side of a square of as many pixels as the family's makers train with; other families have 1024
_SIDES = {
    "SD15": 512,
    "SD20": 512,
    "HunyuanImage21": 2048,
    "HunyuanVideo": 640,
    "WAN21_T2V": 640,
    "LTXV": 640,
    "GenmoMochi": 640,
    "CogVideoX_T2V": 592,
    "SVD_img2vid": 768,
}


def own_resolution(model) -> int:
    """In pixels, for MODEL."""
    if isinstance(model.model.diffusion_model, ToyUNet):
        return PIXELS
    names = [kind.__name__ for kind in type(model.model.model_config).__mro__]
    if "SD20" in names and model.model.model_type == comfy.model_base.ModelType.V_PREDICTION:
        return 768
    return next((_SIDES[name] for name in names if name in _SIDES), 1024)
