"""What a training run leaves: the LoRA file and embedding files."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...dco_core.errors import DCOError, parsed_json
from ...dco_core.files.safetensors_file import read_header
from ...dco_core.lora import (
    LoraTensors,
    LoraWeights,
    bundled,
    from_bundle,
    to_tensors,
    write_embedding,
    write_lora,
)
from ...dco_core.pipeline.file_header import TrainedHeader
from ...dco_core.training.learned_tokens import LearnedTokens
from ..host import files


@dataclass(frozen=True)
class Target:
    """Where a run's LoRA goes and under which names. kohya_names: {canonical key: base name}."""

    path: Path
    header: TrainedHeader
    kohya_names: Mapping[str, str]


def stopped(target: Target, step: int) -> Target:
    """The target of a run that ends before its time: its file says so, `my_dog_00001_stopped_at_99.safetensors`."""
    return replace(target, path=target.path.with_stem(f"{target.path.stem}{files.STOPPED}{step}"))


def remove_stopped(target: Target, lora: LoraWeights) -> None:
    """Remove what the same run left behind when it was stopped before: files of its name with the configuration, the
    steps aside, that `lora` tells in its header. Of other runs nothing is touched."""
    base = re.sub(r"_\d+_$", "", target.path.stem)
    folders = (target.path.parent, *map(Path, files.embedding_folders()[:1]))
    for path in (path for folder in folders for path in folder.glob(f"{_literal(base)}_*{files.STOPPED}*.safetensors")):
        if target.path == path or _run_of(_metadata(path)) != _run_of(lora.metadata):
            continue
        try:
            path.unlink()
        except OSError as error:  # open elsewhere on Windows
            logging.warning("DCO: could not remove %s: %s", path, error)


def _literal(name: str) -> str:
    """For glob."""
    return re.sub(r"([\[*?])", r"[\1]", name)


def _metadata(path: Path) -> Mapping[str, str]:
    try:
        return read_header(path).get("__metadata__", {})
    except (DCOError, OSError):
        return {}


def _run_of(metadata: Mapping[str, str]) -> Any:
    """What a header tells of its run; a value that equals no other where it tells nothing."""
    try:
        config = parsed_json(metadata["dco.config"])
    except (KeyError, ValueError):
        return object()
    return {k: v for k, v in config.items() if k not in ("steps", "beta")} if isinstance(config, dict) else object()


def finished(
    target: Target,
    weights: LoraWeights,
    tokens: LearnedTokens | None,
    initializers: Mapping[str, str],
    steps: int,
) -> LoraWeights:
    """The LoRA with its learned tokens and its header. Rows learned now replace those it started with."""
    other = dict(weights.other)
    if tokens is not None:
        other |= bundled(tokens.tensors())
    header = target.header.entries(target.path.stem, steps, initializers, layers=weights.layers.values())
    return LoraWeights(weights.layers, other, header)


def save(target: Target, lora: LoraWeights, tokens: LearnedTokens | None) -> list[str]:
    """Write the LoRA file (tokens alone need none) and one embedding file for each token that was trained; says what
    was written."""
    lines = []
    if lora.layers:
        write_lora(target.path, lora, keys=target.kohya_names)
        lines.append(f"Saved {files.shown_name(target.path)}. Press R to see it in the LoRA lists.")
    rows_in_file = from_bundle(lora.other)
    for name in tokens.rows() if tokens is not None else ():
        path = files.new_embedding_path(target.path.stem + re.sub(r"\W+", "_", name))
        write_embedding(path, rows_in_file[name], lora.metadata)
        lines.append(f'The token <{name}> works in any prompt as "embedding:{path.stem}".')
    return lines


def lora_model(target: Target, lora: LoraWeights) -> LoraTensors:
    """The LoRA for a LORA_MODEL socket, header included."""
    return to_tensors(lora, keys=target.kohya_names)
