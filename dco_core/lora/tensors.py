"""What a LoRA is in memory: one low-rank pair per module, and everything else its file holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import DCOError


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


@dataclass(frozen=True)
class LoraWeights:
    """A whole LoRA.

    layers: by canonical module key (keys.py).
    other: tensors of the file that are no LoRA pairs, by their full key (`bundle_emb.*` embeddings), carried
    over.
    metadata: the file's header.
    paths: the dotted module path, by canonical key, of modules whose file spelled one; underscores cannot be
        undone outside the known grammars.
    """

    layers: dict[str, LoraLayer]
    other: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)


class LoraTensors(dict[str, Tensor]):
    """The tensors of a LoRA file with its header beside them: what goes through LORA_MODEL sockets. To nodes that
    know nothing of headers it is the plain dictionary they expect."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]):
        super().__init__(tensors)
        self.metadata = dict(metadata)


def fingerprint(weights: LoraWeights) -> str:
    """sha256 (hex) of the tensors of a LoRA. It depends on values, dtypes and canonical keys; not on how the
    file names its keys, their order, or the header."""
    digest = hashlib.sha256()
    tensors = dict(weights.other)
    for key, layer in weights.layers.items():
        tensors[f"{key}.down"], tensors[f"{key}.up"] = layer.down, layer.up
        tensors[f"{key}.scale"] = torch.tensor(layer.scale)
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
