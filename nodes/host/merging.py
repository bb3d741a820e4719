"""ZipLoRA on a host MODEL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...dco_core.errors import DCOError
from ...dco_core.lora import LoraLayer, LoraWeights, canonical_keys
from ...dco_core.lora.keys import UNET
from ...dco_core.merging import ZipResult, ZipSettings, optimise
from ...dco_core.training.examples import Example
from .layer_names import modules_of
from .progress import progress_bar, raise_if_interrupted
from .training.network import HostDenoiser, native_latent, training_session


def zip_mergers(
    model,
    loras: Sequence[LoraWeights],
    weights: tuple[float, float],
    latents: Sequence[Mapping[str, Any]],
    prompts: Sequence[list],
    settings: ZipSettings,
) -> ZipResult:
    """The mergers of the layers of MODEL that both LoRAs have, by canonical key. latents, prompts: the host's LATENT
    and CONDITIONING of the subject and of the style. Text encoder layers are summed as they are.

    Raises DCOError if a LoRA has no layer of MODEL, or one of another shape."""
    names = [modules_of(model, lora, f"LoRA {which}") for which, lora in enumerate(loras, 1)]
    merged = _merged_keys(loras, names)
    content, style = (
        _layers(model, lora, own, which) for which, (lora, own) in enumerate(zip(loras, names, strict=True), 1)
    )
    bar = progress_bar(settings.steps)

    def tick(_step: int) -> None:
        raise_if_interrupted()
        bar.update(1)

    with training_session(model, None) as denoiser:
        denoiser.checkpoint_blocks()
        subject, styled = (
            _examples(model, denoiser, latent, prompt)
            for latent, prompt in zip(latents, prompts, strict=True)
        )
        found = optimise(denoiser, content, style, subject, styled, settings, weights, tick)
    return ZipResult({merged[name]: pair for name, pair in found.mergers.items()}, found.losses)


def _merged_keys(loras: Sequence[LoraWeights], names: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """{dotted name of a module: its key in the merged LoRA}. Raises DCOError where the merge would take layers of
    different modules for one, or of one module for two."""
    keys = canonical_keys(key for lora in loras for key in lora.layers)
    found: dict[str, str] = {}
    modules: dict[str, str] = {}
    for own in names:
        for key, module in own.items():
            merged = keys[key]
            if found.setdefault(module, merged) != merged or modules.setdefault(merged, module) != module:
                raise DCOError(
                    f"The two LoRAs name the blocks of this model in two ways ({merged} is {module} in one of them "
                    "alone), which a merge of a UNet without two blocks per level cannot match: use files that name "
                    "them alike."
                )
    return found


def _layers(model, lora: LoraWeights, names: Mapping[str, str], which: int) -> dict[str, LoraLayer]:
    """Layers of the diffusion model by dotted name."""
    modules = dict(model.model.diffusion_model.named_modules())
    found = {}
    unknown = next((key for key in lora.layers if key.startswith(UNET) and key not in names), None)
    if names and unknown:  # what it is paired with by its key is another layer
        raise DCOError(
            f"LoRA {which} does not belong to this model ({type(model.model).__name__}): it has no layer "
            f"{lora.paths.get(unknown, unknown)}. Load the checkpoint that it was trained on."
        )
    for key, name in names.items():
        module = modules[name]
        layer = lora.layers[key]
        expected = tuple(module.weight.shape)
        if (layer.shape[0], layer.down[0].numel()) != (expected[0], module.weight[0].numel()):
            raise DCOError(
                f"LoRA {which} does not belong to this model: {key} has shape {list(layer.shape)}, the layer "
                f"{list(expected)}. Load the checkpoint that it was trained on."
            )
        kernel = expected[2:]
        down = layer.down.reshape(layer.rank, expected[1], *kernel)
        found[name] = LoraLayer(
            down, layer.up.reshape(expected[0], layer.rank, *(1 for _ in kernel)), layer.alpha
        )
    if not found:
        raise DCOError(
            f"LoRA {which} does not belong to this model ({type(model.model).__name__}): it has none of its layers. "
            "Load the checkpoint that it was trained on."
        )
    return found


def _examples(model, denoiser: HostDenoiser, latent: Mapping[str, Any], prompt: list) -> list[Example]:
    examples = []
    for sample in latent["samples"]:
        x0, _ = native_latent(model, sample)
        examples.append(Example(x0, denoiser.model_conditions(prompt, x0)))
    return examples
