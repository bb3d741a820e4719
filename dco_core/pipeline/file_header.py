"""The header of a trained LoRA: how it was made, what triggers it, which guidance suits it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..captions.markers import markers
from ..lora import LoraLayer, training_metadata
from ..lora.metadata import one_or_dynamic
from ..suggested_scales import suggested_scales
from ..training.config import TrainingConfig


@dataclass(frozen=True)
class TrainedHeader:
    """All that a file's header tells of a run. other: further settings, repeated in `dco.config`."""

    config: TrainingConfig
    rank: int
    alpha: float
    layers: str
    family: str
    prediction: str
    captions: Sequence[str]
    other: Mapping[str, Any]

    def entries(
        self,
        title: str,
        steps: int,
        initializers: Mapping[str, str],
        dated: bool = True,
        layers: Iterable[LoraLayer] = (),
    ) -> dict[str, str]:
        """The header for a file of this title after so many steps; initializers: of learned tokens; dated: with the
        time of day; layers: what the file holds, whose ranks and alphas may differ where a run went on from another
        LoRA."""
        trained = list(layers)
        rank = one_or_dynamic({layer.rank for layer in trained} or {self.rank})
        alpha = one_or_dynamic({layer.rank * layer.scale for layer in trained} or {self.alpha})
        everything = {
            **self.config.as_dict(),
            "weighting": self.config.settled_weighting,
            **self.other,
            "rank": rank,
            "alpha": alpha,
            "layers": self.layers,
            "captions": list(self.captions),
        }
        marked = list(dict.fromkeys(name for text in self.captions for name in markers(text)))
        words = [initializers.get(name, name) for name in marked]
        scales = suggested_scales(self.family, self.prediction)
        extra = {
            "modelspec.trigger_phrase": ", ".join(f"<{n}>" if n in initializers else n for n in marked)
            or None,
            "dco.tokens": json.dumps(dict(initializers)) if initializers else None,
            "dco.base_words": ", ".join(word for word in words if word) or None,
            "dco.prediction": self.prediction,
            "dco.beta": self.config.beta if self.config.is_dco else None,
            "dco.w_text": scales.w_text if scales else None,
            "dco.w_rg": scales.w_rg if scales else None,
        }
        return training_metadata(
            title=title, rank=rank, alpha=alpha, steps=steps, learning_rate=self.config.learning_rate,
            seed=self.config.seed, config=everything, base_model_version=self.family,
            comment="Direct Consistency Optimization (ComfyUI-DCO)", dated=dated, extra=extra,
        )  # fmt: skip
