"""Stable Diffusion pipelines of a few thousand weights, with real classes, as folders on disk."""

import json

import diffusers
import torch
import transformers

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.<>-'"
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}


def tokenizer(folder, pad="<|endoftext|>"):
    """A CLIP tokenizer that knows letters only, padding with `pad`."""
    folder.mkdir(parents=True)
    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "!", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, pad_token=pad, model_max_length=77)


def text_encoder(kind, size, tokens, **changes):
    ids = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id}
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens), **{**TEXT, **ids, **changes}, projection_dim=size
    )
    return kind(config)


def vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4), norm_num_groups=2, latent_channels=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def scheduler(prediction="epsilon"):
    return diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction
    )


def sd15(folder, prediction="epsilon", channels=4, layers=2):
    """Write a Stable Diffusion 1.5 of the least width and return its pipeline. layers: per block."""
    torch.manual_seed(0)
    tokens = tokenizer(folder / "words")
    down, up = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=channels, block_out_channels=(8, 8, 8, 8), cross_attention_dim=16,
        down_block_types=(*down, "DownBlock2D"), up_block_types=("UpBlock2D", *up),
        attention_head_dim=2, norm_num_groups=4, layers_per_block=layers,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=text_encoder(transformers.CLIPTextModel, 16, tokens), tokenizer=tokens, unet=unet,
        scheduler=scheduler(prediction), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "pipeline")
    return pipeline


def sdxl(folder, layers=2, **saving):
    """Write an SDXL of the least width (depths 2 and 3 for 2 and 10) and return its pipeline. layers: per block."""
    torch.manual_seed(0)
    first, second = tokenizer(folder / "words"), tokenizer(folder / "words_2", pad="!")
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 8, 8), layers_per_block=layers, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3), attention_head_dim=2, norm_num_groups=4,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=vae(), unet=unet, scheduler=scheduler(),
        text_encoder=text_encoder(transformers.CLIPTextModel, 16, first), tokenizer=first,
        text_encoder_2=text_encoder(transformers.CLIPTextModelWithProjection, 16, second), tokenizer_2=second,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "pipeline", **saving)
    return pipeline
