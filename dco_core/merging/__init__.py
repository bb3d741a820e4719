"""Merging beyond the plain sum (lora/arithmetic.py): smaller files, weights by block, compatibility, other methods."""

from .blocks import PRESETS, BlockWeights, block_of, blocks_for, layer_type_of, parse_blocks
from .compatibility import Compatibility, compare
from .file_weights import parse_file_weight
from .methods import Dare, Exact, MergeMethod, NPLora, Ties, ZipLora, merge_with
from .reduce import Size, reduce
from .report import ErrorReport
