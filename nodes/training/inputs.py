"""The inputs and outputs of the DCO LoRA Trainer."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...dco_core.network.lora_layers import LAYERS
from ...dco_core.training.config import AUTOMATIC_BETA, KEPT
from ...dco_core.training.optimizers import LR_SCHEDULERS, OPTIMIZERS
from ..host.training.network import TRAINING_PRECISIONS
from . import choices

CHECKPOINTING = ("auto", "on", "off")
BUCKETS, SQUARE = "aspect buckets", "square"
REAL_SIZES, FIXED_SIZES = "real", "fixed (as the authors)"


def inputs() -> list[Any]:
    """In a permanent order: saved workflows keep values by position. New ones go last and are optional."""
    return [
        io.Model.Input("model", tooltip="The base model. It is not changed and not copied."),
        io.Clip.Input(
            "clip", tooltip="Its text encoder; the captions are encoded once, unless tokens train."
        ),
        io.Vae.Input("vae", tooltip="Its VAE; the images are encoded once."),
        io.Image.Input("images", tooltip="Reference images: a batch, or the list of a dataset node."),
        io.String.Input(
            "captions",
            multiline=True,
            default="",
            tooltip="One caption per line and image, or the list of a dataset node. Describe everything: "
            "subject, background, view, style. Write the subject as <dog>.",
        ),
        io.Int.Input(
            "steps",
            default=1000,
            min=1,
            max=100000,
            tooltip="Training steps. The paper: up to 2000 for a subject, 1000 for a style or a single image.",
        ),
        io.Float.Input(
            "learning_rate",
            default=5e-5,
            min=1e-7,
            max=1.0,
            step=1e-6,
            round=1e-7,
            tooltip="Learning rate of AdamW; the paper uses 5e-5.",
        ),
        io.Int.Input(
            "rank",
            default=32,
            min=1,
            max=1024,
            tooltip="Rank of the LoRA. The paper: 32 for a subject, 64 for a style.",
        ),
        io.DynamicCombo.Input(
            "objective",
            options=choices.objectives(),
            tooltip="DCO: Direct Consistency Optimization. The others are baselines to compare with.",
        ),
        io.Int.Input(
            "resolution",
            default=1024,
            min=64,
            max=4096,
            step=8,
            tooltip="Images are resized to about this many pixels squared. "
            "1024 for SDXL, 512 for SD1.5, 256 for the Toy World.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=False,
            tooltip="Seed of the LoRA's start, the noise, the timesteps and the order of the images.",
        ),
        io.String.Input(
            "filename_prefix",
            default="loras/dco",
            tooltip="Where in the output folder the LoRA is saved; a number is added.",
        ),
        io.Int.Input(
            "batch_size",
            default=1,
            min=1,
            max=64,
            advanced=True,
            tooltip="Images per step; the paper uses 1.",
        ),
        io.Float.Input(
            "offset_noise",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Adds a constant per channel to the noise; the authors use 0.1 for styles.",
        ),
        io.Float.Input(
            "alpha",
            default=0.0,
            min=0.0,
            max=1024.0,
            advanced=True,
            tooltip="LoRA alpha: dW is scaled by alpha / rank. 0 means the same as rank, as in the paper.",
        ),
        io.Combo.Input(
            "layers",
            options=list(LAYERS),
            default="attention",
            advanced=True,
            tooltip="Which layers get a LoRA. The paper adapts the attention projections; keys and values are Custom "
            "Diffusion's choice, convolutions make it a LoCon.",
        ),
        io.DynamicCombo.Input(
            "learned_tokens",
            options=choices.tokens(),
            optional=True,
            tooltip="Learn what <dog> means as a new token of the text encoder, from the word dog: with the LoRA (the "
            "paper, for subjects), or alone. Needs CLIP text encoders (SD1.5, SDXL) or the Toy World.",
        ),
        io.MultiType.Input(
            "masks",
            types=[io.Mask, io.Image],
            optional=True,
            tooltip="Where an image counts, in white: one mask an image, or one for all.",
        ),
        io.Image.Input(
            "class_images",
            optional=True,
            tooltip="For prior preservation: images of the subject's class, say of other dogs.",
        ),
        io.LoraModel.Input(
            "start_from",
            optional=True,
            tooltip="A LoRA to go on from. Its layers, ranks and alphas stay as they are.",
        ),
        io.Combo.Input(
            "crop",
            options=[BUCKETS, SQUARE],
            default=BUCKETS,
            optional=True,
            advanced=True,
            tooltip="aspect buckets keep the shape of each picture, about resolution x resolution in area; square cuts "
            "the centre out.",
        ),
        io.Combo.Input(
            "size_conditioning",
            options=[REAL_SIZES, FIXED_SIZES],
            default=REAL_SIZES,
            optional=True,
            advanced=True,
            tooltip="What SDXL is told about size and crop: the real ones, or the resolution whatever the picture, "
            "as in the authors' code.",
        ),
        io.Float.Input(
            "caption_dropout",
            default=0.0,
            min=0.0,
            max=0.99,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="How often the caption is left empty.",
        ),
        io.Float.Input(
            "dropout",
            default=0.0,
            min=0.0,
            max=0.99,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="Dropout inside the LoRA.",
        ),
        io.Int.Input(
            "gradient_accumulation_steps",
            default=1,
            min=1,
            max=256,
            optional=True,
            advanced=True,
            tooltip="Batches per step: gradients are added up before the weights move.",
        ),
        io.String.Input(
            "layer_filter",
            default="",
            optional=True,
            advanced=True,
            tooltip="A regular expression that the names of the layers must match too, such as output_blocks. "
            "Empty: all of them.",
        ),
        io.Boolean.Input(
            "resume",
            default=True,
            optional=True,
            advanced=True,
            tooltip="Keep checkpoints in output/dco_checkpoints, and go on from them: the same run, stopped at any "
            "moment, ends as if it had never stopped.",
        ),
        io.Int.Input(
            "checkpoint_every",
            default=100,
            min=0,
            max=100000,
            optional=True,
            advanced=True,
            tooltip="Steps between checkpoints; 0: by the clock alone. Two of a run are kept.",
        ),
        io.Float.Input(
            "checkpoint_minutes",
            default=5.0,
            min=0.0,
            max=1440.0,
            step=1.0,
            optional=True,
            advanced=True,
            tooltip="Also a checkpoint after this many minutes; 0: never.",
        ),
        io.Combo.Input(
            "optimizer",
            options=list(OPTIMIZERS),
            default="adamw",
            optional=True,
            advanced=True,
            tooltip="adamw is the authors'. adamw-8bit needs the package bitsandbytes, prodigy needs prodigyopt (set "
            "the learning rate to 1).",
        ),
        io.Combo.Input(
            "lr_scheduler",
            options=list(LR_SCHEDULERS),
            default="constant",
            optional=True,
            advanced=True,
            tooltip="The learning rate over the run: constant (the authors), or down to 0.",
        ),
        io.Int.Input(
            "lr_warmup_steps",
            default=0,
            min=0,
            max=100000,
            optional=True,
            advanced=True,
            tooltip="Steps in which the learning rate rises to its value.",
        ),
        io.Float.Input(
            "ema_decay",
            default=0.0,
            min=0.0,
            max=0.9999,
            step=0.001,
            round=0.0001,
            optional=True,
            advanced=True,
            tooltip="Decay of a moving average of the LoRA, which then is the result; 0: none.",
        ),
        io.Int.Input(
            "validation_steps",
            default=100,
            min=0,
            max=100000,
            optional=True,
            advanced=True,
            tooltip="Score the LoRA on validation noise after this many steps: how far it is ahead of the base model, "
            "and how far from it. 0: never.",
        ),
        io.Combo.Input(
            "keep",
            options=list(KEPT),
            default="last",
            optional=True,
            advanced=True,
            tooltip="Which LoRA is the result: the last, or the one that scored best.",
        ),
        io.Int.Input(
            "look_ahead",
            default=0,
            min=0,
            max=64,
            optional=True,
            advanced=True,
            tooltip="Steps for which the base model is asked in one call: DCO then costs little more than plain "
            "training. 0: as many as there is room for; 1: one a step.",
        ),
        io.Combo.Input(
            "gradient_checkpointing",
            options=list(CHECKPOINTING),
            default="auto",
            optional=True,
            advanced=True,
            tooltip="Computes the network's blocks again in the backward pass instead of keeping what they computed: "
            "a third slower, much less memory. auto: where a step would not fit otherwise.",
        ),
        io.Combo.Input(
            "precision",
            options=list(TRAINING_PRECISIONS),
            default="auto",
            optional=True,
            advanced=True,
            tooltip="What the network computes in. auto: bf16 where the model is half precision and the GPU can; the "
            "LoRA itself is always fp32.",
        ),
        io.Int.Input(
            "preview_every",
            default=0,
            min=0,
            max=100000,
            optional=True,
            tooltip="Show what the model makes, after this many steps and in the end: base model, trained, and reward "
            "guidance, from the same noise each time. Training is not changed by it; every showing costs about 100 "
            "evaluations of the model a prompt. 0: off.",
        ),
        io.String.Input(
            "preview_prompts",
            default="",
            multiline=True,
            optional=True,
            tooltip="What to preview, one prompt a line, such as: a photo of a <dog> on the beach. Empty: the first "
            "caption.",
        ),
        io.Boolean.Input(
            "compile",
            default=False,
            optional=True,
            advanced=True,
            tooltip="torch.compile the network's blocks: faster steps on a GPU, after a first one that takes minutes. "
            "Needs a compiler on your machine.",
        ),
        io.Boolean.Input(
            "tensorboard",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Write the curves to output/dco_logs for TensorBoard. Needs the package tensorboard.",
        ),
        io.Combo.Input(
            "automatic_beta",
            options=list(AUTOMATIC_BETA),
            default="paper",
            optional=True,
            advanced=True,
            tooltip="Where beta is 0. paper: 1 for SD1.5 and SDXL, found on your images for v and flow models. images: "
            "always found on your images, aiming at target_gate.",
        ),
    ]


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
            tooltip="One sheet for every preview, the last through the VAE. Nothing without preview_every.",
        ),
    ]


def defaults() -> dict[str, Any]:
    """The values of inputs that a prompt leaves out."""
    return {i.id: i.default for i in inputs() if hasattr(i, "default")}
