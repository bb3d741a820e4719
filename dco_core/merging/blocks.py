"""Blocks of a network by module key, and weights for them."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DCOError
from ..lora import LoraWeights
from ..lora.keys import UNET, diffusers_to_ldm

# Rules, the last that fits goes first. The names of B-LoRA (arXiv 2403.14572, Sec. 4): in SDXL the content of a picture
# sits in the first attention block of the up part, its style in the second.
PRESETS = {
    "whole": (),
    "no text encoder": (("text", 0.0),),
    "attention only": (("*", 0.0), ("*_attn*", 1.0)),
    "cross-attention only": (("*", 0.0), ("*_attn2_*", 1.0)),
    "only down and middle": (("*", 0.0), ("down", 1.0), ("middle", 1.0)),
    "only up": (("*", 0.0), ("up", 1.0)),
    "content (SDXL)": (("*", 0.0), ("up 0", 1.0)),
    "style (SDXL)": (("*", 0.0), ("up 1", 1.0)),
}
_LDM = re.compile(r"(input|output)_blocks_(\d+)_|(middle)_block_")
_PLAIN = re.compile(r"(down|up|mid|middle)(?:_?blocks?)?_?(\d*)_")
_NUMBERED = re.compile(r"([a-z]+(?:_[a-z]+)*?)_(\d+)_")
_LAYER_TYPES = (
    (re.compile(r"attn[12]_to_(?:q|k|v|out)"), None),
    (re.compile(r"(?:self_attn|attn)_(?:q|k|v|out)_proj"), None),
    (re.compile(r"ff_net|mlp_fc|mlp"), "feed-forward"),
    (re.compile(r"proj_(?:in|out)"), None),
    (re.compile(r"in_layers|out_layers|_op$|conv|skip_connection"), "convolution"),
    (re.compile(r"to_(?:q|k|v|out)|qkv|proj"), None),
)


def block_of(key: str) -> str:
    """'down 4', 'middle', 'up 0' (the input, middle and output blocks of an SD UNet), 'text' or 'text 2', the numbered
    block of another network ('double_blocks 3'), or 'other'."""
    if key.startswith("lora_te"):
        return "text 2" if key.startswith("lora_te2_") else "text"
    name = key.removeprefix(UNET).removeprefix("lora_transformer_").replace(".", "_")
    name = diffusers_to_ldm(name) or name
    match = _LDM.match(name)
    if match:
        return "middle" if match[3] else f"{'down' if match[1] == 'input' else 'up'} {match[2]}"
    match = _PLAIN.match(name)
    if match:
        return f"{'middle' if match[1] == 'mid' else match[1]} {match[2]}".strip()
    match = _NUMBERED.search(name)
    return f"{match[1]} {match[2]}" if match else "other"


def layer_type_of(key: str) -> str:
    """What a layer does, as on the axis of the paper's Fig. 10: attn1_to_q, feed-forward, convolution, ..."""
    for pattern, name in _LAYER_TYPES:
        match = pattern.search(key)
        if match:
            return name or match[0]
    return "other"


def block_order(block: str) -> tuple[int, str, int]:
    """For sorting: down 0 ... down 11, middle, up 0 ..., others, text."""
    name, _, number = block.partition(" ")
    place = {"down": 0, "middle": 1, "mid": 1, "up": 2, "text": 9}.get(name, 3)
    return place, name, int(number or 0)


@dataclass(frozen=True)
class BlockWeights:
    """Factors for layers of single LoRAs: (which LoRA or None for all, name, factor); the last rule that fits wins,
    none is 1. written: names of the rules that are no part of a preset."""

    rules: tuple[tuple[int | None, str, float], ...] = ()
    written: tuple[str, ...] = ()

    def __call__(self, lora: int, key: str) -> float:
        for which, name, factor in reversed(self.rules):
            if which in (None, lora) and fits(name, key):
                return factor
        return 1.0


def fits(name: str, key: str) -> bool:
    """name: a group ('up'), a block ('up 0', 'input_blocks_4'), or a pattern for the canonical key with * and ?."""
    if "*" in name or "?" in name or "[" in name:
        return fnmatch.fnmatchcase(key, name)
    block = block_of(key)
    return name in (block, block.split(" ")[0]) or f"_{name}_" in f"{key}_"


def parse_blocks(text: str, count: int) -> BlockWeights:
    """Rules as users write them, one a line or between semicolons:

        up = 0.5                  for all LoRAs
        1: down = 0               for the first LoRA alone
        2: style (SDXL)           a preset
        *_attn2_to_k = 0.8        a pattern

    count: how many LoRAs there are. Raises DCOError for a line that is no rule."""
    rules: list[tuple[int | None, str, float]] = []
    written: list[str] = []
    for line in filter(None, (part.strip() for part in re.split(r"[;\n]", text))):
        match = re.fullmatch(r"(?:(\d+)\s*:\s*)?(.+?)(?:\s*=\s*(\S+))?", line)
        number, name, value = match.groups() if match else (None, "", None)
        which = int(number) - 1 if number else None
        if which is not None and not 0 <= which < count:
            raise DCOError(f'block weights: "{line}" is for LoRA {number}, but there are {count}.')
        if value is None:
            if name not in PRESETS:
                raise DCOError(
                    f'block weights: "{line}" is no rule: write NAME = NUMBER, or a preset: {", ".join(PRESETS)}.'
                )
            rules += [(which, rule, factor) for rule, factor in PRESETS[name]]
            continue
        rules.append((which, name, _number(line, value)))
        written.append(name)
    return BlockWeights(tuple(rules), tuple(written))


def _number(line: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DCOError(f'block weights: "{line}" ends in {value}, which is no number: write NAME = NUMBER.')
    return number


def blocks_for(text: str, loras: Sequence[LoraWeights]) -> BlockWeights | None:
    """parse_blocks for these LoRAs; None without any rule. DCOError for a written rule that fits no layer: most likely
    it is misspelled."""
    weights = parse_blocks(text, len(loras))
    keys = [key for lora in loras for key in lora.layers]
    for name in weights.written:
        if not any(fits(name, key) for key in keys):
            known = sorted({block_of(key) for key in keys}, key=block_order)
            raise DCOError(f'block weights: "{name}" fits no layer; the blocks are {", ".join(known)}.')
    return weights if weights.rules else None
