"""`python -m dco_core`: a command and its exit status."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

import torch

from ..errors import DCOError, printable
from . import evidence as evidence_command
from . import lora_files
from . import train as train_command
from .config_file import read_options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0 done, 1 an error, 130 stopped (the same command goes on)."""
    parser = _parser()
    values = vars(parser.parse_args(arguments))
    for stream in (sys.stdout, sys.stderr):  # a console that has no such character shows its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if values.get("config") is not None:
            values["parser"].set_defaults(**read_options(values["config"], values["parser"]))
            values = vars(parser.parse_args(arguments))
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
    train_command.add_command(commands)
    lora_files.add_commands(commands)
    evidence_command.add_command(commands)
    return parser
