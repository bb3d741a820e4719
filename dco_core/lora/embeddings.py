"""Embeddings (learned tokens) in files of their own and inside LoRA files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..errors import DCOError, parsed_json
from ..files.atomic import save_tensors

BUNDLE = "bundle_emb."  # bundle_emb.<name>.<encoder>, which A1111, OneTrainer and ComfyUI read

TokenRows = Mapping[str, Mapping[str, Tensor]]  # {token name: {encoder: [n, width]}}


def bundled(rows: TokenRows) -> dict[str, Tensor]:
    """Token rows as entries of a LoRA file."""
    return {
        f"{BUNDLE}{name}.{encoder}": r
        for name, by_encoder in rows.items()
        for encoder, r in by_encoder.items()
    }


def from_bundle(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The token rows in the tensors of a LoRA file, {token name: {encoder: [n, width]}}; {} if there are none."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(BUNDLE):
            name, _, encoder = key[len(BUNDLE) :].rpartition(".")
            if name and tensor.ndim in (1, 2) and tensor.numel():
                found.setdefault(name, {})[encoder] = tensor.reshape(-1, tensor.shape[-1])
    return found


def write_embedding(
    path: str | os.PathLike[str], rows: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one token's rows, {encoder: [n, width]}, as an embedding file (`clip_l`, `clip_g`) for
    `embedding:name` in prompts, whole or not at all. Raises DCOError for a token without rows and a folder that
    cannot be written."""
    if not rows:
        raise DCOError(f"The token for {path} has no rows: there is nothing to save.")
    save_tensors(path, rows, metadata or {})


def initializers_in(metadata: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """What the base caption says for each token, from a LoRA's header (`dco.tokens`); a token that the header does
    not know stands for its own name."""
    known = token_header(metadata)
    return {name: known.get(name, name.replace("_", " ")) for name in names}


def token_header(metadata: Mapping[str, str]) -> dict[str, str]:
    """`dco.tokens` of a header, {token name: initializer}; {} if it is absent or not readable."""
    try:
        known = parsed_json(metadata.get("dco.tokens", "{}"))
    except ValueError:
        return {}
    return {n: w for n, w in known.items() if isinstance(w, str)} if isinstance(known, dict) else {}
