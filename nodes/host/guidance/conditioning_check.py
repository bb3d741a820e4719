"""Conditioning of another model is refused before anything runs."""

from __future__ import annotations

import comfy.model_base
from torch import Tensor

from ....dco_core.errors import DCOError

# what the families' configurations call the width of the text they read, and the layers that read it
_TEXT_WIDTHS = (
    "context_dim", "context_in_dim", "cap_feat_dim", "joint_attention_dim", "text_dim", "caption_channels",
    "text_in_dim", "crossattn_emb_channels",
)  # fmt: skip
_TEXT_LAYERS = ("txt_in", "context_embedder", "text_embedding.0")
_SIZES = 6 * 256  # SDXL's embeddings of size and crop, beside the pooled output


def text_width(model) -> int | None:
    """Width of the text conditioning that a model of the host (BaseModel) reads; None where it is not known."""
    config = model.model_config.unet_config
    if config.get("image_model") == "ltxav":  # reads text of several widths
        return None
    found = next((config[name] for name in _TEXT_WIDTHS if name in config), None)
    if found is None:
        modules = dict(model.diffusion_model.named_modules())
        widths = (getattr(modules.get(name), "in_features", None) for name in _TEXT_LAYERS)
        found = next((width for width in widths if width is not None), None)
    return found if isinstance(found, int) else None


def pooled_width(model) -> int | None:
    """Width of the pooled text output that it reads; None where it reads none, or that is not known."""
    config = model.model_config.unet_config
    if isinstance(model, comfy.model_base.SDXL) and config.get("adm_in_channels"):
        return config["adm_in_channels"] - _SIZES
    if isinstance(model, comfy.model_base.SD3):
        return config.get("adm_in_channels")
    return config.get("vec_in_dim")  # the Flux family


def check_conditioning(guider) -> None:
    """DCOError for the first conditioning of the guider that has not the widths its model reads."""
    model = guider.model_patcher.model
    wanted = {"": text_width(model), "pooled output ": pooled_width(model)}
    for kind, conds in guider.conds.items():
        for number, cond in enumerate(conds, 1):
            read = {"": cond.get("cross_attn"), "pooled output ": cond.get("pooled_output")}
            for what, width in wanted.items():
                found = read[what].shape[-1] if isinstance(read[what], Tensor) else None
                if width is not None and found is not None and found != width:
                    which = f" ({number} of {len(conds)})" if len(conds) > 1 else ""
                    raise DCOError(
                        f"The {kind.removeprefix('dco_')} conditioning{which} is of another model: its "
                        f"{what or 'text '}is {found} wide, this model ({type(model).__name__}) reads {width}. Encode "
                        "the prompt with the model's own text encoder."
                    )
