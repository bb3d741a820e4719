"""Smaller LoRAs with a known error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import DCOError
from ..lora import LazyLayers, LoraLayer, LoraWeights
from ..lora.arithmetic import rank_header
from ..lora.state_dict import cast
from .low_rank import from_svd, rounding_error, sampled_rounding_error, small_svd
from .report import ErrorReport


@dataclass(frozen=True)
class Size:
    """How small: no layer above `rank`, or each layer with the smallest rank whose |error| / |dW| is at most
    `max_error`, or both (then `rank` wins); neither: as it is."""

    rank: int | None = None
    max_error: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise DCOError(f"rank is {self.rank}: use at least 1.")
        if self.max_error is not None and not 0 <= self.max_error < 1:
            raise DCOError(
                f"max error is {self.max_error}: it is |error| / |dW|, use 0 to below 1, such as 0.05."
            )

    @property
    def exact(self) -> bool:
        return self.rank is None and self.max_error is None


def rank_by_energy(s: torch.Tensor, max_error: float) -> int:
    """The smallest rank with sqrt(sum of the s_i^2 left out / sum of all) <= max_error; at least 1. s descending."""
    energy = s.double().square()
    left = energy.flip(0).cumsum(0).flip(0)  # left[i]: what is lost when i are kept
    lost = torch.cat([left, left.new_zeros(1)]).sqrt()
    fits = lost <= max_error * left[0].sqrt() + 1e-12 * left[0].sqrt()
    return max(1, int(fits.nonzero()[0]))


def reduce_layer(
    key: str,
    layer: LoraLayer,
    size: Size,
    dtype: torch.dtype | None = None,
    report: ErrorReport | None = None,
) -> LoraLayer:
    """`layer` at a smaller rank by the truncated SVD, which has the least error of all of that rank (Eckart and Young).
    dtype: what it is rounded to; None is fp32. The error counts the rounding; where a large layer is rounded and no
    more, it is an estimate (sampled_rounding_error), and the report says so.

    Raises DCOError for values beyond the range of dtype, and where rounding alone misses max_error."""
    if size.exact:
        made = layer if dtype is None else rounded(key, layer, dtype)
        same = made.up is layer.up and made.down is layer.down
        if report is not None:
            sampled = None if same else sampled_rounding_error(layer, made)
            error, whole = sampled or ((0.0, 0.0) if same else rounding_error(layer, made))
            report.note(key, error, whole, layer.rank, layer.rank, estimated=sampled is not None)
        return made
    svd = small_svd(layer, size.rank)
    whole, kernel = float(svd.s.double().norm()), tuple(layer.down.shape[1:])
    most = min(len(svd.s), size.rank or len(svd.s))
    rank = most if size.max_error is None else min(most, rank_by_energy(svd.s, size.max_error))
    made = from_svd(svd, rank, kernel)
    rounding = 0.0
    if dtype is not None and dtype != torch.float32:
        made, rounding = _rounded(key, made, dtype)
        if size.max_error is not None and whole:
            room = size.max_error**2 - (rounding / whole) ** 2
            if room < 0:
                raise DCOError(
                    f"{key}: rounding to {dtype} alone is {rounding / whole:.1e} of it, more than max error "
                    f"{size.max_error}: use fp32, or a larger max error."
                )
            # truncation and rounding are orthogonal to first order
            rank = min(most, rank_by_energy(svd.s, math.sqrt(room)))
            made, rounding = _rounded(key, from_svd(svd, rank, kernel), dtype)
    if report is not None:
        error = math.hypot(float(svd.s[rank:].double().norm()), rounding)
        report.note(key, error, whole, layer.rank, rank)
    return made


def _rounded(key: str, layer: LoraLayer, dtype: torch.dtype) -> tuple[LoraLayer, float]:
    """The pair in another dtype, and |dW| of the rounding."""
    made = rounded(key, layer, dtype)
    return made, rounding_error(layer, made)[0]


def rounded(key: str, layer: LoraLayer, dtype: torch.dtype) -> LoraLayer:
    """The pair in another dtype; DCOError for values beyond its range."""
    return LoraLayer(cast(layer.down, dtype, key), cast(layer.up, dtype, key), layer.alpha)


def reduce(
    weights: LoraWeights, size: Size, dtype: torch.dtype | None = None, report: ErrorReport | None = None
) -> LoraWeights:
    """All layers of a LoRA by reduce_layer; biases and embeddings stay. LazyLayers stay lazy, and the report fills as
    they are made. Raises DCOError for a size that is none."""
    report = ErrorReport() if report is None else report

    def make(key: str) -> LoraLayer:
        return reduce_layer(key, weights.layers[key], size, dtype, report)

    lazy = LazyLayers(weights.layers, make)
    if isinstance(weights.layers, LazyLayers):
        return LoraWeights(lazy, weights.other, weights.metadata, weights.paths, weights.vectors)
    layers = dict(lazy)
    header = weights.metadata | rank_header(report.ranks()) | report.header()
    return LoraWeights(layers, weights.other, header, weights.paths, weights.vectors)
