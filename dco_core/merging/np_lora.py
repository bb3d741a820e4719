"""NP-LoRA: the content LoRA in the null space of the style LoRA (Chen et al. 2025, arXiv 2511.11051)."""

from __future__ import annotations

import math

from ..lora import LoraLayer
from .low_rank import small_svd
from .reduce import rank_by_energy


def np_lora(content: LoraLayer, style: LoraLayer, mu: float = math.inf) -> LoraLayer:
    """`content` with its part along the style's principal input directions V weakened, exactly and at the same rank:

        argmin_D |D - dW_c|^2 + mu |D V V^T|^2  =  dW_c (I - mu / (1 + mu) V V^T)

    mu 0 leaves it as it is (the sum is then the plain one), infinity is the hard projection dW_c (I - V V^T).
    V: right singular vectors of the style."""
    svd = small_svd(style)
    rank = rank_by_energy(svd.s, 0.0)
    v = svd.vh[:rank].T
    share = 1.0 if math.isinf(mu) else mu / (1.0 + mu)
    down = content.down.flatten(1).float()
    down = down - share * (down @ v) @ v.T
    return LoraLayer(down.reshape(content.down.shape), content.up, content.alpha)
