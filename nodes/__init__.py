"""The nodes of ComfyUI-DCO: thin V3 nodes over dco_core and the host door."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import guidance, lora_files, merge, toy_world, trainer

NODES = [*trainer.NODES, *guidance.NODES, *merge.NODES, *lora_files.NODES, *toy_world.NODES]


class DCOExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> DCOExtension:
    return DCOExtension()
