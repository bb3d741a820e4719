"""Importing peft, which takes its time and more than it needs."""

from __future__ import annotations

import sys
from typing import Any


def import_peft() -> Any:
    """The peft module; 0.8 to 3 s the first time, so only when training starts.

    peft imports transformers, and that any torchvision there is. One that was built for another torch raises
    RuntimeError there; nothing here needs it, so it is hidden while peft is imported."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except Exception:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        try:
            import peft

            return peft
        finally:
            del sys.modules["torchvision"]
    import peft

    return peft
