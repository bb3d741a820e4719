"""What a training run leaves: the LoRA file, embedding files, and their headers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dco_core.captions import markers
from ..dco_core.config import TrainingConfig
from ..dco_core.lora import (
    LoraTensors,
    LoraWeights,
    bundled,
    to_tensors,
    training_metadata,
    write_embedding,
    write_lora,
)
from ..dco_core.tokens import LearnedTokens
from .host import files

# w_text and w_rg to begin with: the paper's for epsilon and v models; the Toy World's as measured by its demo.
_SUGGESTED = {"epsilon": (7.5, 3.0), "v": (7.5, 3.0), "ToyWorld": (2.0, 1.4)}


@dataclass(frozen=True)
class Run:
    """All that a file's header tells of a run."""

    path: Path
    config: TrainingConfig
    rank: int
    alpha: float
    layers: str
    family: str
    prediction: str
    captions: Sequence[str]
    kohya_names: Mapping[str, str]
    other_settings: Mapping[str, Any]

    def metadata(self, steps: int, initializers: Mapping[str, str]) -> dict[str, str]:
        everything = {
            **self.config.as_dict(),
            **self.other_settings,
            "rank": self.rank,
            "alpha": self.alpha,
            "layers": self.layers,
            "captions": list(self.captions),
        }
        marked = list(dict.fromkeys(name for text in self.captions for name in markers(text)))
        words = [initializers.get(name, name) for name in marked]
        scales = _SUGGESTED.get(self.family) or _SUGGESTED.get(self.prediction)
        extra = {
            "modelspec.trigger_phrase": ", ".join(f"<{n}>" if n in initializers else n for n in marked)
            or None,
            "dco.tokens": json.dumps(dict(initializers)) if initializers else None,
            "dco.base_words": ", ".join(word for word in words if word) or None,
            "dco.beta": self.config.beta if self.config.objective == "dco" else None,
            "dco.w_text": scales[0] if scales else None,
            "dco.w_rg": scales[1] if scales else None,
        }
        return training_metadata(
            title=self.path.stem, rank=self.rank, alpha=self.alpha, steps=steps,
            learning_rate=self.config.learning_rate, seed=self.config.seed, config=everything,
            base_model_version=self.family, comment="Direct Consistency Optimization (ComfyUI-DCO)",
            extra=extra,
        )  # fmt: skip


def finished(
    run: Run, weights: LoraWeights, tokens: LearnedTokens | None, initializers: Mapping[str, str], steps: int
) -> LoraWeights:
    """The LoRA with its learned tokens and its header. Rows learned now replace those it started with."""
    other = dict(weights.other)
    if tokens is not None:
        other |= bundled(tokens.tensors())
    return LoraWeights(weights.layers, other, run.metadata(steps, initializers))


def save(run: Run, lora: LoraWeights, tokens: LearnedTokens | None) -> list[str]:
    """Write the LoRA file (tokens alone need none) and one embedding file a token; says what was written."""
    said = []
    if lora.layers:
        write_lora(run.path, lora, keys=run.kohya_names)
        said.append(f"Saved {files.shown_name(run.path)}. Press R to see it in the LoRA lists.")
    for name, rows in (tokens.tensors() if tokens is not None else {}).items():
        path = files.new_embedding_path(run.path.stem + re.sub(r"\W+", "_", name))
        write_embedding(path, rows, lora.metadata)
        said.append(f'The token <{name}> works in any prompt as "embedding:{path.stem}".')
    return said


def lora_model(run: Run, lora: LoraWeights) -> LoraTensors:
    """The LoRA for a LORA_MODEL socket, header included."""
    return to_tensors(lora, keys=run.kohya_names)
