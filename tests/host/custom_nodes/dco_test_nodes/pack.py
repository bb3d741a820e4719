"""The pack under test."""

import sys


def pack(module):
    """A module of the pack under test, whatever name the host loaded it by."""
    return next(m for name, m in sys.modules.items() if name.endswith(f"ComfyUI-DCO.{module}"))
