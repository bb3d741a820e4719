"""Reward guidance: a MODEL patch for any sampler, a guider, and a sampler with everything in it."""

from __future__ import annotations

from comfy_api.latest import io

from ..host import sampling
from ..host.node_choices import check_choices
from ..options import Face, OptionsNode, dynamic
from . import inputs as shared
from .guided import Guided


class DCORewardGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCORewardGuidance", display_name="Reward Guidance (DCO)", category="advanced/guidance",
            description="Patches a model so that any sampler follows reward guidance (Direct Consistency Optimization, "
            "Sec. 4.2). The sampler's cfg is w_text. Every step evaluates the base model on the prompt and the "
            "negative, and the LoRA on the prompt, in one batch. Weights are never changed.",
            search_aliases=["consistency guidance", "reward guidance", "dco", "w_rg", "lora guidance"],
            inputs=[
                shared.MODEL, shared.LORA, shared.W_RG, shared.PERSONALIZED, shared.OPTIONS, shared.MASK,
                shared.REGIONS,
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model with reward guidance, for any sampler.",
                ),
                shared.REPORT,
            ],
            has_intermediate_output=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, lora, w_rg: float, personalized=None, options=None, mask=None, regions=None
    ) -> io.NodeOutput:
        guided = Guided(model, lora, personalized, options, mask, regions)
        return guided.output(guided.patched("reward", w_rg), guided.reward_report(w_rg, None))


class DCORewardGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCORewardGuider", display_name="Reward Guider (DCO)", category="model/sampling/guiders",
            description="Reward guidance as a guider for SamplerCustomAdvanced: "
            "phi(0) + w_text (phi(c) - phi(0)) + w_rg (theta(c) - phi(c)).",
            search_aliases=["reward guidance", "dco", "guider", "w_rg", "samplercustomadvanced"],
            inputs=[
                shared.MODEL, shared.LORA, shared.POSITIVE, shared.NEGATIVE, shared.W_RG, shared.W_TEXT,
                shared.PERSONALIZED, shared.OPTIONS, shared.MASK, shared.REGIONS,
            ],
            outputs=[
                io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced."), shared.REPORT,
            ],
            has_intermediate_output=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, lora, positive, negative, w_rg, w_text, personalized=None, options=None, mask=None, regions=None
    ) -> io.NodeOutput:
        guided = Guided(model, lora, personalized, options, mask, regions)
        guider = sampling.cfg_guider(guided.patched("reward", w_rg), positive, negative, w_text)
        return guided.output(guider, guided.reward_report(w_rg, w_text))


class DCORewardGuidanceSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCORewardGuidanceSampler", display_name="Reward Guidance Sampler (DCO)",
            category="model/sampling",
            description="KSampler with reward guidance: w_rg trades likeness to the subject or style against the "
            "prompt, at sampling time, without training again.",
            search_aliases=["consistency guidance", "reward guidance", "dco", "ksampler", "sampler", "w_rg"],
            inputs=[
                shared.MODEL, shared.LORA, shared.POSITIVE, shared.NEGATIVE, shared.LATENT, shared.SEED,
                shared.STEPS, shared.W_RG, shared.W_TEXT, shared.SAMPLER, shared.SCHEDULER, shared.DENOISE,
                shared.PERSONALIZED, shared.OPTIONS, shared.MASK, shared.REGIONS,
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The denoised latent."), shared.REPORT],
            has_intermediate_output=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, lora, positive, negative, latent_image, seed, steps, w_rg, w_text, sampler_name, scheduler,
        denoise=1.0, personalized=None, options=None, mask=None, regions=None,
    ) -> io.NodeOutput:  # fmt: skip
        guided = Guided(model, lora, personalized, options, mask, regions)
        samples = sampling.ksample(
            guided.patched("reward", w_rg), seed, steps, w_text, sampler_name, scheduler, positive, negative,
            latent_image, denoise,
        )  # fmt: skip
        return guided.output(samples, guided.reward_report(w_rg, w_text))


_METHODS = {
    "AutoGuidance": "auto",
    "Personalization guidance": "personalization",
    "LoRA on the negative only": "negative",
}


class DCOLoRAGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        auto = io.Float.Input(
            "w_auto", default=2.0, min=0.0, max=100.0, step=0.1,
            tooltip="w of AutoGuidance: away from the LoRA, which is the weak model. 1 is off. cfg 1 on the sampler is "
            "AutoGuidance alone.",
        )  # fmt: skip
        weak = io.Float.Input(
            "weak_strength", default=0.5, min=0.0, max=1.0, step=0.05,
            tooltip="How much of the LoRA the weak model on the negative prompt has: 0 is the base model, 1 ordinary "
            "sampling with the LoRA.",
        )  # fmt: skip
        methods = dict(zip(_METHODS, ([auto], [weak], []), strict=True))
        return io.Schema(
            node_id="DCOLoRAGuidance", display_name="LoRA Guidance: Other Methods (DCO)",
            category="advanced/guidance",
            description="Other ways to guide with a LoRA, on the engine of reward guidance, to compare with: "
            "AutoGuidance with the LoRA as the weak model (arXiv 2406.02507), Steering Guidance for personalised "
            "models (arXiv 2508.00319), and the LoRA on the negative prompt only (Diffusion-NPO, arXiv 2505.11245).",
            search_aliases=[
                "autoguidance", "steering guidance", "personalization guidance", "lora negative", "dco",
            ],
            inputs=[
                shared.MODEL, shared.LORA, dynamic("method", methods, "How the LoRA takes part in a step."),
                shared.PERSONALIZED, shared.OPTIONS,
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The guided model, for any sampler; cfg is its own.",
                ),
                shared.REPORT,
            ],
            hidden=shared.HIDDEN, has_intermediate_output=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, model, lora, method, personalized=None, options=None) -> io.NodeOutput:
        check_choices(cls)
        kind = _METHODS[method["method"]]
        scale = {"auto": method.get("w_auto"), "personalization": method.get("weak_strength")}.get(kind, 1.0)
        guided = Guided(model, lora, personalized, options)
        return guided.output(guided.patched(kind, scale), guided.method_report(kind, scale))


class DCORewardGuidanceOptions(OptionsNode):
    FACE = Face(
        "DCORewardGuidanceOptions", "Reward Guidance Options (DCO)", shared.OPTIONS_TYPE, shared.guidance_options,
        "What the guidance nodes can do beside: the LoRA's strength, more LoRAs stacked on it, a part of the noise "
        "schedule, less memory.",
        ["lora strength", "lora stack", "low memory"], "advanced/guidance", "a guidance node", chained=False,
    )  # fmt: skip


NODES = [
    DCORewardGuidance,
    DCORewardGuidanceSampler,
    DCORewardGuider,
    DCOLoRAGuidance,
    DCORewardGuidanceOptions,
]
