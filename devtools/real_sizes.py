"""The families of docs/families.md in the size that people load: the host's configurations of published checkpoints.

Dimensions are what the host reads out of the named checkpoint (comfy/model_detection.py) or has as its default; the
number of parameters, which the page shows, tells a wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True,
    "legacy": False, "use_temporal_attention": False, "adm_in_channels": None,
}  # fmt: skip
_SD15 = _UNET | {
    "num_res_blocks": [2] * 4, "transformer_depth": [1] * 6 + [0] * 2, "channel_mult": [1, 2, 4, 4],
    "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3, "context_dim": 768, "num_heads": 8,
    "use_linear_in_transformer": False,
}  # fmt: skip
_SD21 = _SD15 | {"context_dim": 1024, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True}
_SDXL = _UNET | {
    "num_res_blocks": [2] * 3, "transformer_depth": [0, 0, 2, 2, 10, 10], "channel_mult": [1, 2, 4],
    "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048,
    "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True, "num_classes": "sequential",
    "adm_in_channels": 2816,
}  # fmt: skip
_FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
    "txt_ids_dims": [],
}  # fmt: skip
_HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 20, "depth_single_blocks": 40,
    "axes_dim": [16, 56, 56], "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": True,
    "byt5": False, "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
_WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 5120, "ffn_dim": 13824, "freq_dim": 256, "text_dim": 4096,
    "num_heads": 40, "num_layers": 40, "in_dim": 16, "out_dim": 16,
}  # fmt: skip
_LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "qk_norm": True, "multiple_of": 256,
    "n_refiner_layers": 2,
}  # fmt: skip


@dataclass(frozen=True)
class RealSize:
    """checkpoint: whose dimensions these are. latent: of a picture of `pixels`. text: (tokens, width) of a prompt;
    pooled: width of the pooled output. mask: its text encoder says which tokens are padding."""

    checkpoint: str
    config: dict[str, Any]
    pixels: str
    latent: tuple[int, ...]
    text: tuple[int, int]
    pooled: int = 768
    mask: bool = False


_SQUARE, _WIDE = "1024 x 1024", "832 x 480, one frame"
REAL_SIZES = {
    "sd15": RealSize("Stable Diffusion 1.5", _SD15, "512 x 512", (4, 64, 64), (77, 768)),
    "sd15-inpaint": RealSize(
        "Stable Diffusion 1.5 Inpainting", _SD15 | {"in_channels": 9}, "512 x 512", (4, 64, 64), (77, 768)
    ),
    "sd2-v": RealSize("Stable Diffusion 2.1", _SD21, "768 x 768", (4, 96, 96), (77, 1024)),
    "sdxl": RealSize("SDXL 1.0", _SDXL, _SQUARE, (4, 128, 128), (77, 2048), 1280),
    "sdxl-edm": RealSize("Playground v2.5", _SDXL, _SQUARE, (4, 128, 128), (77, 2048), 1280),
    "sd3": RealSize(
        "SD3 Medium",
        {"input_size": None, "in_channels": 16, "patch_size": 2, "depth": 24, "adm_in_channels": 2048,
         "pos_embed_max_size": 192, "num_patches": 36864, "pos_embed_scaling_factor": None,
         "context_embedder_config": {"target": "torch.nn.Linear",
                                     "params": {"in_features": 4096, "out_features": 1536}}},
        _SQUARE, (16, 128, 128), (154, 4096), 2048,
    ),
    "flux": RealSize("FLUX.1 dev", _FLUX, _SQUARE, (16, 128, 128), (512, 4096)),
    "flux-fill": RealSize("FLUX.1 Fill", _FLUX | {"in_channels": 96}, _SQUARE, (16, 128, 128), (512, 4096)),
    "lumina2": RealSize(
        "Lumina Image 2.0",
        _LUMINA | {"dim": 2304, "cap_feat_dim": 2304, "n_layers": 26, "n_heads": 24, "n_kv_heads": 8,
                   "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512], "ffn_dim_multiplier": 4.0},
        _SQUARE, (16, 128, 128), (256, 2304),
    ),
    "z-image": RealSize(
        "Z-Image",
        _LUMINA | {"dim": 3840, "cap_feat_dim": 2560, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30,
                   "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "rope_theta": 256.0,
                   "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
                   "pad_tokens_multiple": 32},
        _SQUARE, (16, 128, 128), (256, 2560),
    ),
    "qwen-image": RealSize(
        "Qwen-Image",
        {"image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 60,
         "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 3584,
         "axes_dims_rope": (16, 56, 56)},
        _SQUARE, (16, 1, 128, 128), (256, 3584),
    ),
    "wan": RealSize("Wan 2.1 T2V 14B", _WAN, _WIDE, (16, 1, 60, 104), (512, 4096)),
    "wan-i2v": RealSize(
        "Wan 2.1 I2V 14B", _WAN | {"model_type": "i2v", "in_dim": 36}, _WIDE, (16, 1, 60, 104), (512, 4096)
    ),
    "ltxv": RealSize(
        "LTX-Video 2B",
        {"image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 2048, "attention_head_dim": 64,
         "num_attention_heads": 32, "caption_channels": 4096, "num_layers": 28},
        "768 x 512, one frame", (128, 1, 16, 24), (256, 4096), mask=True,
    ),
    "hunyuan-video": RealSize("HunyuanVideo", _HUNYUAN, _WIDE, (16, 1, 60, 104), (256, 4096)),
    "cosmos-predict2": RealSize(
        "Cosmos Predict2 2B",
        {"image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
         "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 2048, "num_blocks": 28,
         "num_heads": 16, "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
         "min_fps": 1, "max_fps": 30, "use_adaln_lora": True, "adaln_lora_dim": 256,
         "rope_enable_fps_modulation": False},
        _SQUARE, (16, 1, 128, 128), (512, 1024),
    ),
}  # fmt: skip

# Families whose networks do not run on the meta device, and why.
NOT_COUNTED = {
    "ernie": "its attention asks the card how much memory is free",
    "hunyuan-video-i2v": "it makes a tensor of its own on the CPU",
    "sd15-whole": "SD1.5 with other numbers of blocks, made up for the tests",
    "sdxs": "SD1.5 with other numbers of blocks, made up for the tests",
    "sd15-uneven": "SD1.5 with other numbers of blocks, made up for the tests",
}
