"""Reward guidance: a MODEL patch for any sampler, and a sampler with everything in it."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from ..dco_core.lora import from_bundle
from .host import adapters, guidance, sampling

_W_RG = io.Float.Input(
    "w_rg",
    default=3.0,
    min=0.0,
    max=100.0,
    step=0.1,
    round=0.01,
    tooltip="Reward guidance scale: how much of what the LoRA learned to follow. The paper uses 2 to 5 at w_text 7.5 "
    "(a ratio of 0.3 to 0.7): higher gives more likeness, lower more of the prompt. 0 is the base model; the same as "
    "w_text is ordinary sampling of the LoRA against the base's negative prompt.",
)
_STRENGTH = io.Float.Input(
    "lora_strength",
    default=1.0,
    min=-20.0,
    max=20.0,
    step=0.05,
    advanced=True,
    tooltip="Strength of the LoRA itself, as in LoRA loaders. Reward guidance works best at 1: steer with w_rg.",
)
_LORA = io.LoraModel.Input(
    "lora", tooltip="The LoRA, trained on this model: from the trainer, a merge or a file."
)
_PERSONALIZED = io.Conditioning.Input(
    "personalized",
    optional=True,
    tooltip="What the LoRA reads, where it is not the positive prompt: the personalized output of Encode DCO Prompt, "
    "for LoRAs with learned tokens. Not connected: the positive prompt.",
)


def _patched(model, lora, w_rg: float, lora_strength: float, personalized):
    tokens = sorted(from_bundle(lora))
    if tokens and personalized is None:
        logging.warning(
            "DCO: this LoRA has learned tokens (%s), but reward guidance got no personalized prompt: make it with "
            "Encode DCO Prompt.",
            ", ".join(f"<{name}>" for name in tokens),
        )
    return guidance.patch(model, adapters.resolve(model, lora, lora_strength), w_rg, personalized)


class DCORewardGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCORewardGuidance",
            display_name="Reward Guidance (DCO)",
            category="advanced/guidance",
            description="Patches a model so that any sampler follows reward guidance (Direct Consistency Optimization, "
            "Sec. 4.2). The sampler's cfg is w_text. Every step evaluates the base model on the prompt and the "
            "negative, and the LoRA on the prompt, in one batch. Weights are never changed.",
            search_aliases=["reward guidance", "dco", "w_rg", "lora guidance", "autoguidance"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA was trained on, without that LoRA."),
                _LORA,
                _W_RG,
                _STRENGTH,
                _PERSONALIZED,
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model with reward guidance, for any sampler."
                )
            ],
        )

    @classmethod
    def execute(
        cls, model, lora, w_rg: float, lora_strength: float = 1.0, personalized=None
    ) -> io.NodeOutput:
        return io.NodeOutput(_patched(model, lora, w_rg, lora_strength, personalized))


class DCORewardGuidanceSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCORewardGuidanceSampler",
            display_name="Reward Guidance Sampler (DCO)",
            category="sampling",
            description="KSampler with reward guidance: w_rg trades likeness to the subject or style against the "
            "prompt, at sampling time, without training again.",
            search_aliases=["reward guidance", "dco", "ksampler", "sampler", "w_rg"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA was trained on, without that LoRA."),
                _LORA,
                io.Conditioning.Input("positive", tooltip="The prompt, as the base model reads it."),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt; the paper uses an empty one."
                ),
                io.Latent.Input("latent_image", tooltip="The latent to start from."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise.",
                ),
                io.Int.Input(
                    "steps", default=50, min=1, max=10000, tooltip="Sampling steps; the paper uses 50."
                ),
                _W_RG,
                io.Float.Input(
                    "w_text",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Text guidance scale of the base model (cfg). The paper uses 7.5.",
                ),
                io.Combo.Input(
                    "sampler_name", options=sampling.SAMPLERS, default="ddim", tooltip="The paper uses DDIM."
                ),
                io.Combo.Input(
                    "scheduler",
                    options=sampling.SCHEDULERS,
                    default="normal",
                    tooltip="Spacing of the noise levels.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Less than 1 keeps part of the latent image (image to image).",
                ),
                _STRENGTH,
                _PERSONALIZED,
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The denoised latent.")],
        )

    @classmethod
    def execute(
        cls, model, lora, positive, negative, latent_image, seed, steps, w_rg, w_text, sampler_name, scheduler,
        denoise=1.0, lora_strength=1.0, personalized=None,
    ) -> io.NodeOutput:  # fmt: skip
        patched = _patched(model, lora, w_rg, lora_strength, personalized)
        return io.NodeOutput(
            sampling.ksample(
                patched,
                seed,
                steps,
                w_text,
                sampler_name,
                scheduler,
                positive,
                negative,
                latent_image,
                denoise,
            )
        )


NODES = [DCORewardGuidance, DCORewardGuidanceSampler]
