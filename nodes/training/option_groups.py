"""What the trainer leaves to its options nodes, grouped as a person thinks. New inputs go last in their group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from comfy_api.latest import io

from ...dco_core.losses import REDUCTIONS, WEIGHTINGS
from ...dco_core.network.lora_layers import LAYERS
from ...dco_core.network.weight_stream import STREAMING
from ...dco_core.training.config import AUTO_WEIGHTING, KEPT, TIMESTEP_SAMPLINGS
from ...dco_core.training.optimizers import LR_SCHEDULERS, OPTIMIZERS
from ...dco_core.training.reference_ahead import AUTO, OFF
from ..host.training.network import TRAINING_PRECISIONS
from . import choices

OFFLOADED = "on, offloaded"
CHECKPOINTING = ("auto", "on", OFFLOADED, "off")
BUCKETS, SQUARE = "aspect buckets", "square"
_DEVICES = ("cuda:0", "cuda:1", "cuda:2", "cuda:3", "cpu")
REAL_SIZES, FIXED_SIZES = "real", "fixed (as the authors)"


def training() -> list[Any]:
    """How it is trained."""
    return [
        io.Int.Input(
            "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, optional=True,
            tooltip="Seed of the LoRA's start, the noise, the timesteps and the order of the images.",
        ),
        io.Int.Input(
            "batch_size", default=1, min=1, max=64, optional=True,
            tooltip="Images per step; the paper uses 1.",
        ),
        io.Int.Input(
            "gradient_accumulation_steps", default=1, min=1, max=256, optional=True,
            tooltip="Batches per step: gradients are added up before the weights move.",
        ),
        io.Combo.Input(
            "optimizer", options=list(OPTIMIZERS), default="adamw", optional=True,
            tooltip="adamw is the authors'. adamw-8bit needs the package bitsandbytes, prodigy needs prodigyopt (set "
            "the learning rate to 1).",
        ),
        io.Combo.Input(
            "lr_scheduler", options=list(LR_SCHEDULERS), default="constant", optional=True,
            tooltip="The learning rate over the run: constant (the authors), or down to 0.",
        ),
        io.Int.Input(
            "lr_warmup_steps", default=0, min=0, max=100000, optional=True,
            tooltip="Steps in which the learning rate rises to its value.",
        ),
        io.Combo.Input(
            "weighting", options=[AUTO_WEIGHTING, *WEIGHTINGS], default=AUTO_WEIGHTING, optional=True,
            tooltip="w(t), the weight of the noise levels. uniform: the model's own errors, all alike; epsilon: errors "
            "of the noise, as in the paper, also for v and flow models, and the same as uniform for SD1.5 and SDXL; "
            "min-snr (gamma 5): almost clean images count less (not of class images, as in the authors' code). auto: "
            "epsilon for DCO, uniform for the other objectives and where beta is found on your images.",
        ),
        io.Combo.Input(
            "reduction", options=list(REDUCTIONS), default="per-sample", optional=True,
            tooltip="With batches: one gate per sample (the paper) or one for the batch (the authors' code).",
        ),
        io.Float.Input(
            "ema_decay", default=0.0, min=0.0, max=0.9999, step=0.001, round=0.0001, optional=True,
            tooltip="Decay of a moving average of the LoRA, which then is the result; 0: none.",
        ),
        io.Int.Input(
            "validation_steps", default=100, min=0, max=100000, optional=True,
            tooltip="Score the LoRA on validation noise after this many steps: how far it is ahead of the base model, "
            "and how far from it. 0: never.",
        ),
        io.Combo.Input(
            "keep", options=list(KEPT), default="last", optional=True,
            tooltip="Which LoRA is the result: the last, or the one that scored best.",
        ),
        io.Combo.Input(
            "timestep_sampling", options=list(TIMESTEP_SAMPLINGS), default="uniform", optional=True,
            tooltip="Which noise levels are drawn. uniform: all alike (the paper); logit-normal: the middle more "
            "often; for flow models also sigmoid, and shifted by the image's size as the family samples; family: what "
            "its trainers use.",
        ),
        choices.preservation(),
    ]  # fmt: skip


def lora() -> list[Any]:
    """What is trained."""
    return [
        io.LoraModel.Input(
            "start_from", optional=True,
            tooltip="A LoRA to go on from. Its layers, ranks and alphas stay as they are.",
        ),
        io.Combo.Input(
            "layers", options=list(LAYERS), default="attention", optional=True,
            tooltip="Which layers get a LoRA. The paper adapts the attention projections; keys and values are Custom "
            "Diffusion's choice, convolutions make it a LoCon.",
        ),
        io.String.Input(
            "layer_filter", default="", optional=True,
            tooltip="A regular expression that the names of the layers must match too, such as output_blocks. "
            "Empty: all of them.",
        ),
        io.Float.Input(
            "alpha", default=0.0, min=0.0, max=1024.0, optional=True,
            tooltip="LoRA alpha: dW is scaled by alpha / rank. 0 means the same as rank, as in the paper.",
        ),
        io.Float.Input(
            "dropout", default=0.0, min=0.0, max=0.99, step=0.01, optional=True,
            tooltip="Dropout inside the LoRA.",
        ),
        choices.tokens(),
    ]  # fmt: skip


def data() -> list[Any]:
    """What it learns from."""
    return [
        io.MultiType.Input(
            "masks", types=[io.Mask, io.Image], optional=True,
            tooltip="Where an image counts, in white: one mask an image, or one for all.",
        ),
        io.Image.Input(
            "class_images", optional=True,
            tooltip="For prior preservation: images of the subject's class, say of other dogs.",
        ),
        io.Combo.Input(
            "crop", options=[BUCKETS, SQUARE], default=BUCKETS, optional=True,
            tooltip="aspect buckets keep the shape of each picture, about resolution x resolution in area; square cuts "
            "the centre out.",
        ),
        io.Combo.Input(
            "size_conditioning", options=[REAL_SIZES, FIXED_SIZES], default=REAL_SIZES, optional=True,
            tooltip="What SDXL is told about size and crop: the real ones, or the resolution whatever the picture, "
            "as in the authors' code.",
        ),
        io.Float.Input(
            "caption_dropout", default=0.0, min=0.0, max=0.99, step=0.01, optional=True,
            tooltip="How often the caption is left empty.",
        ),
        io.Float.Input(
            "mask_prior", default=0.0, min=0.0, max=100000.0, step=1.0, round=0.001, optional=True,
            tooltip="How strongly the LoRA is held to the base model outside of the masks, so that the background is "
            "not learned and does not drift. 0: it is free there. Try small weights: 500 (beta*T/2), "
            "as strong as DCO's open gate at beta 1, left too little of the subject in a study; 1 with DreamBooth cost "
            "nothing.",
        ),
    ]  # fmt: skip


def run() -> list[Any]:
    """What is seen of a run, how it can stop, and what it takes."""
    return [
        choices.previews(),
        io.String.Input(
            "preview_prompts", default="", multiline=True, optional=True,
            tooltip="What to preview, one prompt a line, such as: a photo of a <dog> on the beach. Empty: the first "
            "caption.",
        ),
        io.Boolean.Input(
            "resume", default=True, optional=True,
            tooltip="Keep checkpoints in output/dco_checkpoints, and go on from them: the same run, stopped at any "
            "moment, ends as if it had never stopped.",
        ),
        io.Int.Input(
            "checkpoint_every", default=100, min=0, max=100000, optional=True,
            tooltip="Steps between checkpoints; 0: by the clock alone. Two of a run are kept.",
        ),
        io.Float.Input(
            "checkpoint_minutes", default=5.0, min=0.0, max=1440.0, step=1.0, optional=True,
            tooltip="Also a checkpoint after this many minutes; 0: never.",
        ),
        io.Int.Input(
            "look_ahead", default=0, min=0, max=64, optional=True,
            tooltip="Steps for which the base model is asked in one call: DCO then costs little more than plain "
            "training. 0: as many as there is room for; 1: one a step.",
        ),
        io.Combo.Input(
            "gradient_checkpointing", options=list(CHECKPOINTING), default="auto", optional=True,
            tooltip="Computes the network's blocks again in the backward pass instead of keeping what they computed: "
            "a third slower, much less memory. auto: where a step would not fit otherwise. offloaded: what is kept of "
            "each block waits in main memory, for large pictures.",
        ),
        io.Combo.Input(
            "precision", options=list(TRAINING_PRECISIONS), default="auto", optional=True,
            tooltip="What the network computes in. auto: bf16 where the model is half precision and the GPU can; the "
            "LoRA itself is always fp32.",
        ),
        io.Boolean.Input(
            "compile", default=False, optional=True,
            tooltip="torch.compile the network's blocks: faster steps on a GPU, after a first one that takes minutes. "
            "Needs a compiler on your machine.",
        ),
        io.Boolean.Input(
            "tensorboard", default=False, optional=True,
            tooltip="Write the curves to output/dco_logs for TensorBoard. Needs the package tensorboard.",
        ),
        io.Combo.Input(
            "stream_weights", options=list(STREAMING), default="auto", optional=True,
            tooltip="Keep the model's weights in main memory and copy each block to the GPU just before it is needed. "
            "auto: where the model does not fit beside a training step; on: always, with three blocks on the GPU at "
            "once. The LoRA is the same, bit for bit.",
        ),
        io.Boolean.Input(
            "reference_cache", default=True, optional=True,
            tooltip="Keep the base model's errors in output/dco_reference_cache: another run on the same images and "
            "seed, with another beta, rank, learning rate or number of steps, then costs what plain training costs. "
            "The LoRA is the same with and without.",
        ),
        io.Combo.Input(
            "reference_device", options=[OFF, AUTO, *_DEVICES], default=OFF, optional=True,
            tooltip="Where the base model looks ahead while the LoRA trains. off: on the same GPU; auto: on another "
            "one of the same kind, where there is one with room for the model; or the device you name. The LoRA is "
            "the same.",
        ),
    ]  # fmt: skip


GROUPS: Mapping[str, Callable[[], list[Any]]] = {"training": training, "lora": lora, "data": data, "run": run}
