"""What a training run leaves: the LoRA file and embedding files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
