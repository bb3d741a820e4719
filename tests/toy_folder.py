"""The Toy World's references as a folder of pictures with captions."""

from pathlib import Path

import torch
from PIL import Image

from dco_core.toy_world.renderer import PIXELS_PER_CELL, render
from dco_core.toy_world.world import style_reference, subject_references


def write_references(folder: Path, what: str = "subject") -> Path:
    scenes, captions = subject_references() if what == "subject" else style_reference()
    folder.mkdir(parents=True, exist_ok=True)
    for i, (image, caption) in enumerate(zip(render(scenes), captions, strict=True)):
        pixels = ((image.movedim(0, -1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        side = image.shape[-1] * PIXELS_PER_CELL
        Image.fromarray(pixels.numpy()).resize((side, side), Image.Resampling.NEAREST).save(
            folder / f"{i}.png"
        )
        (folder / f"{i}.txt").write_text(caption, encoding="utf-8")
    return folder
