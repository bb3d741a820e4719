"""How much two LoRAs point the same way: the paper's Fig. 10. merging/compatibility.py has the mathematics."""

from __future__ import annotations

from ..lora import LoraWeights
from ..merging.compatibility import compare

TOTAL = "all"


def column_cosine(a: LoraWeights, b: LoraWeights) -> dict[str, float]:
    """Mean cosine between the columns of dW_a and dW_b for each layer type, and over all of them as TOTAL; empty
    where no layer is in both. Raises DCOError for LoRAs of different models."""
    found = compare(a, b)
    return {**found.by_layer_type(), TOTAL: found.total().column_cosine} if found.shared else {}
