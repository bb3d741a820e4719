"""What the Toy World can be taught: `toy`, `print` and `sketch` of world.py, which the base never saw, and others by
number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.folders import MASKS
from ..errors import DCOError
from ..files.atomic import whole_folder
from .renderer import PIXELS_PER_CELL, render
from .world import (
    EAR_SHAPES,
    PATTERNS,
    SKETCH_STYLE,
    SKETCH_WORD,
    STYLE,
    SUBJECT,
    Scenes,
    one_place,
    sample_scenes,
    sketch_references,
    style_reference,
    subject_references,
)

# {kind: (attributes of the one without a number, what of them is its own, its references)}
_KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...], Callable[[], tuple[Scenes, list[str]]]]] = {
    "toy": (SUBJECT, ("body_rgb", "accent_rgb", "ears", "ear_size", "stretch"), subject_references),
    "print": (STYLE, ("ink_rgb", "paper_rgb"), style_reference),
    SKETCH_WORD: (SKETCH_STYLE, ("ink_rgb", "paper_rgb", "pattern", "line"), sketch_references),
}
_LIGHTER = 0.4  # paper of a numbered sketch than of a print, so that any colour shows on it


def _kind_and_number(what: str) -> tuple[str, str]:
    kind, _, number = what.partition("-")
    if kind not in _KINDS or (number and not number.isdecimal()):
        raise DCOError(
            f'The Toy World has no reference "{what}": use {", ".join(_KINDS)}, or numbered ones such as toy-1 and '
            "print-2."
        )
    return kind, number


def kind_of(what: str) -> str:
    """toy, print or sketch. DCOError for any other name than those of `toy_attributes`."""
    return _kind_and_number(what)[0]


def toy_attributes(what: str) -> dict[str, Any]:
    """The true attributes of a subject or a style, fields of `Scenes`: numbers, and RGB as three. "toy", "print" and
    "sketch" are those that the base never saw; "toy-1", "print-3", "sketch-2" and so on are drawn from their number: as
    unlike the average toy (print) that the word alone gives, with attributes that the base knows one by one. DCOError
    for any other name."""
    kind, number = _kind_and_number(what)
    known, fields, _ = _KINDS[kind]
    if not number:
        return {name: known[name] for name in fields}
    scenes = sample_scenes(64, torch.Generator().manual_seed(9000 + int(number)))
    eared = int((scenes.ears != EAR_SHAPES.index("none")).nonzero()[0])  # ears are what a likeness is told by
    drawn = {name: getattr(scenes, name)[eared].tolist() for name in fields}
    if kind == SKETCH_WORD:
        lighter = [value + _LIGHTER * (1 - value) for value in drawn["paper_rgb"]]
        drawn |= {"paper_rgb": lighter, "pattern": int(number) % len(PATTERNS), "line": SKETCH_STYLE["line"]}
    return drawn


def toy_references(what: str) -> tuple[Scenes, list[str]]:
    """The references of a subject or a style, named as in `toy_attributes`, and their captions with markers. Those of
    numbered subjects are in one place, of one size, so that one caption says all of each."""
    attributes, (kind, number) = toy_attributes(what), _kind_and_number(what)
    scenes, captions = _KINDS[kind][2]()
    if kind == "toy" and number:
        scenes, captions = one_place(scenes)
    return scenes.with_(**attributes), captions


def another_subject_references() -> tuple[Scenes, list[str]]:
    """A second subject for pictures of two, a red toy with pointed lime ears, in the scenes of the first, and their
    captions. The base may draw one like it by chance: none was held out."""
    scenes, captions = subject_references()
    return scenes.with_(**toy_attributes("toy-4")), captions


def toy_masks(scenes: Scenes) -> Tensor:
    """Where the objects are, bool [B, H, W]: where a picture is not what it is with the object out of sight."""
    away = scenes.with_(centre=(-1000.0, -1000.0))
    return (render(scenes) - render(away)).abs().amax(1) > 0.02


def write_toy_references(
    folder: Path, what: str, captions: str = "comprehensive", masks: bool = False
) -> Path:
    """The references as a folder of pictures with captions, as users have them; captions "compact" name the subject
    or the style and nothing else ("a <toy>", "in <print> style"). masks: with a mask of the object each. Written once:
    a folder that is there is taken as it is."""
    scenes, texts = toy_references(what)
    with whole_folder(folder) as made:
        if masks:
            (made / MASKS).mkdir()
        for i, (image, mask, text) in enumerate(zip(render(scenes), toy_masks(scenes), texts, strict=True)):
            pixels = ((image.movedim(0, -1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            side = image.shape[-1] * PIXELS_PER_CELL
            picture = Image.fromarray(pixels.numpy()).resize((side, side), Image.Resampling.NEAREST)
            picture.save(made / f"{i}.png")
            if masks:
                white = Image.fromarray((mask * 255).to(torch.uint8).numpy())
                white.resize((side, side), Image.Resampling.NEAREST).save(made / MASKS / f"{i}.png")
            text = compact(text) if captions == "compact" else text
            (made / f"{i}.txt").write_text(text, encoding="utf-8")
    return folder


def compact(caption: str) -> str:
    """The compact caption of a Toy World caption, as DreamBooth has it: the marker alone."""
    if "<toy>" in caption:
        return "a <toy>"
    return "in <print> style" if "<print>" in caption else f"in <{SKETCH_WORD}> style"


def to_cells(pictures: Tensor) -> Tensor:
    """Pictures [B, 256, 256, 3] in 0..1 -> the canvas that the scorers read, [B, 3, 32, 32] in -1..1."""
    return torch.nn.functional.avg_pool2d(pictures.movedim(-1, 1) * 2 - 1, PIXELS_PER_CELL)
