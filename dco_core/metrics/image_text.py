"""SigLIP's image-text score (App. D.4; Zhai et al. 2023): does a picture show what its prompt says, in 0..1.

The paper writes, with l2-normalised embeddings f and "a bias term b that is optimized during pretraining",

    S(x, c) = 1 / (1 + exp(-f_img . f_text + b)).

A SigLIP model is trained as sigmoid(s f_img . f_text + b'), with a scale s = exp(logit_scale) and a bias b'
(logit_bias) that it has learned. Both are the same score where the paper's embeddings carry the scale (f times
sqrt(s)) and its b is -b'. Without the scale the formula would say nothing: training starts at s = 10, b' = -10, and
with a bias of that size sigmoid(cosine + b') is below 0.001 for every picture and sigmoid(cosine - b') above 0.999,
while the paper reports values from 0.43 to 0.86. So the score here is what the model itself gives,
sigmoid(s cosine + b').
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DCOError
from .pretrained import ImageEncoder, load_pretrained, pooled


def siglip_score(cosine: Tensor, scale: float | Tensor, bias: float | Tensor) -> Tensor:
    """sigmoid(scale * cosine + bias). scale: exp(logit_scale). bias: logit_bias, which is negative in trained models;
    the paper's b is its opposite."""
    return torch.sigmoid(scale * cosine + bias)


class SiglipScorer(ImageEncoder):
    """A SigLIP model: images against prompts, and, as an ImageEncoder, images against images (style)."""

    @torch.no_grad()
    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> fp32 [P, D] on the CPU, not normalised. Padded to the full length, as in training."""
        length = self.model.config.text_config.max_position_embeddings
        inputs = self.processor.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        # without an attention mask, as SigLIP was trained
        return pooled(self.model.get_text_features(inputs["input_ids"].to(self._device()))).float().cpu()

    def scores(
        self, images: Sequence[Tensor], prompts: Sequence[str], callback: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Every image [H, W, 3] in 0..1 with every prompt -> [B, P] in 0..1."""
        if not prompts:
            raise DCOError("There are no prompts to score with: give at least one.")
        cosine = F.normalize(self.embed(images, callback), dim=1) @ F.normalize(self.embed_text(prompts), dim=1).T
        scale, bias = self.model.logit_scale.float().cpu().exp(), self.model.logit_bias.float().cpu()
        return siglip_score(cosine, scale, bias).detach()

    def score(
        self, images: Sequence[Tensor], prompts: Sequence[str], callback: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Each image with its own prompt -> [B] in 0..1. DCOError unless there are as many prompts."""
        if len(images) != len(prompts):
            raise DCOError(
                f"{len(images)} images have {len(prompts)} prompts: give one prompt for each image."
            )
        different = list(dict.fromkeys(prompts))
        column = torch.tensor([different.index(prompt) for prompt in prompts])
        return self.scores(images, different, callback).gather(1, column[:, None])[:, 0]


def load_siglip(source: str | Path, device: torch.device | str = "cpu") -> SiglipScorer:
    """The SigLIP model (image and text) in a folder or of that name on the Hugging Face hub, such as
    "google/siglip-base-patch16-224", in fp32. Raises DCOError for a model without SigLIP's scale and bias."""
    model: Any
    model, processor = load_pretrained(source, "AutoModel", "AutoProcessor")
    if not (
        hasattr(model, "logit_scale") and hasattr(model, "logit_bias") and hasattr(processor, "tokenizer")
    ):
        raise DCOError(
            f'"{source}" is a {type(model).__name__}, which has no image-text score with a bias: give a whole SigLIP '
            'model (image and text), such as "google/siglip-base-patch16-224".'
        )
    return SiglipScorer(model.to(device), processor).eval()
