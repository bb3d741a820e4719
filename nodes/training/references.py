"""What the trainer is given, sorted out: one image, one caption and perhaps one mask each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...dco_core.data.folders import MAX_PICTURES, Picture
from ...dco_core.errors import DCOError
from ...dco_core.files.content_key import content_keys
from ...dco_core.files.tensor_memory import memory_of


def flatten_images(images: Sequence[Tensor]) -> list[Tensor]:
    """A list of IMAGE batches [B, H, W, C] -> single images [H, W, C]. DCOError for none and for too many; repeats in
    the same memory, as Load Dataset Folder makes them, count once."""
    batches = [batch for batch in images if batch is not None]
    count = sum(len(batch) for batch in {memory_of(batch): batch for batch in batches}.values())
    if count == 0:
        raise DCOError("There are no images to train on: connect at least one.")
    if count > MAX_PICTURES:
        raise DCOError(
            f"There are {count} images: the method is for 1 to 20 pictures of one subject or style, and more than "
            f"{MAX_PICTURES} are refused. Choose the best ones."
        )
    return [image for batch in batches for image in batch]


def flatten_masks(masks: Sequence[Tensor | None], count: int) -> list[Tensor | None]:
    """A list of MASK [B, H, W], [H, W] or IMAGE [B, H, W, C] (its brightness) -> one mask an image. A single mask
    is for all of them."""
    singles: list[Tensor | None] = []
    for batch in masks:
        if batch is None:
            continue
        if batch.ndim == 4:
            batch = batch[..., :3].mean(-1)
        singles += [batch] if batch.ndim == 2 else list(batch)
    if len(singles) == 1:
        singles *= count
    if singles and len(singles) != count:
        raise DCOError(
            f"There are {count} images and {len(singles)} masks: give one mask per image, in their order, or a "
            "single one for all."
        )
    return singles or [None] * count


def split_captions(captions: Sequence[str], count: int) -> list[str]:
    """One caption an image. A single text is read as one caption a line. DCOError if the numbers differ or a
    caption is empty."""
    texts = list(captions)
    if len(texts) == 1:
        texts = [line for line in texts[0].splitlines() if line.strip()]
    if len(texts) != count:
        raise DCOError(
            f"There are {count} images and {len(texts)} captions: give one caption per image, "
            "one a line, in their order."
        )
    for i, text in enumerate(texts):
        if not text.strip():
            raise DCOError(
                f"The caption of image {i + 1} is empty: describe its subject, background, view and style."
            )
    return [text.strip() for text in texts]


def gather(
    images: Sequence[Tensor], captions: Sequence[str], masks: Sequence[Tensor | None] | None
) -> list[Picture]:
    """The references of a training run. DCOError where images, captions and masks do not fit together."""
    pictures = flatten_images(images)
    texts = split_captions(captions, len(pictures))
    each = zip(pictures, texts, flatten_masks(masks or [], len(pictures)), strict=True)
    return [Picture(f"Image {i}", image, mask, text) for i, (image, text, mask) in enumerate(each, 1)]


def given_class_images(batches: Sequence[Tensor | None] | None) -> list[Picture]:
    """Class images from a list of IMAGE batches. DCOError for too many."""
    images = [image for batch in batches or [] if batch is not None for image in batch]
    if len(images) > MAX_PICTURES:
        raise DCOError(f"There are {len(images)} class images: connect at most {MAX_PICTURES}.")
    return [Picture(f"Class image {i}", image, None, "") for i, image in enumerate(images, 1)]


def distinct(references: Sequence[Picture]) -> list[Picture]:
    """The references without repeats of the same picture with the same caption."""
    keys = content_keys([r.image for r in references])
    return list({(r.caption, key): r for r, key in zip(references, keys, strict=True)}.values())
