"""`python -m dco_core`: training (here) and LoRA files (lora_commands.py) from the command line."""

from __future__ import annotations

import argparse
import dataclasses
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

from . import held_out, lora_commands
from .adapters import AdapterConfig
from .checkpoints import Checkpoints
from .config import TrainingConfig
from .errors import DCOError, printable
from .event_log import EventLog
from .evidence import command as evidence_command
from .folder_training import FolderTraining, checkpoint_folder
from .generation import GenerationConfig
from .image_models import PRECISIONS, load_model
from .reports import StepReport
from .trainer import Training

_HELP = {
    "steps": "training steps",
    "beta": "how strongly to stay close to the base model; left out: automatic",
    "automatic_beta": "paper: 1 for epsilon models, found on the images for others; images: always found",
    "seed": "seed of the LoRA's start, the noise, the timesteps and the order of the images",
    "objective": "dco, dreambooth, dreambooth-prior, mapo or output-preservation",
    "class_prompt": "of the subject's class, such as \"a photo of a dog\"; left out: from the captions' marker",
    "class_images": "how many the base model makes first, for dreambooth-prior without --class-data",
    "rejected_images": "how many the base model makes of every caption first, for mapo",
    "generation_steps": "sampling steps of these images",
    "generation_w_text": "text guidance of these images; left out: the model's own",
    "look_ahead": "batches that the base model looks at in one call; 1 is one a step, 0 automatic",
    "keep": "which adapter to save: last, or best (by --score-every)",
    "layers": "a preset such as attention, or a regular expression on module names",
    "alpha": "LoRA alpha; left out: the same as rank",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0 done, 1 an error, 130 stopped (the same command goes on)."""
    parser = _parser()
    values = vars(parser.parse_args(arguments))
    try:
        return values["run"](values)
    except DCOError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
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
        "--model", required=True, help="toy-world (or toy-world:flow), or diffusers:FOLDER for SD1.5 and SDXL on disk"
    )
    needed.add_argument("--data", required=True, type=Path, help="folder of pictures with .txt captions")
    needed.add_argument("--output", required=True, type=Path, help="the LoRA file to write, FILE.safetensors")
    how = train.add_argument_group("how")
    how.add_argument("--resolution", type=int, help="in pixels; left out: the model's own")
    how.add_argument("--square", action="store_true", help="centred squares instead of aspect-ratio buckets")
    how.add_argument("--device", default=None, help="cuda or cpu; left out: the GPU if there is one")
    how.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of the model's weights (diffusers)"
    )
    how.add_argument("--threads", type=int, default=None, help="CPU threads")
    how.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory, a third more time for a step"
    )
    how.add_argument("--compile", action="store_true", help="torch.compile: for a GPU, needs a compiler")
    how.add_argument("--log-dir", type=Path, default=None, help="write a TensorBoard log into this folder")
    keep = train.add_argument_group("checkpoints, in FILE.safetensors.checkpoints")
    keep.add_argument(
        "--checkpoint-every", type=int, default=100, metavar="K", help="steps; 0: only at the end"
    )
    keep.add_argument("--checkpoint-minutes", type=float, default=10.0, metavar="M", help="minutes; 0: never")
    lora = train.add_argument_group("LoRA")
    _add_fields(lora, AdapterConfig, skip=("seed", "start"))
    recipe = train.add_argument_group("training")
    _add_fields(recipe, TrainingConfig, beta=None)
    made = train.add_argument_group("images by the base model, for baselines that need them")
    made.add_argument(
        "--class-data", type=Path, default=None, help="folder of class images, for dreambooth-prior"
    )
    _add_fields(made, GenerationConfig)
    lora_commands.add_commands(commands)
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
    if values["threads"]:
        torch.set_num_threads(values["threads"])
    output: Path = values["output"]
    if output.suffix != ".safetensors":
        raise DCOError(f"--output {output} is no .safetensors file: write FILE.safetensors.")
    folder = _existing(output.parent)
    if output.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DCOError(f"--output {output} cannot be written: choose a folder that can.")
    config = TrainingConfig(**_fields_of(TrainingConfig, values))
    config.check()
    adapter = AdapterConfig(**_fields_of(AdapterConfig, values))
    checkpoints = Checkpoints(
        checkpoint_folder(output), values["checkpoint_every"], values["checkpoint_minutes"]
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what systems send before they kill
    model = load_model(values["model"], values["device"], values["precision"])
    run = FolderTraining(
        model, values["data"], output, config, adapter, checkpoints, values["resolution"], values["square"],
        values["compile"], values["gradient_checkpointing"],
        GenerationConfig(**_fields_of(GenerationConfig, values)), values["class_data"], say=_say,
    )  # fmt: skip
    for note in run.notes:
        print(note)
    print(f"beta {run.training.config.beta:g}" if config.objective == "dco" else config.objective, flush=True)
    _run(run.training, values["log_dir"])
    run.save()
    if run.training.scores:
        print(held_out.summary(run.training.scores))
    print(f"Saved {output} after {run.training.step} steps. Peak memory: {run.memory}.")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _run(training: Training, log_folder: Path | None) -> None:
    progress = _Progress(training.step)
    if log_folder is None:
        training.run(progress)
        return
    log = EventLog(log_folder, training)

    def on_step(report: StepReport) -> None:
        log(report)
        progress(report)

    try:
        training.run(on_step)
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
