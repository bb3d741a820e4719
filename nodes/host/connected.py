"""A CLIP or VAE that a checkpoint may not have."""

from __future__ import annotations

from typing import Any

from ...dco_core.errors import DCOError


def clip_of(clip: Any) -> Any:
    """The CLIP; DCOError where there is none."""
    return _there(clip, "CLIP", "text encoder")


def vae_of(vae: Any) -> Any:
    """The VAE; DCOError where there is none."""
    return _there(vae, "VAE", "VAE")


def _there(model: Any, kind: str, name: str) -> Any:
    if model is None:
        raise DCOError(f"The {kind} input is empty: the checkpoint has no {name}. Load one with a {kind} loader.")
    return model
