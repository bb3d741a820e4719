"""What adapters other than LoRA are: each as the one low-rank pair that is exactly its dW.

    LoRA, LoCon    up @ down
    Tucker         up @ (mid x_2 down), the same pair with the core in down         LyCORIS, locon.py
    LoKr           kron(w1, w2); kron(a b, c d) = kron(a, c) @ kron(b, d)           LyCORIS, lokr.py
    LoHa           (a b) * (c d): rows of up are products of rows of a and c        LyCORIS, loha.py; arXiv 2108.06098
    difference     the dense dW of a whole weight (.diff)

So the rank of LoKr is at most the product of the ranks of w1 and w2, that of LoHa the product of its two ranks, and
none needs more than min(out, in): beyond that the dense dW itself is one factor and the identity the other.
Formulas of LyCORIS 4 (arXiv 2309.14859) and of the host (comfy/weight_adapter).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from ..errors import DCOError
from .tensors import LoraLayer

Parts = Mapping[str, Tensor]
AlphaOf = Callable[[int], float | None]  # alpha for a rank
ScaleOf = Callable[[int | None], float]  # alpha / rank; None: the factors are whole
# Numbers in both factors: whole LoKr factors of the largest layers of Flux 1 and Wan 2 make three quarters of that.
# More is only taken where the file itself is not much smaller, as for a full-weight difference of any layer.
_MOST = 2**27
_MOST_TIMES = 64
VECTORS = {
    "diff_b": "diff_b",
    "b_norm": "diff_b",
    "up_bias": "diff_b",
    "w_norm": "diff",
}  # part: suffix written
_NAMES = {
    "down": "LoRA", "up": "LoRA", "mid": "LoRA with a Tucker core", "diff": "full-weight difference",
    "w_norm": "difference", "b_norm": "difference", "diff_b": "bias difference", "up_bias": "LoRA with biases",
}  # fmt: skip
_TURNS = "it turns the base model's weights instead of adding to them"
_UNSUPPORTED = {
    r"\.dora_scale|\.lora_magnitude_vector.*": (
        "DoRA",
        "its dW depends on the weights of the base model, and ComfyUI, LyCORIS and peft take different norms of them, "
        "so that no sum of it is exact",
    ),
    r"\.boft_\w+(\.\w+)*": ("BOFT", _TURNS),
    r"\.oft_blocks": ("OFT or BOFT", _TURNS),
    r"\.(oft_(?!blocks)\w+|hra_u)(\.\w+)*": ("OFT or HRA", _TURNS),
    r"\.[ab][12]\.weight": ("GLoRA", "its dW depends on the weights of the base model"),
    r"\.on_input|\.ia3_l(\.\w+)*": ("(IA)^3", "it scales the base model's weights instead of adding to them"),
    r"\.lora_E|\.ranknum": (
        "AdaLoRA",
        "its singular values are tensors that no reader of LoRAs multiplies in",
    ),
    r".*\.(vera_lambda|randlora|fourierft|waveft|vblora|c3a|road|miss|bone|shira|lily|delora|gralora|osf|psoft)_\w+"
    r"(\.\w+)*": ("an adapter of peft of another kind", "it is no LoRA, LoHa or LoKr"),
    r"\.lora_embedding_[AB].*": ("a LoRA on embeddings", "the host has no such layers"),
    r"\.(set_weight|reshape_weight)": (
        "a full-weight difference of another kind",
        "it replaces weights instead of adding to them",
    ),
}


def refuse_unsupported(source: str, keys: Iterable[str]) -> None:
    """DCOError for adapter types that have no dW of their own."""
    patterns = {re.compile(rf"(?:{pattern})$"): reason for pattern, reason in _UNSUPPORTED.items()}
    for key in keys:
        for pattern, (kind, why) in patterns.items():
            if pattern.search(key):
                raise DCOError(
                    f"{source} is {kind} ({key}), which is not supported here: {why}. Use it with ComfyUI's own LoRA "
                    "loader, or extract a plain LoRA from the patched model first."
                )


def adapter_type_of(parts: Iterable[str]) -> str:
    """'LoRA', 'LoHa', 'LoKr', 'difference' or, for biases alone, ''. Raises DCOError for parts of two types."""
    parts = set(parts) - {"alpha"} - set(VECTORS)
    found = {
        "LoRA": parts & {"down", "up", "mid"},
        "LoHa": {p for p in parts if p.startswith("hada_")},
        "LoKr": {p for p in parts if p.startswith("lokr_")},
        "difference": parts & {"diff"},
    }
    types = [kind for kind, there in found.items() if there]
    if len(types) > 1:
        raise DCOError(f"is {' and '.join(types)} at once: save them as two files.")
    return types[0] if types else ""


def part_name(part: str) -> str:
    """What users call the adapter that a part belongs to."""
    return _NAMES.get(part) or ("LoHa" if part.startswith("hada_") else "LoKr")


def layer_of(
    parts: Parts,
    other_alpha: AlphaOf = lambda rank: None,
    whole_scale: Callable[[], float | None] = lambda: None,
) -> LoraLayer:
    """The pair of one module. parts: as split_key names them. other_alpha: the alpha where parts have none, for a
    rank; whole_scale: alpha / r where they have neither, a LoKr of whole factors. Works on meta tensors too, to check
    shapes alone.
    Raises DCOError for parts that are missing or do not fit together."""
    kind = adapter_type_of(parts)
    own = parts.get("alpha")
    if own is not None and own.numel() != 1:
        raise DCOError(f"has an alpha of shape {list(own.shape)}: it must be one number.")

    def alpha(rank: int) -> float | None:
        if own is None:
            return other_alpha(rank)
        return 1.0 if own.is_meta else float(own.item())

    def scale(rank: int | None) -> float:
        if rank is None:
            value = None if own is not None else whole_scale()
            return 1.0 if value is None else value
        value = alpha(rank)
        return 1.0 if value is None else value / rank

    if kind in ("LoKr", "LoHa"):
        make: Callable[[], LoraLayer] = partial(_lokr if kind == "LoKr" else _loha, parts, scale)
    else:
        make = partial(_difference, parts) if kind == "difference" else partial(_lora, parts, alpha)
    try:
        return _sized(make(), parts)
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        if isinstance(error, DCOError):
            raise
        shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in parts.items())
        raise DCOError(
            f"has {kind} parts that do not fit together ({shapes}): the file is damaged."
        ) from error


def _sized(layer: LoraLayer, parts: Parts) -> LoraLayer:
    """The layer; DCOError for one that small parts blow up beyond any network's."""
    numbers, there = layer.up.numel() + layer.down.numel(), sum(tensor.numel() for tensor in parts.values())
    if numbers > max(_MOST, _MOST_TIMES * there):
        size = numbers / 2**28
        raise DCOError(
            f"is {list(layer.shape)} of rank {layer.rank} and would take {size:.{0 if size > 9 else 1}f} GiB as a "
            f"plain LoRA, {numbers / there:.0f} times its own size: the file is damaged, or of a kind to use with "
            "ComfyUI's own LoRA loader alone."
        )
    return layer


def _need(parts: Parts, names: Iterable[str]) -> list[Tensor]:
    names = list(names)
    missing = [name for name in names if name not in parts]
    if missing:
        there = sorted(set(parts) - {"alpha"})
        raise DCOError(
            f"has {' and '.join(there)} but no {' and no '.join(missing)}: it is incomplete, download or save it again."
        )
    return [parts[name] for name in names]


def _lora(parts: Parts, alpha: AlphaOf) -> LoraLayer:
    down, up = _need(parts, ("down", "up"))
    mid = parts.get("mid")
    if up.dim() == 2 < down.dim():  # LyCORIS leaves out the 1x1 of a convolution's up
        up = up.reshape(*up.shape, *(1 for _ in down.shape[2:]))
    if mid is None:
        return LoraLayer(down, up, alpha(down.shape[0]))
    if mid.dim() < 3 or down[0].numel() != down.shape[1] or down.dim() < 2:
        raise DCOError(
            f"has lora_mid {list(mid.shape)}, no Tucker core for down {list(down.shape)}: the file is damaged."
        )
    core = torch.einsum("mn...,ni->mi...", mid.float(), down.float().flatten(1))
    return LoraLayer(core, up.float(), alpha(down.shape[0]))


def _tucker(t: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """t [i, j, *k], a [i, p], b [j, r] -> pair of [p, r, *k]: up [p, i], down [i, r, *k]."""
    if t[:, 0].numel() * b.shape[1] > _MOST:
        raise ValueError(f"a core {list(t.shape)} with {list(b.shape)} would take gigabytes")
    return a.float().T, torch.einsum("ij...,jr->ir...", t.float(), b.float())


def _halves(parts: Parts, prefix: str, core: str) -> tuple[Tensor, Tensor]:
    """The factors `prefix`_a and `prefix`_b, with their Tucker core if there is one."""
    a, b = _need(parts, (f"{prefix}_a", f"{prefix}_b"))
    if a.dim() != 2 or b.dim() < 2 or (prefix.startswith("hada") and b.dim() > 2):
        raise DCOError(
            f"has {prefix}_a {list(a.shape)} and {prefix}_b {list(b.shape)}, which are no factors: the file is damaged."
        )
    up, down = _tucker(parts[core], a, b) if core in parts else (a.float(), b.float())
    if up.shape[1] != down.shape[0]:
        raise ValueError(f"{prefix}: ranks {up.shape[1]} and {down.shape[0]}")
    return up, down


def _loha(parts: Parts, scale_of: ScaleOf) -> LoraLayer:
    """dW[o, i] = (sum_p a[o, p] b[p, i]) (sum_q c[o, q] d[q, i]); rank of the scale: that of w1_b."""
    (a, b), (c, d) = (_halves(parts, f"hada_w{n}", f"hada_t{n}") for n in (1, 2))
    rank = parts["hada_w1_b"].shape[0]
    kernel, b, d = b.shape[1:], b.flatten(1), d.flatten(1)
    if b.shape[1] != d.shape[1] or a.shape[0] != c.shape[0]:
        raise DCOError(
            f"has LoHa halves of {[a.shape[0], b.shape[1]]} and {[c.shape[0], d.shape[1]]}: the file is damaged."
        )
    scale = scale_of(rank)
    if a.shape[1] * c.shape[1] >= min(a.shape[0], b.shape[1]):
        whole = a @ b
        whole *= c @ d
        whole *= scale
        return _dense(whole.reshape(a.shape[0], *kernel))
    up = torch.einsum("op,oq->opq", a, c).flatten(1)
    down = torch.einsum("pi,qi->pqi", b, d).flatten(0, 1)
    return _pair(up, down.reshape(down.shape[0], *kernel), scale)


def _lokr(parts: Parts, scale_of: ScaleOf) -> LoraLayer:
    """kron(w1, w2), w2 with a kernel or without. The scale is alpha over the rank of w2's factors, else of w1's. If
    both are whole, it is 1 for LyCORIS and the host whatever alpha says, and for peft alpha / r of its
    configuration."""
    (u1, d1), rank1 = _half_of_kron(parts, "lokr_w1", "lokr_t1")
    (u2, d2), rank2 = _half_of_kron(parts, "lokr_w2", "lokr_t2")
    scale = scale_of(rank2 or rank1)
    width, kernel = d2.shape[1], d2.shape[2:]
    down = _kron(d1.flatten(1), d2.flatten(1))
    return _pair(_kron(u1, u2), down.reshape(down.shape[0], d1.shape[1] * width, *kernel), scale)


def _kron(a: Tensor, b: Tensor) -> Tensor:
    # torch.kron (2.13) fails on columns that are transposed rows
    product = a[:, None, :, None] * b[None, :, None, :]
    return product.reshape(a.shape[0] * b.shape[0], a.shape[1] * b.shape[1])


def _half_of_kron(parts: Parts, name: str, core: str) -> tuple[tuple[Tensor, Tensor], int | None]:
    """One half as (up [p, r], down [r, q, *kernel]) of the smallest rank that is plain to see, and the rank it was
    trained with (None: it is whole)."""
    if name in parts:
        if parts[name].dim() < 2 or (name == "lokr_w1" and parts[name].dim() > 2):
            raise DCOError(f"has {name} {list(parts[name].shape)}, which is no matrix: the file is damaged.")
        return _identity_pair(parts[name].float()), None
    up, down = _halves(parts, name, core)
    rank = parts[f"{name}_b"].shape[0]
    if up.shape[1] > min(up.shape[0], down[0].numel()):
        return _identity_pair((up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])), rank
    return (up, down), rank


def _difference(parts: Parts) -> LoraLayer:
    return _dense(parts["diff"].float())


def _identity_pair(whole: Tensor) -> tuple[Tensor, Tensor]:
    """whole [p, q, *kernel] as up [p, r] and down [r, q, *kernel], r the smaller side."""
    p, columns = whole.shape[0], whole[0].numel()
    if p <= columns:
        return torch.eye(p, device=whole.device), whole
    return whole.flatten(1), torch.eye(columns, device=whole.device).reshape(columns, *whole.shape[1:])


def _dense(delta: Tensor) -> LoraLayer:
    """A dense dW [out, in, *kernel] as a pair."""
    up, down = _identity_pair(delta)
    return _pair(up, down, 1.0)


def with_kernel(layer: LoraLayer, kernel: tuple[int, ...] | None) -> LoraLayer:
    """A pair [out, in * k * k] as one of a convolution, where `kernel` fits."""
    size = math.prod(kernel or ())
    if kernel is None or layer.down.dim() > 2 or layer.down.shape[1] % size:
        return layer
    ones = [1 for _ in kernel]
    down = layer.down.reshape(layer.rank, -1, *kernel)
    return LoraLayer(down, layer.up.reshape(*layer.up.shape, *ones), layer.alpha)


def _pair(up: Tensor, down: Tensor, scale: float) -> LoraLayer:
    """scale * up [out, r] @ down [r, in, *kernel], the scale shared evenly by both factors."""
    if scale != 1:  # nothing is copied that can have the size of a layer
        root = math.sqrt(abs(scale))
        up, down = math.copysign(root, scale) * up, root * down
    return LoraLayer(down, up.reshape(*up.shape, *(1 for _ in down.shape[2:])))
