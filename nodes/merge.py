"""My subject in my style: one LoRA from several."""

from __future__ import annotations

from comfy_api.latest import io

from ..dco_core.errors import DCOError
from ..dco_core.lora import from_tensors, merge, to_tensors, write_lora
from .host import files


def parse_weights(text: str, count: int) -> list[float]:
    """ "1, -0.5" -> [1.0, -0.5]; DCOError unless it holds `count` finite numbers."""
    parts = [part for part in text.replace(";", ",").split(",") if part.strip()]
    try:
        weights = [float(part) for part in parts]
    except ValueError:
        raise DCOError(
            f'weights "{text}" are not numbers: write one per LoRA, separated by commas, like "1, 0.8".'
        ) from None
    if weights and not any(weights):
        raise DCOError(
            f'weights "{text}" are all 0: the sum would be empty. Give at least one LoRA a weight.'
        )
    if len(weights) != count:
        raise DCOError(
            f'weights "{text}" are {len(weights)}, but {count} LoRAs are connected: write one number for each.'
        )
    return weights


class DCOLoRAArithmeticMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        loras = io.Autogrow.TemplatePrefix(
            io.LoraModel.Input("lora", tooltip="A LoRA for the same base model."),
            prefix="lora_",
            min=1,
            max=20,
        )
        return io.Schema(
            node_id="DCOLoRAArithmeticMerge",
            display_name="LoRA Arithmetic Merge (DCO)",
            category="model/merging",
            description="dW = weight_1 dW_1 + weight_2 dW_2 + ...: the exact weighted sum of any number of LoRAs, "
            "of any rank and alpha, as one LoRA. LoRAs trained with DCO stay close to the base model, so that a "
            "subject and a style merge without further training (Sec. 5.3).",
            search_aliases=["merge lora", "lora merge", "combine lora", "my subject in my style", "dco"],
            is_output_node=True,
            inputs=[
                io.Autogrow.Input("loras", template=loras, tooltip="LoRAs to add up, in order."),
                io.String.Input(
                    "weights",
                    default="1, 1",
                    tooltip="One weight per LoRA, separated by commas; negative ones subtract.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="loras/dco_merge",
                    tooltip="Where in the output folder the merged LoRA is saved. Empty: it is not saved.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="The merged LoRA."),
                io.String.Output(display_name="report", tooltip="What was merged and where it was saved."),
            ],
        )

    @classmethod
    def execute(cls, loras: io.Autogrow.Type, weights: str, filename_prefix: str) -> io.NodeOutput:
        inputs = [from_tensors(lora, name) for name, lora in loras.items() if lora is not None]
        factors = parse_weights(weights, len(inputs))
        merged = merge(inputs, factors)
        ranks = sorted({layer.rank for layer in merged.layers.values()})
        sizes = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        report = (
            f"Merged {len(inputs)} LoRAs with weights {', '.join(f'{w:g}' for w in factors)}: "
            f"{len(merged.layers)} modules, {sizes}, exact."
        )
        if filename_prefix.strip():
            path = files.new_lora_path(filename_prefix)
            write_lora(path, merged)
            report += f"\nSaved {files.shown_name(path)}. Press R to see it in the LoRA lists."
        return io.NodeOutput(to_tensors(merged), report, ui={"text": [report]})


NODES = [DCOLoRAArithmeticMerge]
