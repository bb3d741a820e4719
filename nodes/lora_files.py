"""LoRA files in the graph."""

from __future__ import annotations

from comfy_api.latest import io

from ..dco_core.lora import read_lora, to_tensors
from .host import files


class DCOLoadLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOLoadLoRA",
            display_name="Load LoRA File (DCO)",
            category="model/loaders",
            description="Reads a LoRA file as LORA_MODEL, for reward guidance and merging. "
            "It does not touch any model.",
            search_aliases=["lora loader", "load lora", "lora_model", "dco"],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=files.lora_names(),
                    tooltip="The file. A LoRA that was trained just now appears after pressing R.",
                ),
            ],
            outputs=[io.LoraModel.Output(display_name="lora", tooltip="The LoRA.")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str) -> str:
        stat = files.lora_path(lora_name).stat()
        return f"{stat.st_mtime_ns} {stat.st_size}"

    @classmethod
    def execute(cls, lora_name: str) -> io.NodeOutput:
        return io.NodeOutput(to_tensors(read_lora(files.lora_path(lora_name))))


NODES = [DCOLoadLoRA]
