"""Dense changes as pairs, for methods whose result has no low rank of its own (TIES, DARE)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..lora import LoraLayer
from .low_rank import SmallSVD, from_svd
from .reduce import Size, rank_by_energy
from .report import ErrorReport

_POWER_ITERATIONS, _SPARE = 3, 8  # of the randomised SVD; directions beyond the rank


def factorised(key: str, delta: Tensor, size: Size, report: ErrorReport, before: int) -> LoraLayer:
    """A dense dW [out, in, *kernel] as a pair of the rank that `size` asks for, by torch's randomised SVD
    (Halko, Martinsson and Tropp 2011, arXiv 0909.4061, Alg. 4.4 and 5.1) with a fixed seed; with the error that was
    measured against dW. before: the rank noted as the one before."""
    kernel = tuple(delta.shape[1:])
    flat = delta.flatten(1).float()
    whole = float(flat.double().norm())
    full = min(flat.shape)
    wanted = min(size.rank or full, full)
    guess = wanted if size.max_error is None else min(wanted, max(16, before))
    while True:
        svd = _randomised_svd(flat, guess)
        rank = len(svd.s)
        error = _missing(flat, svd, rank)
        if size.max_error is None or error <= size.max_error * whole or guess >= wanted:
            break
        guess = min(wanted, 2 * guess)
    if size.max_error is not None:
        # what the found directions miss counts too
        allowed = max(0.0, (size.max_error * whole) ** 2 - error**2) ** 0.5
        found = float(svd.s.double().norm())
        rank = min(rank, rank_by_energy(svd.s, allowed / found) if found else 1)
    made = from_svd(svd, rank, kernel)
    report.note(key, _missing(flat, svd, rank), whole, before, rank)
    return made


def _missing(flat: Tensor, svd: SmallSVD, rank: int) -> float:
    """|dW - its first `rank` directions|."""
    return float((flat - (svd.u[:, :rank] * svd.s[:rank]) @ svd.vh[:rank]).double().norm())


def _randomised_svd(flat: Tensor, rank: int) -> SmallSVD:
    if 2 * rank >= min(flat.shape):  # nothing is gained by a sketch
        u, s, vh = torch.linalg.svd(flat, full_matrices=False)
        return SmallSVD(u[:, :rank], s[:rank], vh[:rank])
    with torch.random.fork_rng([]):  # the sketch is drawn from the global generator
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(flat, q=rank + _SPARE, niter=_POWER_ITERATIONS)
    return SmallSVD(u[:, :rank], s[:rank], v[:, :rank].T)
