"""Will two LoRAs get along? What their weights say, from r x r Gram matrices.

With A = dW_a, B = dW_b (scaled by their weights):

    column cosine    mean over columns j of cos(A_j, B_j)                            paper, Fig. 10; arXiv 2311.13600
    overlap          |U_a^T U_b|^2 / min(r_a, r_b), U an orthonormal basis           arXiv 2106.09685, Eq. 4
                     of the output space, and V of the input space: 0 apart, 1 one in the other
    norm ratio       |A| / |B|
    cross-talk       |A B^T| |A^T B| / (|A A^T| |B B^T|): how much of both reads the same inputs and writes the same
                     outputs; 0 none, 1 all (Cauchy-Schwarz on both sides)

Cosines do not predict whether a merge looks right: the paper finds the same ones for DCO and for DreamBooth, whose
merges differ (Fig. 10).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lora import LoraLayer, LoraWeights, canonical_keys
from ..lora.arithmetic import same_shape
from .blocks import block_of, block_order, layer_type_of
from .low_rank import factors, gram
from .report import as_table

TOTAL = "all"  # the row of column_cosine over all layers
_KEPT = 1e-12  # eigenvalues of a Gram matrix below this share are rounding


@dataclass(frozen=True)
class LayerFit:
    """Two LoRAs in one layer. inner is <A, B>; norms are of A and B with their weights; columns counts them."""

    column_cosine: float
    columns: int
    overlap_out: float
    overlap_in: float
    cross_talk: float
    inner: float
    norm_a: float
    norm_b: float


def fit(a: LoraLayer, b: LoraLayer, weights: tuple[float, float] = (1.0, 1.0)) -> LayerFit:
    """Compare two layers of one module. Only factors and r x r matrices are formed, in fp64."""
    (ua, da), (ub, db) = factors(a), factors(b)
    ua, ub = weights[0] * ua, weights[1] * ub
    g_aa, g_bb, g_ab = gram(ua, ua), gram(ub, ub), gram(ua, ub)
    h_aa, h_bb, h_ab = gram(da, da), gram(db, db), gram(da, db)
    cosines = _column_cosines(da, db, g_aa, g_bb, g_ab)
    inner, aa, bb = ((g * h).sum().item() for g, h in ((g_ab, h_ab), (g_aa, h_aa), (g_bb, h_bb)))
    # |A B^T|^2 = tr(G_aa H_ab G_bb H_ab^T), |A^T B|^2 likewise
    ab = _trace(g_aa, h_ab, g_bb) * _trace(h_aa, g_ab, h_bb)
    own = _trace(g_aa, h_aa, g_aa) * _trace(g_bb, h_bb, g_bb)  # |A A^T| = |A^T A|
    return LayerFit(
        column_cosine=float(cosines.mean()) if len(cosines) else 0.0,
        columns=len(cosines),
        overlap_out=_overlap((g_aa, h_aa), (g_bb, h_bb), g_ab),
        overlap_in=_overlap((h_aa, g_aa), (h_bb, g_bb), h_ab),
        cross_talk=math.sqrt(max(0.0, ab / own)) if own > 0 else 0.0,
        inner=inner,
        norm_a=math.sqrt(max(0.0, aa)),
        norm_b=math.sqrt(max(0.0, bb)),
    )


def _trace(left: Tensor, cross: Tensor, right: Tensor) -> float:
    return float((left @ cross * (cross @ right)).sum())


def _column_cosines(da: Tensor, db: Tensor, g_aa: Tensor, g_bb: Tensor, g_ab: Tensor) -> Tensor:
    """cos(A_j, B_j) for the columns that neither LoRA leaves at 0: A_j = up_a down_a[:, j]."""
    dot = ((da @ g_ab) * db).sum(1)
    squares = ((da @ g_aa) * da).sum(1) * ((db @ g_bb) * db).sum(1)
    there = squares > 1e-24 * squares.max() if len(squares) else squares > 0
    return dot[there] / squares[there].sqrt()


def _overlap(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], cross: Tensor) -> float:
    """|Q_a^T Q_b|^2 / min(ranks) for orthonormal bases Q = F W of the spaces of two products F K^T, from the Gram
    matrices (F^T F, K^T K) of each and F_a^T F_b."""
    wa, wb = _basis(*a), _basis(*b)
    smaller = min(wa.shape[1], wb.shape[1])
    return float((wa.T @ cross @ wb).square().sum()) / smaller if smaller else 0.0


def _basis(inside: Tensor, other: Tensor) -> Tensor:
    """W such that F W is an orthonormal basis of the column space of F K^T."""
    root_inside, back = _root(inside)
    root_other, _ = _root(other)
    u, s, _ = torch.linalg.svd(root_inside.T @ root_other, full_matrices=False)
    kept = s > 1e-6 * s.max() if len(s) else s > 0
    return back @ u[:, kept]


def _root(g: Tensor) -> tuple[Tensor, Tensor]:
    """R, B of a Gram matrix G = F^T F: R R^T = G, and F B has orthonormal columns with F = (F B) R^T."""
    values, vectors = torch.linalg.eigh(g)
    kept = values > _KEPT * values.max().clamp(min=0)
    root = values[kept].sqrt()
    return vectors[:, kept] * root, vectors[:, kept] / root


@dataclass(frozen=True)
class Compatibility:
    """Two LoRAs, layer by layer. shared: layers that both change; only_a, only_b: how many only one of them does;
    skipped: how many were of too high a rank."""

    shared: Mapping[str, LayerFit]
    only_a: int
    only_b: int
    skipped: int = 0

    def by_layer_type(self) -> dict[str, float]:
        """Mean column cosine for each layer type (the paper's Fig. 10)."""
        return {kind: _mean_cosine(fits) for kind, fits in sorted(self._grouped(layer_type_of).items())}

    def by_block(self) -> dict[str, LayerFit]:
        """Blocks as one layer each: norms add up, the rest is a mean over layers, cosines over columns."""
        groups = self._grouped(block_of)
        return {block: _together(groups[block]) for block in sorted(groups, key=block_order)}

    def total(self) -> LayerFit:
        return _together(list(self.shared.values()))

    def _grouped(self, name) -> dict[str, list[LayerFit]]:
        found: dict[str, list[LayerFit]] = {}
        for key, layer in self.shared.items():
            found.setdefault(name(key), []).append(layer)
        return found

    def advice(self) -> str:
        """A sentence that follows from the numbers and says no more than they do."""
        if not self.shared and self.skipped:
            return "All layers that both change have too high a rank to be compared: they are not compared."
        if not self.shared:
            return "They change no layer in common: the sum does to each layer what one of them does alone."
        total = self.total()
        if not total.norm_a or not total.norm_b:
            return "One of them is 0 in all shared layers: the sum there is the other one."
        cosine = total.inner / (total.norm_a * total.norm_b)
        ratio = total.norm_a / total.norm_b
        grown = math.sqrt(max(0.0, 1 + 2 * cosine * ratio / (1 + ratio**2)))
        if abs(cosine) > 0.5:
            way, effect, more = (
                ("the same way", "adds up", "smaller")
                if cosine > 0
                else ("opposite ways", "cancels", "other")
            )
            return (
                f"They point {way} (cosine {cosine:.2f}): what they share {effect}, the sum is {grown:.2f} times as "
                f"large as that of two unrelated LoRAs of these norms, so consider {more} weights."
            )
        if not 1 / 3 <= ratio <= 3:
            strong, weak, times = ("first", "second", ratio) if ratio > 1 else ("second", "first", 1 / ratio)
            return (
                f"The {strong} is {times:.1f} times as large as the {weak}: with these weights it holds "
                f"{times**2 / (1 + times**2):.0%} of |A|^2 + |B|^2, so raise the weight of the {weak} if it does not "
                "show."
            )
        if total.cross_talk > 0.2:
            worst = max(self.by_block().items(), key=lambda item: item[1].cross_talk)[0]
            return (
                f"They meet in part of their directions (cross-talk {total.cross_talk:.2f}, most in {worst}); "
                "there each changes what the other does; look at the picture, and try less weight on that block."
            )
        return (
            f"Little of them meets (cosine {cosine:.2f}, cross-talk {total.cross_talk:.2f}): the sum is {grown:.2f} "
            "times as large as that of two unrelated LoRAs of these norms. Whether the picture is right, these numbers "
            "cannot tell (paper, Fig. 10)."
        )

    def table(self) -> str:
        """Per block, in total, and the column cosine per layer type, as aligned text."""
        rows = {block: _cells(layer) for block, layer in self.by_block().items()}
        rows["in total"] = _cells(self.total())
        layer_types = {kind: {"column cosine": f"{value:+.3f}"} for kind, value in self.by_layer_type().items()}
        counts = f"{len(self.shared)} layers in both, {self.only_a} only in the first, {self.only_b} only in the other."
        counts += f" {self.skipped} more have a high rank and were not compared." if self.skipped else ""
        parts = [counts, as_table(rows), as_table(layer_types)] if self.shared else [counts]
        return "\n\n".join([*parts, self.advice()])


def _cells(layer: LayerFit) -> dict[str, str]:
    ratio = layer.norm_a / layer.norm_b if layer.norm_b else math.inf
    return {
        "column cosine": f"{layer.column_cosine:+.3f}",
        "overlap out": f"{layer.overlap_out:.3f}",
        "overlap in": f"{layer.overlap_in:.3f}",
        "norm ratio": f"{ratio:.2f}" if ratio < 1e4 else f"{ratio:.1e}",
        "cross-talk": f"{layer.cross_talk:.3f}",
    }


def _mean_cosine(fits: Iterable[LayerFit]) -> float:
    fits = list(fits)
    columns = sum(f.columns for f in fits)
    return sum(f.column_cosine * f.columns for f in fits) / columns if columns else 0.0


def _together(fits: list[LayerFit]) -> LayerFit:
    count = len(fits) or 1

    def mean(name: str) -> float:
        return sum(getattr(f, name) for f in fits) / count

    return LayerFit(
        column_cosine=_mean_cosine(fits),
        columns=sum(f.columns for f in fits),
        overlap_out=mean("overlap_out"),
        overlap_in=mean("overlap_in"),
        cross_talk=mean("cross_talk"),
        inner=sum(f.inner for f in fits),
        norm_a=math.sqrt(sum(f.norm_a**2 for f in fits)),
        norm_b=math.sqrt(sum(f.norm_b**2 for f in fits)),
    )


def column_cosine(a: LoraWeights, b: LoraWeights) -> dict[str, float]:
    """How much two LoRAs point the same way (the paper's Fig. 10): the mean cosine between the columns of dW_a and dW_b
    for each layer type, and over all of them as TOTAL; empty where no layer is in both. Raises DCOError for LoRAs of
    different models."""
    found = compare(a, b)
    return {**found.by_layer_type(), TOTAL: found.total().column_cosine} if found.shared else {}


def compare(
    a: LoraWeights, b: LoraWeights, weights: tuple[float, float] = (1.0, 1.0), max_rank: int = 256
) -> Compatibility:
    """Two LoRAs with their weights, layer by layer. Layers of a rank above max_rank (LoKr and LoHa as pairs) are left
    out: their r x r matrices would be as large as dW. Raises DCOError if a module has different shapes in them."""
    names = canonical_keys([*a.layers, *b.layers])
    own_a, own_b = ({names[key]: key for key in lora.layers} for lora in (a, b))
    shared, skipped = {}, 0
    for key in own_a:
        if key in own_b:
            pair = a.layers[own_a[key]], b.layers[own_b[key]]
            same_shape(key, pair)
            if max(layer.rank for layer in pair) > max_rank:
                skipped += 1
            else:
                shared[key] = fit(*pair, weights)
    both = len(shared) + skipped
    return Compatibility(shared, len(own_a) - both, len(own_b) - both, skipped)
