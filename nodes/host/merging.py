"""ZipLoRA on a host MODEL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...dco_core.lora import LoraWeights
from ...dco_core.training.examples import Example
from ...dco_core.training.zip_lora import ZipResult, ZipSettings, zip_mergers
from .layer_names import modules_of
from .progress import progress_bar, raise_if_interrupted
from .training.network import HostDenoiser, native_latent, training_session


def zip_mergers_of(
    model,
    loras: Sequence[LoraWeights],
    weights: tuple[float, float],
    latents: Sequence[Mapping[str, Any]],
    prompts: Sequence[list],
    settings: ZipSettings,
) -> ZipResult:
    """zip_mergers on MODEL. latents, prompts: the host's LATENT and CONDITIONING of the subject and of the style."""
    names = [modules_of(model, lora, f"LoRA {which}") for which, lora in enumerate(loras, 1)]
    bar = progress_bar(settings.steps)

    def callback(_step: int) -> None:
        raise_if_interrupted()
        bar.update(1)

    with training_session(model, None) as denoiser:
        denoiser.checkpoint_blocks()
        examples = [_examples(model, denoiser, *pair) for pair in zip(latents, prompts, strict=True)]
        return zip_mergers(denoiser, names, loras, examples, settings, weights, callback)


def _examples(model, denoiser: HostDenoiser, latent: Mapping[str, Any], prompt: list) -> list[Example]:
    examples = []
    for sample in latent["samples"]:
        x0, _ = native_latent(model, sample)
        examples.append(Example(x0, denoiser.model_conditions(prompt, x0)))
    return examples
