"""Ways to merge beside the exact sum, each as a function for lora.merge. They approximate something else than the sum:
their papers say what for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DCOError
from ..lora import LoraLayer, LoraWeights, merge
from ..lora.arithmetic import Factor, concatenated
from .dare import dare
from .dense import factorised
from .np_lora import np_lora
from .reduce import Size, reduce
from .report import ErrorReport
from .ties import ties

# Numbers of a dense dW: the largest layers of Flux 1 have as many. Larger ones must have a LoRA of some rank.
_DENSE = 2**26
_DENSE_TIMES = 1024

Weighted = Sequence[tuple[int, float, LoraLayer]]  # (number of the LoRA, weight, layer)


@dataclass(frozen=True)
class Exact:
    """sum_i weight_i dW_i."""

    name = "exact"
    pair = False

    def combine(self, key: str, layers: Weighted) -> LoraLayer:
        return concatenated([(weight * layer.scale, layer) for _, weight, layer in layers])


@dataclass(frozen=True)
class NPLora:
    """The first LoRA (content) in the null space of the second (style), plus the second. See np_lora.py."""

    mu: float = math.inf
    name = "np-lora"
    pair = True

    def __post_init__(self) -> None:
        if not self.mu >= 0:
            raise DCOError(f"NP-LoRA has mu {self.mu}: use 0 or more.")

    def combine(self, key: str, layers: Weighted) -> LoraLayer:
        by_lora = {i: layer for i, _, layer in layers}
        if len(by_lora) == 2:
            by_lora[0] = np_lora(by_lora[0], by_lora[1], self.mu)
        return concatenated([(weight * by_lora[i].scale, by_lora[i]) for i, weight, _ in layers])


def with_columns(layer: LoraLayer, m: Tensor) -> LoraLayer:
    """The layer with each input channel scaled by m [in]."""
    m = m.detach().cpu().float().reshape(1, -1, *(1 for _ in layer.down.shape[2:]))
    return LoraLayer(layer.down.float() * m, layer.up, layer.alpha)


@dataclass(frozen=True)
class ZipLora:
    """Columns of both LoRAs scaled. mergers: of each layer m_c and m_s [in], which training/zip_lora.py finds."""

    mergers: Mapping[str, tuple[Tensor, Tensor]]
    name = "ziplora"
    pair = True

    def combine(self, key: str, layers: Weighted) -> LoraLayer:
        mergers = self.mergers.get(key)
        scaled = [
            (weight, layer if mergers is None else with_columns(layer, mergers[i]))
            for i, weight, layer in layers
        ]
        return concatenated([(weight * layer.scale, layer) for weight, layer in scaled])


@dataclass(frozen=True)
class Ties:
    """See ties.py."""

    density: float = 0.2
    name = "ties"
    pair = False

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise DCOError(f"TIES has density {self.density}: it is a share, use more than 0 and at most 1.")

    def delta(self, key: str, deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        return ties(deltas, weights, self.density)


@dataclass(frozen=True)
class Dare:
    """See dare.py."""

    drop: float = 0.5
    seed: int = 0
    name = "dare"
    pair = False

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise DCOError(f"DARE drops {self.drop}: it is a share, use 0 to below 1.")

    def delta(self, key: str, deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        digest = hashlib.blake2b(f"{self.seed} {key}".encode(), digest_size=7).digest()
        return dare(deltas, weights, self.drop, torch.Generator().manual_seed(int.from_bytes(digest, "big")))


def _check_dense(method: Ties | Dare, key: str, shape: Sequence[int], numbers: int) -> None:
    """DCOError for a dense dW beyond the layers of image models, unless the LoRAs have a part of its size too."""
    dense = math.prod(shape)
    if dense > max(_DENSE, _DENSE_TIMES * numbers):
        raise DCOError(
            f"{key} is {list(shape)}: {method.name} needs its whole dW, {dense / 2**28:.1f} GiB for each LoRA, which "
            "no image model's layer of this rank takes: merge with method exact."
        )


MergeMethod = Exact | NPLora | ZipLora | Ties | Dare


def merge_with(
    method: MergeMethod,
    loras: Sequence[LoraWeights],
    weights: Sequence[float],
    factor: Factor | None = None,
    size: Size | None = None,
    dtype: torch.dtype | None = None,
    report: ErrorReport | None = None,
) -> LoraWeights:
    """One LoRA of several by `method`, at `size` (None: as it comes), rounded to dtype (None: fp32).

    factor: weights by block (blocks.py). Biases and norms are summed. report: filled as the layers are made. TIES and
    DARE give dense changes, which are factorised to `size`, without one to the sum of the ranks; their report is
    |error| / |dW| against that dense change, before rounding.

    Raises DCOError for NP-LoRA and ZipLoRA of other than two LoRAs, and what merge and reduce refuse."""
    size = size or Size()
    report = ErrorReport() if report is None else report
    if method.pair and len(loras) != 2:
        raise DCOError(
            f"{method.name} merges a content and a style LoRA, in this order, but there are {len(loras)}."
        )
    if not isinstance(method, (Ties, Dare)):
        summed = merge(loras, weights, factor, method.combine, method.name)
        return reduce(summed, size, dtype, report)

    def approximate(key: str, layers: Weighted) -> LoraLayer:
        shape = max((layer.shape for *_, layer in layers), key=len)
        _check_dense(method, key, shape, sum(layer.up.numel() + layer.down.numel() for *_, layer in layers))
        deltas = [layer.delta().reshape(shape) for *_, layer in layers]
        ranks = sum(layer.rank for *_, layer in layers)
        delta = method.delta(key, deltas, [weight for _, weight, _ in layers])
        return factorised(key, delta, Size(ranks) if size.exact else size, report, ranks)

    merged = merge(loras, weights, factor, approximate, method.name)
    header = merged.metadata | report.header()
    return LoraWeights(merged.layers, merged.other, header, merged.paths, merged.vectors)
