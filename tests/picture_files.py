"""Pictures for the tests of folders, written with Pillow."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def save(path: Path, color=(255, 0, 0), size=(20, 16), mode="RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)
    return path
