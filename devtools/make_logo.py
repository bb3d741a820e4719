"""Draw docs/icon.png (square) and docs/banner.png (21:9), which the registry and the Manager show.

    .dev/venv/bin/python -m devtools.make_logo

A ring is the base model, the full circle what was learned: it reaches out of the ring and stays in its bounds, the
dashed circle.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .environment import ROOT

ICON_SIDE, BANNER = 400, (1260, 540)  # the registry's limits: 400 px, 21:9
NIGHT, RING, LEARNED, BOUNDS, WORDS = "#14182b", "#8fb4ff", "#ff8a4c", "#3c4a78", "#f2f4fb"
_FINE = 4  # drawn so much larger, then made smaller: smooth edges


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, **colours) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), **colours)


def _mark(draw: ImageDraw.ImageDraw, x: float, y: float, size: float) -> None:
    """The sign, round (x, y), in a square of `size` pixels."""
    bounds = 0.44 * size
    box = (x - bounds, y - bounds, x + bounds, y + bounds)
    for start in range(0, 360, 15):
        draw.arc(box, start, start + 8, fill=BOUNDS, width=round(0.022 * size))
    _disc(draw, x + 0.13 * size, y - 0.11 * size, 0.2 * size, fill=LEARNED)
    _disc(draw, x - 0.07 * size, y + 0.06 * size, 0.25 * size, outline=RING, width=round(0.05 * size))


def icon() -> Image.Image:
    side = ICON_SIDE * _FINE
    picture = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle((0, 0, side - 1, side - 1), 0.2 * side, fill=NIGHT)
    _mark(draw, side / 2, side / 2, side)
    return picture.resize((ICON_SIDE, ICON_SIDE), Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    width, height = (length * _FINE for length in BANNER)
    picture = Image.new("RGB", (width, height), NIGHT)
    draw = ImageDraw.Draw(picture)
    _mark(draw, 0.21 * width, height / 2, 0.86 * height)
    title, line = (ImageFont.load_default(size=size * _FINE) for size in (92, 37))
    left = 0.415 * width
    draw.text((left, 0.40 * height), "ComfyUI-DCO", WORDS, title, anchor="ls")
    lines = ("Teach a model your subject", "and your style.", "It stays the model it was.")
    for text, y, colour in zip(lines, (0.55, 0.65, 0.78), (WORDS, WORDS, LEARNED), strict=True):
        draw.text((left, y * height), text, colour, line, anchor="ls")
    return picture.resize(BANNER, Image.Resampling.LANCZOS)


def main() -> None:
    for name, picture in (("icon", icon()), ("banner", banner())):
        path: Path = ROOT / "docs" / f"{name}.png"
        picture.save(path, optimize=True)
        print(f"wrote {path.relative_to(ROOT)}: {picture.width} x {picture.height}")


if __name__ == "__main__":
    main()
