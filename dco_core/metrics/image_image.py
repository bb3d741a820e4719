"""Likeness of images to references: the mean cosine similarity of their embeddings (App. D.4).

With DINOv2 it is the paper's image similarity of a subject, with SigLIP's image encoder that of a style.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from ..errors import DCOError
from .pretrained import ImageEncoder


def mean_cosine_similarity(images: Tensor, references: Tensor) -> Tensor:
    """Embeddings of images [B, D] and of references [R, D], of any length -> the mean over the references of the cosine
    similarity, [B] in -1..1. DCOError for no reference and for embeddings of different models."""
    if not len(references):
        raise DCOError("There are no reference images to compare with: give at least one.")
    if images.shape[1] != references.shape[1]:
        raise DCOError(
            f"Embeddings of {images.shape[1]} and {references.shape[1]} numbers cannot be compared: embed images and "
            "references with one model."
        )
    return (F.normalize(images.float(), dim=1) @ F.normalize(references.float(), dim=1).T).mean(1)


def image_similarity(encoder: ImageEncoder, images: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """Images and references [H, W, 3] in 0..1, of any sizes -> the similarity of each image, [B] in -1..1."""
    return mean_cosine_similarity(encoder.embed(images), encoder.embed(references))
