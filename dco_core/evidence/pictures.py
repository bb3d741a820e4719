"""Pictures of a trained model: the same noise for every method, plain and reward guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..captions.markers import base_caption, mark_words
from ..data.buckets import BucketedImage
from ..errors import DCOError
from ..lora import LoraLayer, LoraWeights, from_bundle
from ..models.image_model import ImageModel
from ..network.denoiser import Denoiser, NetworkDenoiser
from ..network.lora_layers import AdapterConfig
from ..pipeline.vocabulary import kept_vocabulary
from ..sampling import sample
from .study import PLAIN


def with_lora(model: ImageModel, layers: Mapping[str, LoraLayer]) -> NetworkDenoiser:
    """The model with a LoRA by canonical key. DCOError if a layer is none of the model's."""
    plain = model.denoiser(None)
    names = {}
    for name, module in plain.network.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            names[model.canonical(name)] = name
    strange = [key for key in layers if key not in names]
    if strange:
        raise DCOError(f"The LoRA has the layer {strange[0]}, which the model has not.")
    return model.denoiser(AdapterConfig(start={names[key]: layer for key, layer in layers.items()}))


def noise_for(shape: Sequence[int], seed: int, prompt: int, pictures: int) -> Tensor:
    """Noise [pictures, C, H, W] of the prompt with that number, the same whatever is sampled from it."""
    generator = torch.Generator().manual_seed((seed << 20) + (prompt << 8))
    return torch.randn((pictures, *shape), generator=generator)


class _Personalized(Denoiser):
    """A Denoiser whose adapter stays on, so that guidance is between theta(c) and theta(0)."""

    def __init__(self, denoiser: NetworkDenoiser):
        self._denoiser, self.schedule = denoiser, denoiser.schedule

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Sequence[Any], *, adapter: bool) -> Tensor:
        return self._denoiser.predict(x_t, t, conditioning, adapter=True)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return {}

    def lora(self) -> dict[str, LoraLayer]:
        return {}


def encoded_prompts(
    model: ImageModel, prompts: Sequence[str], lora: LoraWeights | None = None
) -> tuple[list[Any], list[Any]]:
    """What theta and phi read of prompts. lora: whose learned tokens theta reads where a prompt names one of them; phi
    reads the words they started from."""
    known = list(from_bundle(lora.other)) if lora else []
    marked = [mark_words(prompt, known) for prompt in prompts]
    words = kept_vocabulary(marked, lora)
    base = model.encode_captions([base_caption(text, words.initializers) for text in marked])
    if not words.fixed:
        return base, base
    assert model.learned_tokens is not None  # which the rows are from
    return model.learned_tokens.encode(marked, words.fixed, words.initializers), base


@torch.no_grad()
def draw_latents(
    model: ImageModel,
    denoiser: NetworkDenoiser,
    prompts: Sequence[str],
    guidance: float | str,
    *,
    w_text: float,
    steps: int,
    pictures: int,
    seed: int,
    resolution: int | None = None,
    at_once: int = 4,
    lora: LoraWeights | None = None,
    callback: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """`pictures` latents of each prompt, prompt by prompt. guidance: w_rg, or "plain" for classifier-free guidance of
    theta at w_text. resolution: None for the model's own. at_once: samples in one call of the network. lora: whose
    learned tokens theta reads."""
    side = resolution or model.default_resolution
    grey = torch.full((side, side, 3), 0.5)
    ((blank, _),) = model.encode_images([grey])
    bucketed = BucketedImage(grey, None, (side, side), (0, 0))
    read = (*encoded_prompts(model, prompts, lora), model.encode_captions([""]))
    theta, phi, (empty,) = ([model.network_input(model.with_size(c, bucketed), blank) for c in texts] for texts in read)
    noise = torch.cat([noise_for(blank.shape, seed, i, pictures) for i in range(len(prompts))]).to(blank)
    plain = guidance == PLAIN
    chosen: Denoiser = _Personalized(denoiser) if plain else denoiser
    w_rg = 0.0 if plain else float(guidance)
    own, base = ([c for c in texts for _ in range(pictures)] for texts in (theta, theta if plain else phi))
    latents: list[Tensor] = []
    for first in range(0, len(own), at_once):
        few = slice(first, first + at_once)
        latents += sample(
            chosen, own[few], base[few], [empty] * len(own[few]), noise[few], w_rg=w_rg, w_text=w_text, steps=steps,
            callback=callback,
        )  # fmt: skip
    return latents


def draw(
    model: ImageModel, denoiser: NetworkDenoiser, prompts: Sequence[str], guidance: float | str, **settings: Any
) -> Tensor:
    """draw_latents as pictures [prompts * pictures, H, W, 3] in 0..1, on the CPU."""
    with torch.no_grad():
        return torch.stack(model.decode_latents(draw_latents(model, denoiser, prompts, guidance, **settings)))
