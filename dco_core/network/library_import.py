"""Importing peft, diffusers and transformers, which take their time and more than they need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_broken_torchvision() -> Iterator[None]:
    """These libraries import any torchvision there is. One that was built for another torch raises RuntimeError there;
    nothing here needs it, so it is hidden inside."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        yield
    except Exception:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        try:
            yield
        finally:
            del sys.modules["torchvision"]
    else:
        yield


def import_peft() -> Any:
    """The peft module; 0.8 to 3 s the first time, so only when training starts."""
    with without_broken_torchvision():
        import peft

        return peft
