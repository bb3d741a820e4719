"""Which network a run was made from, as one number over every byte of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from .content_key import plain_tensor, tensor_bytes, update_digest

_ROW = 1024  # words of 8 bytes; what is left over of a tensor is taken as it is
_ROWS_AT_ONCE = 128  # 1 MiB, which stays in a core's cache for the second sum
_SUMMED_ON = ("cpu", "cuda", "xpu")  # others may lack sums of 64-bit integers


def network_fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and sums over all values of each tensor.

    Every byte counts: the tensor's bytes are laid out as 64-bit words in rows of 1024, and the sum of every row and of
    every column (modulo 2^64) goes into the hash. A change of one element always shows, one of many escapes only if
    it leaves all these sums alone, which noise, another model or a LoRA baked in does not. One pass over the memory, a
    tenth of the time of hashing it (5 GB of weights: about a second on one CPU core)."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        plain, beside = plain_tensor(tensor)
        for sums in _sums(plain):
            digest.update(sums.cpu().numpy().tobytes())
        update_digest(digest, beside)
    return digest.hexdigest()


def _sums(tensor: Tensor) -> Iterator[Tensor]:
    """Sums of the rows and of the columns of a tensor's bytes as int64 [rows, 1024], and the bytes left over."""
    flat = tensor_bytes(tensor)
    if flat.device.type not in _SUMMED_ON:
        flat = flat.cpu()
    if flat.numel() and (flat.storage_offset() % 8 or flat.data_ptr() % 8):
        flat = flat.clone()  # words of 8 bytes lie at multiples of 8
    whole = flat.numel() // (8 * _ROW) * (8 * _ROW)
    if whole:
        words = flat[:whole].view(torch.int64).view(-1, _ROW)
        columns = words.new_zeros(_ROW)
        for part in words.split(_ROWS_AT_ONCE if words.device.type == "cpu" else len(words)):
            columns += part.sum(0)
            yield part.sum(1)
        yield columns
    yield flat[whole:]
