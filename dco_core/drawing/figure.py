"""What all charts share: a matplotlib Figure with the pack's look, and the ways out of it. pyplot and matplotlib's
settings are never touched: they belong to the host and its other nodes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DCOError
from ..files.atomic import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is left out: it is too pale on white.
COLOURS = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (70, 70, 78),
    (128, 64, 160),
)  # fmt: skip
INK, SOFT, GRID = "#222228", "#5c5c64", "#e4e4e8"
WIDTH, DPI = 7.0, 150  # inches, the width of a page; 1050 pixels
TITLE, TEXT, SMALL = 13.0, 11.0, 9.0  # points: to be read where a node shows 400 of the 1050 pixels
SUFFIXES = (".png", ".svg", ".pdf")


def available() -> None:
    """DCOError where matplotlib is missing: to be asked before work whose end is a chart."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise DCOError(f"Charts need matplotlib ({error}): pip install -r requirements.txt") from error


def new_figure(height: float) -> Figure:
    """An empty white figure WIDTH inches wide and `height` inches high, with constrained layout."""
    available()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(WIDTH, height), dpi=DPI, facecolor="white", edgecolor="white", layout="constrained"
    )
    FigureCanvasAgg(figure)
    return figure


def colour(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    """0..255 -> what matplotlib takes."""
    red, green, blue = rgb
    return red / 255, green / 255, blue / 255


def text_style(size: float = TEXT, ink: str = INK) -> dict[str, Any]:
    """Arguments for a text of somebody's own: a $ in it is a $."""
    return {"fontsize": size, "color": ink, "parse_math": False, "usetex": False, "family": "DejaVu Sans"}


def style(axes: Axes, x_label: str = "", y_label: str = "") -> None:
    """White paper, a pale grid below what is drawn, two spines, readable numbers."""
    axes.set_facecolor("white")
    axes.grid(True, color=GRID, linewidth=0.8, linestyle="-")
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set(color=SOFT, linewidth=0.8)
    axes.tick_params(
        which="both",
        labelsize=TEXT - 1,
        labelcolor=SOFT,
        color=SOFT,
        labelfontfamily="DejaVu Sans",
        direction="out",
    )
    if x_label:
        axes.set_xlabel(x_label, **text_style())
    if y_label:
        axes.set_ylabel(y_label, **text_style())


def text_width(figure: Figure, size: float) -> Callable[[str], float]:
    """How wide a text of so many points is, in inches."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family="DejaVu Sans", size=size)
    canvas: Any = figure.canvas  # Agg, from new_figure
    renderer = canvas.get_renderer()

    def width(text: str) -> float:
        return (
            renderer.get_text_width_height_descent(text, font, ismath=False)[0] / figure.dpi if text else 0.0
        )

    return width


def nothing(axes: Axes, text: str) -> None:
    """What an empty panel says."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", **text_style(ink=SOFT))


def halo() -> Any:
    """A path effect: white around a text that stands on lines."""
    from matplotlib.patheffects import withStroke

    return withStroke(linewidth=2, foreground="white")


def span(values: Iterable[float], margin: float = 0.07) -> tuple[float, float]:
    """The ends of a linear axis for finite values, with a margin; values that are all the same lie in its middle."""
    found = list(values)
    low, high = min(found), max(found)
    # values of one size differ by rounding only: an axis of their last digits would look like a result
    if high - low <= 1e-6 * max(abs(low), abs(high), 1e-3):
        half, middle = max(0.1 * abs(low), 0.02), (low + high) / 2
        low, high = middle - half, middle + half
    room = margin * (high - low)
    return low - room, high + room


def frozen(figure: Figure) -> Figure:
    """The figure with its layout computed and kept: it looks the same in every format."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def to_array(figure: Figure) -> np.ndarray:
    """The figure's pixels, uint8 [H, W, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def to_svg(figure: Figure) -> str:
    """The figure as an SVG document, texts as outlines: it needs no font."""
    return _rendered(figure, "svg").decode("utf-8")


def check_suffix(path: Path) -> None:
    """DCOError for a file that no chart can be."""
    if path.suffix.lower() not in SUFFIXES:
        raise DCOError(
            f"A chart cannot be written as {path}: name a file that ends in {', '.join(SUFFIXES)}."
        )


def save(figure: Figure, path: Path) -> None:
    """Write .png, .svg or .pdf, whole or not at all. DCOError for other suffixes and for what cannot be written."""
    check_suffix(path)
    content = _rendered(figure, path.suffix.lower().removeprefix("."))
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def _rendered(figure: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    dated = {"svg": "Date", "pdf": "CreationDate"}.get(kind)
    figure.savefig(
        file, format=kind, dpi=DPI, facecolor="white", transparent=False, bbox_inches=figure.bbox_inches,
        metadata={dated: None} if dated else None,
    )  # fmt: skip
    return file.getvalue()


def finite(values: Iterable[float]) -> list[float]:
    """Those that are."""
    return [value for value in values if math.isfinite(value)]
