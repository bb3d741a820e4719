"""`python -m dco_core`: training (here) and LoRA files (lora_commands.py) from the command line."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import signal
import sys
import time
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import DCOError, printable, printable_lines
from ..losses import REDUCTIONS, WEIGHTINGS
from ..models.loading import PRECISIONS, load_model, usable_device
from ..network.lora_layers import LAYERS, AdapterConfig
from ..pipeline.examples import SIZES
from ..pipeline.generation import GenerationConfig
from ..pipeline.pictures import FolderPictures
from ..pipeline.run import FolderTraining, check_replaceable, check_resolution, checkpoint_folder
from ..training import validation
from ..training.checkpoints import Checkpoints
from ..training.config import OBJECTIVE_NAMES, TrainingConfig
from ..training.optimizers import LR_SCHEDULERS, OPTIMIZERS, check_optimizer
from ..training.processes import Processes, joined
from ..training.step_report import StepReport
from ..training.tensorboard import EventLog, summary_writer
from . import evidence as evidence_command
from . import lora_files

_NO_TOKENS = ("token_learning_rate",)  # of learned tokens, which need the host's text encoders
_HELP = {
    "steps": "training steps",
    "batch_size": "pictures in a batch",
    "learning_rate": "of the LoRA",
    "reduction": f"of a batch's gates: {' or '.join(REDUCTIONS)}",
    "offset_noise": "strength of noise that is the same all over a picture; the paper has 0.1 for a style",
    "weight_decay": "of the optimizer",
    "max_grad_norm": "largest norm of the gradient",
    "gradient_accumulation_steps": "batches in a step, of each process",
    "weighting": f"of timesteps: {' or '.join(WEIGHTINGS)}",
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
    "automatic_beta": "paper: 1 for epsilon models, found on the images for others; images: always found",
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
    "alpha": "LoRA alpha; left out: the same as rank",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0 done, 1 an error, 130 stopped (the same command goes on)."""
    parser = _parser()
    values = vars(parser.parse_args(arguments))
    for stream in (sys.stdout, sys.stderr):  # a console that has no such character shows its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return values["run"](values)
    except DCOError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError:
        print(
            "error: The GPU has too little free memory: add --gradient-checkpointing, lower --resolution, --batch-size "
            "or --rank, or close other programs. The same command goes on from the last checkpoint.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(values["stopped"], file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dco_core", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a LoRA on a folder of pictures with captions",
        description="Train a LoRA on a folder of pictures with captions. Killed or stopped at any moment, the same "
        "command goes on from the newest checkpoint and ends with the same file.",
    )
    train.set_defaults(run=_train, stopped="Stopped. The same command goes on from the last checkpoint.")
    needed = train.add_argument_group("what")
    needed.add_argument(
        "--model", required=True, help="toy-world, or diffusers:FOLDER for SD1.5 and SDXL on disk"
    )
    needed.add_argument("--data", required=True, type=Path, help="folder of pictures with .txt captions")
    needed.add_argument("--output", required=True, type=Path, help="the LoRA file to write, FILE.safetensors")
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
        "--precision", choices=PRECISIONS, default="fp32", help="of the model's weights (fp32)"
    )
    how.add_argument("--threads", type=int, default=None, help="CPU threads; left out: torch's choice")
    how.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory, a third more time for a step"
    )
    how.add_argument("--compile", action="store_true", help="torch.compile: for a GPU, needs a compiler")
    how.add_argument("--log-dir", type=Path, default=None, help="write a TensorBoard log into this folder")
    how.add_argument(
        "--preview-every", type=int, default=0, metavar="K",
        help="write pictures of the model into FILE.safetensors.previews after K steps and in the end: base model, "
        "trained, and reward guidance, from the same noise; 0: none",
    )  # fmt: skip
    how.add_argument(
        "--preview-prompt", action="append", default=[], metavar="TEXT",
        help="what to preview; may be given several times; left out: the first caption",
    )  # fmt: skip
    keep = train.add_argument_group("checkpoints, in FILE.safetensors.checkpoints")
    keep.add_argument(
        "--checkpoint-every", type=int, default=100, metavar="K", help="steps; 0: only at the end"
    )
    keep.add_argument("--checkpoint-minutes", type=float, default=10.0, metavar="M", help="minutes; 0: never")
    lora = train.add_argument_group("LoRA")
    _add_fields(lora, AdapterConfig, skip=("seed", "start"))
    recipe = train.add_argument_group("training")
    _add_fields(recipe, TrainingConfig, skip=_NO_TOKENS, beta=None)
    for name in _NO_TOKENS:
        recipe.add_argument(f"--{name.replace('_', '-')}", dest=f"no_{name}", default=None, help=argparse.SUPPRESS)
    made = train.add_argument_group("images by the base model, for baselines that need them")
    made.add_argument(
        "--class-data", type=Path, default=None, help="folder of class images, for the objectives with prior"
    )
    _add_fields(made, GenerationConfig)
    lora_files.add_commands(commands)
    evidence_command.add_command(commands)
    return parser


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


def _train(values: dict[str, Any]) -> int:
    _check_options(values)
    output: Path = values["output"]
    if output.suffix != ".safetensors":
        raise DCOError(f"--output {output} is no .safetensors file: write FILE.safetensors.")
    folder = _existing(output.parent)
    if output.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DCOError(f"--output {output} cannot be written: choose a folder that can.")
    check_replaceable(output, values["overwrite"])
    config = TrainingConfig(**_fields_of(TrainingConfig, values))
    config.check()
    check_optimizer(config.optimizer)
    adapter = AdapterConfig(**_fields_of(AdapterConfig, values))
    adapter.check()
    checkpoints = Checkpoints(
        checkpoint_folder(output), values["checkpoint_every"], values["checkpoint_minutes"]
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what systems send before they kill
    generation = GenerationConfig(**_fields_of(GenerationConfig, values))
    pictures = FolderPictures(values["data"], config, generation, values["class_data"])
    with joined(values["device"]) as processes:
        return _train_together(values, config, adapter, checkpoints, pictures, processes)


def _train_together(
    values: dict[str, Any], config: TrainingConfig, adapter: AdapterConfig, checkpoints: Checkpoints,
    pictures: FolderPictures, processes: Processes,
) -> int:  # fmt: skip
    """Train as one of the processes of a run; the first alone speaks and writes."""
    output: Path = values["output"]
    on_message = _print_line if processes.is_first else _print_nothing
    if processes.count > 1:
        pictures.config = dataclasses.replace(
            config, gradient_accumulation_steps=config.gradient_accumulation_steps * processes.count
        )
    model = load_model(values["model"], processes.device(values["device"]), values["precision"])
    run = FolderTraining(
        model, pictures, output, adapter, checkpoints, values["resolution"], values["square"], values["compile"],
        values["gradient_checkpointing"], values["size_conditioning"], values["overwrite"],
        values["preview_every"], values["preview_prompt"], on_message=on_message, processes=processes,
    )  # fmt: skip
    if not processes.is_first:
        run.run(lambda report: None)
        return 0
    for note in run.notes:
        _print_line(note)
    _print_line(f"beta {run.training.config.beta:g}" if config.is_dco else config.objective)
    _run(run, values["log_dir"])
    run.save()
    if run.training.scores:
        _print_line(validation.summary(run.training.scores))
    _print_line(f"Saved {output} after {run.training.step} steps. Peak memory: {run.memory}.")
    return 0


def _check_options(values: dict[str, Any]) -> None:
    """Refuse what needs no model to be refused, and set the threads."""
    for name in _NO_TOKENS:
        if values[f"no_{name}"] is not None:
            raise DCOError(
                f"--{name.replace('_', '-')} is for learned tokens, which the command line does not train (<dog> is "
                "read as the word dog): leave it out, or learn tokens with the trainer node in ComfyUI."
            )
    if values["threads"] is not None:
        if values["threads"] < 1:
            raise DCOError(f"--threads is {values['threads']}: use at least 1, or leave it out.")
        torch.set_num_threads(values["threads"])
    check_resolution(values["resolution"])
    usable_device(values["device"])
    if values["log_dir"] is not None:
        summary_writer()


def _print_nothing(text: str) -> None:
    pass


def _print_line(text: str) -> None:
    print(printable_lines(text), flush=True)


def _run(run: FolderTraining, log_folder: Path | None) -> None:
    progress = _Progress(run.training.step)
    if log_folder is None:
        run.run(progress)
        return
    log = EventLog(log_folder, run.training)

    def on_step(report: StepReport) -> None:
        log(report)
        progress(report)

    try:
        run.run(on_step)
    finally:
        log.close()


def _fields_of(config: type, values: dict[str, Any]) -> dict[str, Any]:
    return {f.name: values[f.name] for f in dataclasses.fields(config) if f.name in values}


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


class _Progress:
    """A line about twice a second, on a terminal over the one before."""

    def __init__(self, done: int):
        self._done, self._started, self._shown = done, time.monotonic(), 0.0

    def __call__(self, report: StepReport) -> None:
        now = time.monotonic()
        if now - self._shown < 0.5 and report.step < report.steps:
            return
        self._shown = now
        left = (now - self._started) / (report.step - self._done) * (report.steps - report.step)
        end = "\r" if sys.stderr.isatty() and report.step < report.steps else "\n"
        print(f"{report.line(left):78}", end=end, file=sys.stderr, flush=True)
