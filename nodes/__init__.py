"""The nodes of ComfyUI-DCO: thin V3 nodes over dco_core and the host door."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    captions,
    dataset,
    evidence,
    guidance,
    lora_files,
    merge,
    prompts,
    scores,
    sweep,
    toy_world,
    trainer,
)

NODES = [
    node
    for module in (
        trainer,
        guidance,
        sweep,
        merge,
        prompts,
        captions,
        dataset,
        lora_files,
        toy_world,
        scores,
        evidence,
    )  # fmt: skip
    for node in module.NODES
]


class DCOExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> DCOExtension:
    return DCOExtension()
