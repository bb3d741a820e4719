"""What a LoRA is in memory: one low-rank pair per module, and everything else its file holds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import DCOError

_LIMIT = 1e14


@dataclass(frozen=True)
class LoraLayer:
    """The low-rank change of one module, dW = alpha / rank * up @ down.

    down: [rank, in, *kernel], up: [out, rank, *1]; a linear module has no kernel, and the up of a convolution
        is a 1x1 convolution. Any float dtype.
    alpha: None is a file without alpha, which every loader reads as scale 1.
    """

    down: Tensor
    up: Tensor
    alpha: float | None = None

    def __post_init__(self) -> None:
        down, up = tuple(self.down.shape), tuple(self.up.shape)
        fits = len(down) == len(up) >= 2 and down[0] == up[1] and all(n == 1 for n in up[2:])
        if not fits or 0 in down + up:
            raise DCOError(
                f"down {list(down)} and up {list(up)} are no LoRA pair [rank, in, ...] and [out, rank, 1]: "
                "the file is damaged or of another kind."
            )

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of dW: (out, in, *kernel)."""
        return (self.up.shape[0], *self.down.shape[1:])

    def delta(self) -> Tensor:
        """dW [out, in, *kernel], dense, fp32."""
        product = self.up.flatten(1).float() @ self.down.flatten(1).float()
        return (self.scale * product).reshape(self.shape)


class LazyLayers(Mapping[str, LoraLayer]):
    """Layers that are read or computed anew whenever they are asked for, so that they need not fit into memory
    together."""

    def __init__(self, keys: Iterable[str], make: Callable[[str], LoraLayer]):
        self._keys, self._make = dict.fromkeys(keys), make

    def __getitem__(self, key: str) -> LoraLayer:
        if key not in self._keys:
            raise KeyError(key)
        return self._make(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@dataclass(frozen=True)
class LoraWeights:
    """A whole LoRA.

    layers: by canonical module key (keys.py); LazyLayers where not all of them are in memory.
    other: tensors of the file that are no LoRA pairs, by their full key (`bundle_emb.*` embeddings), carried
    over.
    metadata: the file's header.
    paths: the module path as its file spelled it, by canonical key, where it is another; underscores cannot be undone
        outside the known grammars, and block numbers only be translated where the layout of the UNet is known.
    vectors: changes of biases and norms, [n], by canonical key and suffix, `KEY.diff_b` for the bias and `KEY.diff`
        for a weight with one dimension.
    """

    layers: Mapping[str, LoraLayer]
    other: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)


class LoraTensors(dict[str, Tensor]):
    """The tensors of a LoRA file with its header beside them: what goes through LORA_MODEL sockets. To nodes that
    know nothing of headers it is the plain dictionary they expect."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]):
        super().__init__(tensors)
        self.metadata = dict(metadata)


def module_of(vector_key: str) -> str:
    """The canonical key of the module whose bias or norm it is."""
    return vector_key.rpartition(".")[0]


def in_range(layer: LoraLayer) -> bool:
    """Whether both factors and dW stay below 1e14, so that their squares can be summed in fp32. No LoRA comes near."""
    down, up = _reach(layer.down), _reach(layer.up)
    return max(down, up) <= _LIMIT and abs(layer.scale) * layer.rank * down * up <= _LIMIT


def is_finite(tensor: Tensor) -> bool:
    """No NaN, no infinity."""
    return not tensor.numel() or math.isfinite(_reach(tensor))


def _reach(tensor: Tensor) -> float:
    """The largest |entry|; NaN if there is one. One pass without a copy, many times as fast as a sum in fp16."""
    tensor = tensor.detach()
    plain = tensor.is_floating_point() and tensor.element_size() > 1
    low, high = (tensor if plain else tensor.float()).aminmax()
    return max(float(high), -float(low))


def tensors_sha256(weights: LoraWeights) -> str:
    """sha256 (hex) of the tensors of a LoRA. It depends on values, dtypes and canonical keys; not on how the
    file names its keys, their order, or the header."""
    digest = hashlib.sha256()

    def update(key: str, tensor: Tensor) -> None:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)

    single = dict(weights.other) | weights.vectors
    for key in sorted([*single, *weights.layers]):
        if key in single:
            update(key, single[key])
        else:
            layer = weights.layers[key]
            update(f"{key}.down", layer.down)
            update(f"{key}.scale", torch.tensor(layer.scale))
            update(f"{key}.up", layer.up)
    return digest.hexdigest()
