"""Small random models of the host's families, through its own classes and ModelPatcher, and LoRAs for them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_UNET = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2],
    "num_res_blocks": [1, 1], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1, "context_dim": 24, "use_spatial_transformer": True, "legacy": False,
    "use_temporal_attention": False, "adm_in_channels": None, "num_heads": -1, "num_head_channels": 16,
    "use_linear_in_transformer": True,
}  # fmt: skip
_FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 8, "context_in_dim": 24,
    "hidden_size": 48, "mlp_ratio": 2.0, "num_heads": 4, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 4, 4],
    "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
_SD15 = _UNET | {"num_heads": 2, "num_head_channels": -1, "use_linear_in_transformer": False}
# block layouts of SD1.5: its own, SDXS's with one block per level, and one whose levels differ; at
# 8 x 8 their lowest level would be one cell, of which group norm leaves signs
_SD15_WHOLE = _SD15 | {
    "channel_mult": [1, 2, 2, 2], "num_res_blocks": [2] * 4, "transformer_depth": [1] * 6 + [0] * 2,
    "transformer_depth_output": [1] * 9 + [0] * 3,
}  # fmt: skip
_SDXS = _SD15 | {
    "channel_mult": [1, 2, 2, 2], "num_res_blocks": [1] * 4, "transformer_depth": [1, 1, 1, 0],
    "transformer_depth_output": [1] * 6 + [0] * 2,
}  # fmt: skip
_SD15_UNEVEN = _SD15 | {
    "channel_mult": [1, 2, 2, 2], "num_res_blocks": [1, 2, 1, 2], "transformer_depth": [1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 7 + [0] * 3,
}  # fmt: skip
_HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "vec_in_dim": 8, "context_in_dim": 24,
    "hidden_size": 48, "mlp_ratio": 2.0, "num_heads": 4, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 4, 4],
    "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": False, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
_WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 48, "ffn_dim": 96, "freq_dim": 32, "text_dim": 24,
    "num_heads": 4, "num_layers": 2, "in_dim": 16, "out_dim": 16,
}  # fmt: skip
_LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 48, "cap_feat_dim": 24, "n_layers": 2,
    "n_refiner_layers": 1, "qk_norm": True, "n_heads": 4, "axes_dims": [4, 4, 4], "axes_lens": [64, 64, 64],
    "multiple_of": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """supported: name of the class in comfy.supported_models. latent: [C, (T,) H, W]. text: width of the
    conditioning; pooled: of the pooled output."""

    supported: str
    config: dict[str, Any]
    latent: tuple[int, ...]
    text: int
    pooled: int = 8
    options: dict[str, Any] | None = None
    weights: Callable[[], dict[str, Tensor]] = dict  # what tells the variant
    attention_mask: bool = False  # its text encoder gives one


def _v_prediction() -> dict[str, Tensor]:
    return {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-1.0, 1.0])}


FAMILIES = {
    "sd15": Family("SD15", _SD15, (4, 8, 8), 24),
    "sd15-whole": Family("SD15", _SD15_WHOLE, (4, 16, 16), 24),
    "sdxs": Family("SD15", _SDXS, (4, 16, 16), 24),
    "sd15-uneven": Family("SD15", _SD15_UNEVEN, (4, 16, 16), 24),
    "sd15-inpaint": Family("SD15", _SD15 | {"in_channels": 9}, (4, 8, 8), 24),
    "sd2-v": Family("SD20", _UNET, (4, 8, 8), 24, weights=_v_prediction),
    "sdxl": Family("SDXL", _UNET | {"adm_in_channels": 6 * 256 + 8, "num_classes": "sequential"}, (4, 8, 8), 24),
    "sdxl-edm": Family("SDXL", _UNET | {"adm_in_channels": 6 * 256 + 8, "num_classes": "sequential"}, (4, 8, 8), 24,
                       weights=lambda: {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}),
    "sd3": Family("SD3", {"input_size": None, "in_channels": 16, "patch_size": 2, "depth": 2, "adm_in_channels": 8,
                          "pos_embed_max_size": 8, "num_patches": 64, "qk_norm": "rms",
                          "pos_embed_scaling_factor": None,
                          "context_embedder_config": {"target": "torch.nn.Linear", "params": {
                              "in_features": 24, "out_features": 128}}}, (16, 8, 8), 24),
    "flux": Family("Flux", _FLUX, (16, 8, 8), 24),
    "lumina2": Family("Lumina2", _LUMINA | {"n_kv_heads": 2}, (16, 8, 8), 24),
    "z-image": Family("ZImage", _LUMINA | {"dim": 256, "axes_dims": [16, 24, 24], "n_kv_heads": 4,
                                           "z_image_modulation": True, "time_scale": 1000.0,
                                           "pad_tokens_multiple": 32}, (16, 8, 8), 24),
    "qwen-image": Family("QwenImage", {"image_model": "qwen_image", "in_channels": 64, "out_channels": 16,
                                       "num_layers": 2, "attention_head_dim": 12, "num_attention_heads": 4,
                                       "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 4)}, (16, 1, 8, 8), 24),
    "wan": Family("WAN21_T2V", _WAN, (16, 3, 8, 8), 24),
    "flux-fill": Family("FluxInpaint", _FLUX | {"in_channels": 96}, (16, 8, 8), 24),
    "ltxv": Family("LTXV", {"image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 48,
                            "attention_head_dim": 12, "num_attention_heads": 4, "caption_channels": 24,
                            "num_layers": 2}, (128, 2, 4, 4), 24, attention_mask=True),
    "ernie": Family("ErnieImage", {"image_model": "ernie", "hidden_size": 48, "num_attention_heads": 4,
                                   "num_layers": 2, "ffn_hidden_size": 96, "text_in_dim": 24,
                                   "rope_axes_dim": (4, 4, 4)}, (128, 4, 4), 24),
    "hunyuan-video": Family("HunyuanVideo", _HUNYUAN, (16, 2, 8, 8), 24),
    "hunyuan-video-i2v": Family("HunyuanVideoI2V", _HUNYUAN | {"in_channels": 33}, (16, 2, 8, 8), 24),
    "cosmos-predict2": Family("CosmosT2IPredict2", {"image_model": "cosmos_predict2", "max_img_h": 16, "max_img_w": 16,
                                                    "max_frames": 4, "in_channels": 16, "out_channels": 16,
                                                    "patch_spatial": 2, "patch_temporal": 1, "model_channels": 48,
                                                    "num_blocks": 2, "num_heads": 2, "crossattn_emb_channels": 24,
                                                    "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
                                                    "min_fps": 1, "max_fps": 30, "use_adaln_lora": True,
                                                    "adaln_lora_dim": 8}, (16, 1, 8, 8), 24),
    "wan-i2v": Family("WAN21_I2V", _WAN | {"model_type": "i2v", "in_dim": 36}, (16, 3, 8, 8), 24),
}  # fmt: skip


def small_model(name: str, seed: int = 0, dtype: torch.dtype = torch.float32):
    """A MODEL of the family with random weights: equal for equal seeds, never shared."""
    import comfy.model_management as management
    import comfy.supported_models as supported
    from comfy.model_patcher import ModelPatcher

    family = FAMILIES[name]
    config = getattr(supported, family.supported)(dict(family.config))
    config.unet_config.update(family.config)
    cast = management.unet_manual_cast(
        dtype, management.get_torch_device(), config.supported_inference_dtypes
    )
    config.set_inference_dtype(dtype, cast)
    model = config.get_model(family.weights(), "")
    fill(model.diffusion_model, seed)
    model.eval().requires_grad_(False)
    return ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())


def fill(network: nn.Module, seed: int) -> None:
    """Variance-preserving matrices, norms near 1, small everything else."""
    modules = dict(network.named_modules())
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=_generator(seed, name))
        owner, _, kind = name.rpartition(".")
        if parameter.dim() > 1:
            value = noise / parameter[0].numel() ** 0.5
        elif kind in ("weight", "scale") and "Norm" in type(modules[owner]).__name__:
            value = 1 + 0.1 * noise
        else:
            value = 0.1 * noise
        parameter.data.copy_(value.reshape(parameter.shape))
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point() and "pos_embed" in name:
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=_generator(seed, name)))


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))


def layers(model, types: Iterable[type] = (nn.Linear, nn.Conv2d)) -> dict[str, tuple[int, ...]]:
    """{name under diffusion_model: shape of the weight} of a MODEL's layers."""
    return {
        name: tuple(module.weight.shape)
        for name, module in model.model.diffusion_model.named_modules()
        if isinstance(module, tuple(types))
    }


def lora_for(
    model, rank: int = 2, seed: int = 5, size: float = 0.3, names: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """A LoRA on `names` (all linear and convolution layers) whose dW has about `size` of the layer's own norm."""
    lora: dict[str, Tensor] = {}
    shapes = layers(model)
    for name in shapes if names is None else names:
        out, *inner = shapes[name]
        generator = _generator(seed, name)
        down = torch.randn((rank, *inner), generator=generator) / torch.Size(inner).numel() ** 0.5
        up = torch.randn((out, rank, *[1] * (len(inner) - 1)), generator=generator)
        lora[f"diffusion_model.{name}.lora_down.weight"] = down
        lora[f"diffusion_model.{name}.lora_up.weight"] = size / rank * up
        lora[f"diffusion_model.{name}.alpha"] = torch.tensor(float(rank))
    return lora


def text(name: str, tokens: int, seed: int, batch: int = 1) -> list:
    """CONDITIONING with random content."""
    family, generator = FAMILIES[name], torch.Generator().manual_seed(seed)
    cross = torch.randn((batch, tokens, family.text), generator=generator)
    pooled = torch.randn((batch, family.pooled), generator=generator)
    mask = {"attention_mask": torch.ones(batch, tokens, dtype=torch.long)} if family.attention_mask else {}
    return [[cross, {"pooled_output": pooled, "guidance": 3.5} | mask | (family.options or {})]]


def latent(name: str, batch: int = 1, size: int | None = None) -> dict[str, Tensor]:
    """An empty LATENT."""
    shape = FAMILIES[name].latent
    if size is not None:
        shape = (*shape[:-2], size, size)
    return {"samples": torch.zeros(batch, *shape)}
