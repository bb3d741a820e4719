"""The trainer's options nodes, in any order and number on its one socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from ..options import Face, OptionsNode
from . import option_groups
from .inputs import OPTIONS


def _face(
    node_id: str, display_name: str, inputs: Callable[[], list[Any]], description: str, *search_aliases: str
) -> Face:
    return Face(
        node_id, display_name, OPTIONS, inputs, description, search_aliases, "model/training", "the DCO LoRA Trainer"
    )


class DCOTrainingOptions(OptionsNode):
    FACE = _face(
        "DCOTrainingOptions", "DCO Training Options", option_groups.training,
        "How the DCO LoRA Trainer trains: seed, batch size, optimizer, weighting of the noise levels, "
        "validation.",
        "seed", "batch size", "optimizer", "scheduler", "validation",
    )  # fmt: skip


class DCOLoRAOptions(OptionsNode):
    FACE = _face(
        "DCOLoRAOptions", "DCO LoRA Options", option_groups.lora,
        "What the DCO LoRA Trainer trains: layers, alpha, dropout, learned tokens, and a LoRA to go on from.",
        "learned token", "alpha", "layers", "continue training",
    )  # fmt: skip


class DCODataOptions(OptionsNode):
    FACE = _face(
        "DCODataOptions", "DCO Data Options", option_groups.data,
        "What the DCO LoRA Trainer learns from beside images and captions: masks, class images, how "
        "pictures are fitted, dropped captions.",
        "masks", "class images", "regularization images", "buckets", "crop",
    )  # fmt: skip

    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = super().define_schema()
        schema.is_input_list = True  # masks and class images come as lists of a dataset node
        return schema

    @classmethod
    def execute(cls, options=None, masks=None, class_images=None, **single) -> io.NodeOutput:
        values = {name: value[0] for name, value in single.items() if value}
        values |= {name: lists for name, lists in (("masks", masks), ("class_images", class_images)) if lists}
        return super().execute(options[0] if options else None, **values)


class DCORunOptions(OptionsNode):
    FACE = _face(
        "DCORunOptions", "DCO Run Options", option_groups.run,
        "A run of the DCO LoRA Trainer: previews, checkpoints to go on from, memory, speed and logs.",
        "preview", "resume", "checkpoint", "memory", "tensorboard",
    )  # fmt: skip


NODES = [DCOTrainingOptions, DCOLoRAOptions, DCODataOptions, DCORunOptions]
