"""The files of a run from the command line: where they lie, and which of them it may replace."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import DCOError

RUN = "dco.run"  # in the header: which run a file is of


def check_replaceable(output: Path, overwrite: bool, run: str | None = None) -> None:
    """Raise DCOError where `output` is there, is not of this run, and may not be replaced. run: which run this is; None
    while it is not known yet, and then every run's file passes."""
    if overwrite or not output.exists():
        return
    found = _run_of(output)
    if found is None or run not in (None, found):
        what = "was not written by this command" if found is None else "is of another run"
        raise DCOError(
            f"{output} {what} and would be lost: choose another --output, or replace it with --overwrite."
        )


def _run_of(output: Path) -> str | None:
    """The run that a file is of, as its header says; None where it says nothing."""
    try:
        with safe_open(output, framework="pt") as file:
            return (file.metadata() or {}).get(RUN)
    except (SafetensorError, OSError, ValueError):
        return None


def embedding_files(output: Path, names: Sequence[str]) -> dict[str, Path]:
    """{learned token: its embedding file, beside the LoRA}."""
    found: dict[str, Path] = {}
    for name in names:
        stem = f"{output.stem}_" + re.sub(r"\W+", "_", name)
        path, number = output.with_name(f"{stem}.safetensors"), 2
        while path in found.values():  # names that differ in what a file's name does not keep
            path, number = output.with_name(f"{stem}_{number}.safetensors"), number + 1
        found[name] = path
    return found


def preview_folder(output: Path) -> Path:
    """Where the previews of a run lie."""
    return output.with_name(output.name + ".previews")


def checkpoint_folder(output: Path) -> Path:
    """Where the checkpoints of a run lie: beside the file it is to become."""
    return output.with_name(output.name + ".checkpoints")


def settings_file(output: Path) -> Path:
    """Where the options of a run lie, for --config."""
    return output.with_name(output.name + ".toml")


def reference_folder(output: Path) -> Path:
    """Where the base model's errors lie, for all runs whose files are in this folder."""
    return output.parent / "dco_reference_cache"
