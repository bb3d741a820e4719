"""Nodes for the host tests only: oracles, comparisons, faults."""

from .models import (
    BrokenClip,
    BrokenImage,
    ClipHash,
    CompiledGraphs,
    CompileEagerly,
    Modules,
    Offload,
    RefusesQuantised,
    VisionLanguage,
    WeightHash,
)
from .sampling import CompareLatents, IndexingPatch, OracleSampler, SecondModel, TwoCalls
from .training import Counting, Counts, Posterior, ShowDataset, TokenGradient, ValidationLoss

NODE_CLASS_MAPPINGS = {
    f"DCOTest{cls.__name__}": cls
    for cls in (
        Modules, WeightHash, OracleSampler, CompareLatents, TwoCalls, IndexingPatch, BrokenImage,
        ValidationLoss, RefusesQuantised, SecondModel, BrokenClip, ClipHash, TokenGradient, ShowDataset,
        Posterior, Counting, Counts, Offload, VisionLanguage, CompileEagerly, CompiledGraphs,
    )
}  # fmt: skip
