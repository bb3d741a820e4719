"""LoRA files: reading and writing them, naming their modules, and arithmetic on dW = alpha / rank up @
down."""

from .arithmetic import merge
from .file import read_lora, unique_path, write_lora
from .keys import canonical_key, canonical_keys
from .metadata import training_metadata
from .state_dict import from_tensors, to_tensors
from .tensors import LoraLayer, LoraWeights, fingerprint

__all__ = [
    "LoraLayer",
    "LoraWeights",
    "canonical_key",
    "canonical_keys",
    "fingerprint",
    "from_tensors",
    "merge",
    "read_lora",
    "to_tensors",
    "training_metadata",
    "unique_path",
    "write_lora",
]
