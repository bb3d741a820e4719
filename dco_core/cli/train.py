"""`python -m dco_core train`: from a folder of pictures to a LoRA file."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ..errors import DCOError, printable_lines
from ..lora import LoraWeights, read_lora
from ..lora.started import check_start
from ..models.host_model import HostFiles
from ..models.loading import load_model, usable_device
from ..network.lora_layers import AdapterConfig
from ..pipeline.generation import GenerationConfig
from ..pipeline.output_files import check_replaceable, checkpoint_folder, reference_folder, settings_file
from ..pipeline.pictures import FolderPictures
from ..pipeline.run import FolderTraining, check_resolution
from ..pipeline.vocabulary import TokenConfig
from ..training import validation
from ..training.checkpoints import Checkpoints
from ..training.config import TrainingConfig
from ..training.optimizers import check_optimizer
from ..training.processes import Processes, joined
from ..training.step_report import StepReport
from ..training.tensorboard import EventLog, summary_writer
from .config_file import write_options
from .train_options import add_options

_NEEDED = {
    "model": "toy-world:epsilon (or toy-world), toy-world:flow, diffusers:FOLDER, checkpoint:FILE or unet:FILE",
    "data": "a folder of pictures with captions",
    "output": "the file to write, FILE.safetensors",
}


def add_command(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a LoRA on a folder of pictures with captions",
        description="Train a LoRA on a folder of pictures with captions. Killed or stopped at any moment, the same "
        "command goes on from the newest checkpoint and ends with the same file.",
    )
    parser.set_defaults(
        run=_train, stopped="Stopped. The same command goes on from the last checkpoint.", parser=parser
    )
    add_options(parser)


def _train(values: dict[str, Any]) -> int:
    for name, what in _NEEDED.items():
        if values[name] is None:
            raise DCOError(f"--{name} is missing: name {what}.")
    _check_options(values)
    output: Path = values["output"]
    if output.suffix != ".safetensors":
        raise DCOError(f"--output {output} is no .safetensors file: write FILE.safetensors.")
    folder = _existing(output.parent)
    if output.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DCOError(f"--output {output} cannot be written: choose a folder that can.")
    check_replaceable(output, values["overwrite"])
    config = _training_config(values)
    check_optimizer(config.optimizer)
    adapter = AdapterConfig(**_fields_of(AdapterConfig, values))
    adapter.check()
    checkpoints = Checkpoints(
        checkpoint_folder(output), values["checkpoint_every"], values["checkpoint_minutes"]
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what systems send before they kill
    generation = GenerationConfig(**_fields_of(GenerationConfig, values))
    pictures = FolderPictures(values["data"], config, generation, values["class_data"])
    start = None if values["start_from"] is None else read_lora(values["start_from"])
    if start is not None:
        check_start(start, _token_config(values).alone)
    with joined(values["device"]) as processes:
        return _train_together(values, config, adapter, checkpoints, pictures, start, processes)


def _train_together(
    values: dict[str, Any], config: TrainingConfig, adapter: AdapterConfig, checkpoints: Checkpoints,
    pictures: FolderPictures, start: LoraWeights | None, processes: Processes,
) -> int:  # fmt: skip
    """Train as one of the processes of a run; the first alone speaks and writes."""
    output: Path = values["output"]
    on_message = _print_line if processes.is_first else _print_nothing
    if processes.count > 1:
        pictures.config = dataclasses.replace(
            config, gradient_accumulation_steps=config.gradient_accumulation_steps * processes.count
        )
    tokens = _token_config(values)
    files = HostFiles(tuple(values["clip"]), values["clip_type"], values["vae"])
    model = load_model(values["model"], processes.device(values["device"]), values["precision"], files)
    run = FolderTraining(
        model, pictures, output, adapter, checkpoints, values["resolution"], values["square"], values["compile"],
        values["gradient_checkpointing"], values["size_conditioning"], values["overwrite"],
        values["preview_every"], values["preview_prompt"], tokens,
        start=start, stream_weights=values["stream_weights"], reference_device=values["reference_device"],
        reference_folder=reference_folder(output) if values["reference_cache"] else None, on_message=on_message,
        processes=processes,
    )  # fmt: skip
    if not processes.is_first:
        run.run(lambda report: None)
        return 0
    write_options(settings_file(output), values["parser"], values, "train")
    for note in run.notes:
        _print_line(note)
    _print_line(f"beta {run.training.config.beta:g}" if config.is_dco else config.objective)
    _run(run, values["log_dir"])
    written = run.save()
    if run.training.scores:
        _print_line(validation.summary(run.training.scores))
    for sentence in [*written, f"Peak memory: {run.memory}."]:
        _print_line(sentence)
    return 0


def _token_config(values: dict[str, Any]) -> TokenConfig:
    return TokenConfig(values["learned_tokens"], "\n".join(values["initializer"]), values["vectors"])


def _training_config(values: dict[str, Any]) -> TrainingConfig:
    tokens = _token_config(values)
    tokens.check()
    without: dict[str, Any] = {"token_learning_rate": None, "initializer": [], "vectors": 0}
    given = [name for name, value in without.items() if values[name] != value]
    if given and not tokens.on:
        name = given[0].replace("_", "-")
        raise DCOError(
            f"--{name} is for learned tokens, and none are learned: leave it out, or add --learned-tokens with-lora."
        )
    fields = _fields_of(TrainingConfig, values)
    if values["token_learning_rate"] is None:
        del fields["token_learning_rate"]
    config = TrainingConfig(**fields)
    config.check()
    return config


def _check_options(values: dict[str, Any]) -> None:
    """Refuse what needs no model to be refused, and set the threads."""
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
