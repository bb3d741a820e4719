"""The options of `python -m dco_core train`."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..models.loading import PRECISIONS
from ..network.lora_layers import LAYERS, AdapterConfig
from ..network.weight_stream import STREAMING
from ..pipeline.examples import SIZES
from ..pipeline.generation import GenerationConfig
from ..pipeline.vocabulary import LEARNED_TOKENS
from ..training.config import OBJECTIVE_NAMES, REDUCTIONS, WEIGHTINGS, TrainingConfig
from ..training.optimizers import LR_SCHEDULERS, OPTIMIZERS
from ..training.reference_ahead import OFF
from .config_file import Several

_HELP = {
    "steps": "training steps",
    "batch_size": "pictures in a batch",
    "learning_rate": "of the LoRA",
    "reduction": f"of a batch's gates: {' or '.join(REDUCTIONS)}",
    "offset_noise": "strength of noise that is the same all over a picture; the paper has 0.1 for a style",
    "weight_decay": "of the optimizer",
    "max_grad_norm": "largest norm of the gradient",
    "gradient_accumulation_steps": "batches in a step, of each process",
    "weighting": f"of timesteps: {' or '.join(WEIGHTINGS)}; auto: epsilon for dco, uniform elsewhere",
    "snr_gamma": "of min-snr",
    "caption_dropout": "share of steps with the empty caption",
    "target_gate": "share of full rate that a beta found on the images aims at",
    "prior_weight": "of class images, for dreambooth-prior",
    "preservation_weight": "of output-preservation and of --preservation-prompts",
    "mask_prior": "how strongly what is outside of the pictures' masks is held to the base model; 0: it is free. "
    "Beside DCO, 1 is little: 500 (beta*T/2) holds as strongly as an open gate learns",
    "preservation_prompts": "prompts on which the LoRA is held to the base model, between semicolons: your own, blank, "
    "class (--class-prompt), or bundled (forty everyday ones); left out: none",
    "preservation_share": "of the batches that have one",
    "mapo_beta": "weight of the margin, for mapo",
    "mapo_snr": "scale of the margin, for mapo",
    "optimizer": f"{', '.join(OPTIMIZERS)} (the last two need the packages bitsandbytes and prodigyopt);",
    "lr_scheduler": f"of the learning rate: {', '.join(LR_SCHEDULERS)}",
    "lr_warmup_steps": "steps in which the learning rate grows from 0",
    "ema_decay": "decay of a moving average of the LoRA, which is saved in its place; 0 is none",
    "validation_steps": "score on validation draws after this many steps; 0: never",
    "rank": "of the LoRA; the paper has 32 for a subject, 64 for a style",
    "name_filter": "a regular expression that names of modules must match too; left out: all",
    "dropout": "of the LoRA's input",
    "beta": "how strongly to stay close to the base model; left out: automatic",
    "automatic_beta": "paper: 1 for errors of the noise, found on the images for others; images: always found",
    "seed": "seed of the LoRA's start, the noise, the timesteps and the order of the images",
    "objective": ", ".join(OBJECTIVE_NAMES),
    "class_prompt": "of the subject's class, such as \"a photo of a dog\"; left out: from the captions' marker",
    "class_images": "how many the base model makes first, for the objectives with prior, without --class-data",
    "rejected_images": "how many the base model makes of every caption first, for mapo",
    "generation_steps": "sampling steps of these images",
    "generation_w_text": "text guidance of these images; left out: the model's own",
    "look_ahead": "batches that the base model looks at in one call; 1 is one a step, 0 automatic",
    "keep": "which adapter to save: last, or best (by --validation-steps)",
    "layers": ", ".join(f'"{name}"' for name in LAYERS) + ", or a regular expression on module names",
    "timestep_sampling": "which noise levels: uniform (the paper), logit-normal, for flow models also sigmoid or "
    "shifted by size as the family samples, or family: what its trainers use",
    "alpha": "LoRA alpha; left out: the same as rank",
}


def add_options(train: argparse.ArgumentParser) -> None:
    """All of them; those that a command cannot do without are None until they are given."""
    needed = train.add_argument_group("what")
    needed.add_argument(
        "--config", type=Path, default=None, metavar="FILE.toml",
        help="options in a TOML file, such as FILE.safetensors.toml, which every run writes; those on the command line "
        "win over it",
    )  # fmt: skip
    needed.add_argument(
        "--model", default=None,
        help="toy-world; diffusers:FOLDER for SD1.5 and SDXL on disk; checkpoint:FILE or unet:FILE for every model "
        "that the trainer node trains, where COMFYUI_PATH names a ComfyUI",
    )
    needed.add_argument(
        "--clip", action=Several, default=[], metavar="FILE",
        help="text encoder of a checkpoint: or unet: that has none; may be given several times",
    )  # fmt: skip
    needed.add_argument(
        "--clip-type", default="", metavar="TYPE", help="what ComfyUI's CLIP loaders call it, such as flux or sd3"
    )
    needed.add_argument("--vae", default="", metavar="FILE", help="VAE of a checkpoint: or unet: that has none")
    needed.add_argument("--data", type=Path, default=None, help="folder of pictures with .txt captions")
    needed.add_argument("--output", type=Path, default=None, help="the LoRA file to write, FILE.safetensors")
    needed.add_argument(
        "--overwrite", action="store_true", help="replace --output even where it is another run's or another file"
    )
    how = train.add_argument_group("how")
    how.add_argument("--resolution", type=int, help="in pixels; left out: the model's own")
    how.add_argument(
        "--size-conditioning", choices=SIZES, default=SIZES[0],
        help="what SDXL is told about size and crop: the real ones (default), or fixed: (resolution, resolution, 0, 0, "
        "resolution, resolution), as in the authors' code",
    )  # fmt: skip
    how.add_argument("--square", action="store_true", help="centred squares instead of aspect-ratio buckets")
    how.add_argument("--device", default=None, help="cuda or cpu; left out: the GPU if there is one")
    how.add_argument(
        "--precision", choices=PRECISIONS, default=None,
        help="of the model's weights; left out: fp32, and of checkpoint: and unet: what ComfyUI chooses",
    )  # fmt: skip
    how.add_argument("--threads", type=int, default=None, help="CPU threads; left out: torch's choice")
    how.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory, a third more time for a step"
    )
    how.add_argument(
        "--stream-weights", choices=STREAMING, default=STREAMING[0],
        help="keep the model's weights in main memory and copy each block to the GPU just before it is needed: auto "
        "(default) where the model does not fit beside a step, on for every block, off for none; the LoRA is the same, "
        "bit for bit",
    )  # fmt: skip
    how.add_argument(
        "--reference-device", default=OFF, metavar="DEVICE",
        help="where the base model looks ahead while the LoRA trains: off (default), where it trains; auto, on another "
        "GPU of the same kind where there is one with room; or a device such as cuda:1",
    )  # fmt: skip
    how.add_argument("--compile", action="store_true", help="torch.compile: for a GPU, needs a compiler")
    how.add_argument("--log-dir", type=Path, default=None, help="write a TensorBoard log into this folder")
    how.add_argument(
        "--preview-every", type=int, default=0, metavar="K",
        help="write pictures of the model into FILE.safetensors.previews after K steps and in the end: base model, "
        "trained, and reward guidance, from the same noise; 0: none",
    )  # fmt: skip
    how.add_argument(
        "--preview-prompt", action=Several, default=[], metavar="TEXT",
        help="what to preview; may be given several times; left out: the first caption",
    )  # fmt: skip
    keep = train.add_argument_group("checkpoints, in FILE.safetensors.checkpoints")
    keep.add_argument(
        "--checkpoint-every", type=int, default=100, metavar="K", help="steps; 0: only at the end"
    )
    keep.add_argument("--checkpoint-minutes", type=float, default=10.0, metavar="M", help="minutes; 0: never")
    keep.add_argument(
        "--reference-cache", action=argparse.BooleanOptionalAction, default=True,
        help="keep what the base model makes of the draws in dco_reference_cache beside FILE.safetensors: a further "
        "run with another beta, rank, learning rate or number of steps then costs plain steps, and ends with the same "
        "file as without (on)",
    )  # fmt: skip
    lora = train.add_argument_group("LoRA")
    lora.add_argument(
        "--start-from", type=Path, default=None, metavar="FILE.safetensors",
        help="a LoRA file to go on from: its layers, ranks and alphas stay as they are, in the place of the choices "
        "below, and so do its learned tokens",
    )  # fmt: skip
    _add_fields(lora, AdapterConfig, skip=("seed", "start"))
    recipe = train.add_argument_group("training")
    _add_fields(recipe, TrainingConfig, skip=("token_learning_rate",), beta=None)
    tokens = train.add_argument_group("learned tokens: what <dog> in the captions means")
    tokens.add_argument(
        "--learned-tokens", choices=LEARNED_TOKENS, default=LEARNED_TOKENS[0],
        help="off: <dog> is read as the word dog (default); with-lora: a new token trains with the LoRA, as in the "
        "paper for subjects; alone: the token trains without a LoRA (Textual Inversion)",
    )  # fmt: skip
    tokens.add_argument(
        "--token-learning-rate", "--token-lr", type=float, default=None,
        help=f"of the tokens ({TrainingConfig.token_learning_rate:g}, the paper's; the authors' code has 5e-6)",
    )  # fmt: skip
    tokens.add_argument(
        "--initializer", action=Several, default=[], metavar="LINE",
        help='what a marker starts from where it is not its own words, such as "<my_dog> = dog", or "<my_dog> = dog, 2"'
        " with two vectors; may be given several times",
    )  # fmt: skip
    tokens.add_argument(
        "--vectors", type=int, default=0, help="vectors per token; 0: as many as the initializer has (0)"
    )
    made = train.add_argument_group("images by the base model, for baselines that need them")
    made.add_argument(
        "--class-data", type=Path, default=None, help="folder of class images, for the objectives with prior"
    )
    _add_fields(made, GenerationConfig)


def _add_fields(group: Any, config: type, skip: Sequence[str] = (), **defaults: Any) -> None:
    """One option for each field of a configuration, so that none is forgotten."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):
            (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
        default = defaults.get(field.name, field.default)
        text = _HELP.get(field.name, "")
        shown = "" if default is None or "left out" in text else f" ({default})"
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            default=default,
            help=(text + shown).strip() or None,
        )
