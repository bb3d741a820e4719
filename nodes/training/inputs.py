"""The inputs and outputs of the DCO LoRA Trainer."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import choices, recipes
from .option_groups import GROUPS

OPTIONS = io.Custom("DCO_TRAINING_OPTIONS")


def own() -> list[Any]:
    """The trainer's own, in a permanent order: saved workflows keep values by position."""
    return [
        io.Model.Input("model", tooltip="The base model. It is not changed and not copied."),
        io.Clip.Input(
            "clip", tooltip="Its text encoder; the captions are encoded once, unless tokens train.",
        ),
        io.Vae.Input("vae", tooltip="Its VAE; the images are encoded once."),
        io.Image.Input("images", tooltip="Reference images: a batch, or the list of a dataset node."),
        io.String.Input(
            "captions", multiline=True, default="",
            tooltip="One caption per line and image, or the list of a dataset node. Describe everything: "
            "subject, background, view, style. Write the subject as <dog>.",
        ),
        recipes.recipe(),
        io.Int.Input(
            "steps", default=recipes.RECIPES[recipes.DEFAULT].steps, min=1, max=100000,
            tooltip="Training steps. The paper: up to 2000 for a subject, 1000 for a style or a single image.",
        ),
        io.Int.Input(
            "rank", default=recipes.RECIPES[recipes.DEFAULT].rank, min=1, max=1024,
            tooltip="Rank of the LoRA. The paper: 32 for a subject, 64 for a style.",
        ),
        choices.objectives(),
        io.Int.Input(
            "resolution", default=0, min=0, max=4096, step=8,
            tooltip="Images are resized to about this many pixels squared. 0: the model's own, such as 1024 for SDXL "
            "and 512 for SD1.5.",
        ),
        io.String.Input(
            "name", default="my_subject",
            tooltip="Name of the LoRA file in output/loras; a number is added. A folder may stand before it: dogs/rex.",
        ),
        OPTIONS.Input(
            "options", optional=True,
            tooltip="All else, from options nodes one after the other: DCO Training, LoRA, Data and Run Options.",
        ),
    ]  # fmt: skip


def outputs() -> list[Any]:
    return [
        io.LoraModel.Output(display_name="lora", tooltip="The LoRA, for guidance, merging or core nodes."),
        io.LossMap.Output(display_name="loss", tooltip="Loss of every step, for Plot Loss Graph."),
        io.Image.Output(display_name="plot", tooltip="Loss, margin and gate over the steps."),
        io.String.Output(
            display_name="report",
            tooltip="What was trained and where it was saved, and what to mend in the captions.",
        ),
        io.Image.Output(
            display_name="previews",
            tooltip="One sheet for every preview, the last through the VAE. Nothing where previews are off.",
        ),
    ]


def defaults() -> dict[str, Any]:
    """The values of inputs that a prompt leaves out, of the trainer and of its options nodes."""
    every = [*own(), *(entry for group in GROUPS.values() for entry in group())]
    return {i.id: i.default for i in every if hasattr(i, "default")}
