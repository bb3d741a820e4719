"""The nodes of ComfyUI-DCO: thin V3 nodes over dco_core and nodes/host."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .evaluation import plots, scores
from .guidance import prompts, regions, reward_guidance, sweep
from .merging import lora_files, merge
from .training import captions, dataset, options, photos, toy_world, trainer

NODES = [
    node
    for module in (
        trainer,
        options,
        reward_guidance,
        sweep,
        regions,
        merge,
        prompts,
        captions,
        photos,
        dataset,
        lora_files,
        toy_world,
        scores,
        plots,
    )  # fmt: skip
    for node in module.NODES
]


class DCOExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> DCOExtension:
    return DCOExtension()
