"""Prompts for LoRAs with learned tokens."""

from __future__ import annotations

from comfy_api.latest import io

from ...dco_core.captions.markers import base_caption, markers
from ...dco_core.lora import from_bundle, initializers_in
from ..host.connected import clip_of
from ..host.training import learned_tokens


class DCOEncodePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOEncodePrompt", display_name="Encode DCO Prompt", category="model/conditioning",
            description="Turns one prompt with <dog> into two: what the LoRA reads, with the tokens it has learned, "
            "and what the base model reads, with plain words. Both go into the reward guidance nodes.",
            search_aliases=[
                "clip text encode", "prompt", "learned token", "embedding", "textual inversion", "dco",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that the tokens were trained for."),
                io.LoraModel.Input(
                    "lora", tooltip="The LoRA with its learned tokens: trained, merged or loaded.",
                ),
                io.String.Input(
                    "text", multiline=True, dynamic_prompts=True, default="a photo of a <dog> on the beach",
                    tooltip="The prompt. <dog> is the learned token; a marker that the LoRA did not learn reads as its "
                    "word.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="personalized",
                    tooltip="With learned tokens, for `personalized` of the guidance nodes.",
                ),
                io.Conditioning.Output(display_name="base", tooltip="With plain words, for `positive`."),
                io.String.Output(display_name="base_text", tooltip="The prompt that the base model reads."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, clip, lora, text: str) -> io.NodeOutput:
        known = from_bundle(lora)
        rows = {name: known[name] for name in markers(text) if name in known}
        words = initializers_in(getattr(lora, "metadata", {}), list(known))
        plain = base_caption(text, words)
        base = clip_of(clip).encode_from_tokens_scheduled(clip.tokenize(plain))
        if not rows:
            return io.NodeOutput(base, base, plain)
        return io.NodeOutput(learned_tokens.PromptReader(clip, rows, words).encode(text), base, plain)


NODES = [DCOEncodePrompt]
