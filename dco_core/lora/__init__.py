"""LoRA files: reading and writing them, naming their modules, and arithmetic on dW = alpha / rank up @
down."""

from .arithmetic import merge
from .embeddings import BUNDLE, bundled, from_bundle, initializers_in, token_header, write_embedding
from .file import open_lora, read_lora, read_tensors, write_lora
from .keys import canonical_keys
from .metadata import training_metadata
from .state_dict import from_tensors, to_tensors
from .tensors import LazyLayers, LoraLayer, LoraTensors, LoraWeights, tensors_sha256
