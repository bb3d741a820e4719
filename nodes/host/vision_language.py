"""Text from a picture, by whatever vision-language model the host has loaded as a CLIP (core's Generate Text)."""

from __future__ import annotations

from torch import Tensor

from ...dco_core.errors import DCOError

_REMEDY = (
    "load a vision-language model (such as Qwen2.5-VL or Gemma 3) with a CLIP loader, or disconnect it and write the "
    "captions yourself."
)


def describe(clip, prompt: str, image: Tensor, max_length: int, seed: int) -> str:
    """What the model answers to a prompt about one image [H, W, C]. DCOError for a text encoder that writes no
    text."""
    try:
        tokens = clip.tokenize(prompt, image=image[None], min_length=1, thinking=False)
        # greedy: the same picture gets the same draft
        ids = clip.generate(tokens, do_sample=False, max_length=max_length, seed=seed)
        return clip.decode(ids)
    except (AttributeError, TypeError, KeyError, NotImplementedError) as error:
        raise DCOError(f"This CLIP cannot describe pictures ({error}): {_REMEDY}") from error
