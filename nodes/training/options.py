"""The trainer's options nodes, in any order and number on its one socket."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .. import options
from . import option_groups
from .inputs import OPTIONS


def _schema(node_id: str, display_name: str, inputs: list[Any], description: str, *aliases: str) -> io.Schema:
    return options.schema(
        node_id, display_name, OPTIONS, inputs, category="model/training", description=description,
        search_aliases=list(aliases), for_node="the DCO LoRA Trainer",
    )  # fmt: skip


class DCOTrainingOptions(options.OptionsNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "DCOTrainingOptions",
            "DCO Training Options",
            option_groups.training(),
            "How the DCO LoRA Trainer trains: seed, batch size, optimizer, weighting of the noise levels, validation.",
            "seed",
            "batch size",
            "optimizer",
            "scheduler",
            "validation",
        )


class DCOLoRAOptions(options.OptionsNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "DCOLoRAOptions",
            "DCO LoRA Options",
            option_groups.lora(),
            "What the DCO LoRA Trainer trains: layers, alpha, dropout, learned tokens, and a LoRA to go on from.",
            "learned token",
            "alpha",
            "layers",
            "continue training",
        )


class DCODataOptions(options.OptionsNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = _schema(
            "DCODataOptions",
            "DCO Data Options",
            option_groups.data(),
            "What the DCO LoRA Trainer learns from beside images and captions: masks, class images, how pictures are "
            "fitted, dropped captions.",
            "masks",
            "class images",
            "regularization images",
            "buckets",
            "crop",
        )
        schema.is_input_list = True  # masks and class images come as lists of a dataset node
        return schema

    @classmethod
    def execute(cls, options=None, masks=None, class_images=None, **single) -> io.NodeOutput:
        lists = {"masks": masks, "class_images": class_images}
        values = {name: value[0] for name, value in single.items() if value}
        return super().execute(
            options[0] if options else None,
            **values,
            **{name: value for name, value in lists.items() if value},
        )


class DCORunOptions(options.OptionsNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "DCORunOptions",
            "DCO Run Options",
            option_groups.run(),
            "A run of the DCO LoRA Trainer: previews, checkpoints to go on from, memory, speed and logs.",
            "preview",
            "resume",
            "checkpoint",
            "memory",
            "tensorboard",
        )


NODES = [DCOTrainingOptions, DCOLoRAOptions, DCODataOptions, DCORunOptions]
