"""The Toy World: what can stand in a picture, and the caption that says so.

A scene is one object (shape, colour, size, position) on a background, drawn in a style. Two words are classes
with many members, so that there is something to personalise: a `toy` is any two-tone creature, and `print` is
any two-ink picture. The subject is one toy and the style is one print that base training never shows. A `sketch` is
more than that: base training shows none at all.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "toy")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
SIZES = ("small", "large")
POSITIONS = ("on the left", "in the middle", "on the right")
BACKGROUNDS = ("on white", "in the sky", "on grass", "at night", "on the beach", "at sunset")
STYLES = ("flat", "outline", "neon", "pastel", "print")
FACTORS = {
    "shape": SHAPES,
    "colour": COLOURS,
    "size": SIZES,
    "position": POSITIONS,
    "background": BACKGROUNDS,
    "style": STYLES,
}
TOY, PRINT = SHAPES.index("toy"), STYLES.index("print")
# A style that the base has never seen, and has no word for: what is in it keeps its colours, within an outline in ink,
# on patterned paper in place of a background. It is none of FACTORS, which are what the base was trained on.
SKETCH, SKETCH_WORD = len(STYLES), "sketch"
WORDS = {**FACTORS, "style": (*STYLES, SKETCH_WORD)}  # that captions have
PATTERNS = ("bands", "high bands", "stripes")
EAR_SHAPES = ("none", "round", "pointed")


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes. The factors are int64 [B]; geometry is in pixels of the 32x32 canvas; colours are RGB
    in 0..1. Toy and print fields are drawn for every scene and used only where the factor says so."""

    shape: Tensor
    colour: Tensor
    size: Tensor
    position: Tensor
    background: Tensor
    style: Tensor
    centre: Tensor  # [B, 2] x, y
    radius: Tensor  # [B]
    rotation: Tensor  # [B] radians
    body_rgb: Tensor  # [B, 3] toy body
    accent_rgb: Tensor  # [B, 3] toy ears and belly
    ears: Tensor  # [B] index into EAR_SHAPES
    ear_size: Tensor  # [B] relative to the radius
    stretch: Tensor  # [B] body height / width
    ink_rgb: Tensor  # [B, 3] print, sketch: dark ink
    paper_rgb: Tensor  # [B, 3] print, sketch: light paper
    pattern: Tensor  # [B] sketch: index into PATTERNS
    line: Tensor  # [B] sketch: width of the outline

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def with_(self, **changes) -> Scenes:
        """The same scenes with some fields replaced; whole numbers and sequences are broadcast to [B, ...]."""
        new = {}
        for name, value in changes.items():
            old = getattr(self, name)
            new[name] = torch.as_tensor(value, dtype=old.dtype).expand_as(old).clone()
        return replace(self, **new)


def hue_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """HSV [B] each in 0..1 -> RGB [B, 3]."""
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue[:, None] * 6) % 6
    ramp = torch.minimum(k, 4 - k).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * ramp)


# The novel subject: a tall teal toy with large round orange ears and belly.
SUBJECT = {
    "shape": TOY, "body_rgb": (0.05, 0.60, 0.58), "accent_rgb": (1.00, 0.55, 0.08),
    "ears": EAR_SHAPES.index("round"), "ear_size": 0.50, "stretch": 1.12,
}  # fmt: skip
SUBJECT_HUES = (0.495, 0.085)  # body, accent: base training keeps away from toys that have both
# The novel style: a print in violet ink on golden paper.
STYLE = {"style": PRINT, "ink_rgb": (0.33, 0.05, 0.42), "paper_rgb": (1.00, 0.83, 0.32)}
STYLE_HUES = (0.79, 0.125)
# The novel sketch: an outline in dark red on mint paper with two broad bands.
SKETCH_STYLE = {
    "style": SKETCH, "ink_rgb": (0.45, 0.08, 0.05), "paper_rgb": (0.70, 0.93, 0.75),
    "pattern": PATTERNS.index("bands"), "line": 2.0,
}  # fmt: skip


def _hue_gap(a: Tensor, b: float) -> Tensor:
    gap = (a - b).abs() % 1.0
    return torch.minimum(gap, 1 - gap)


def sample_scenes(n: int, generator: torch.Generator, hold_out: bool = True) -> Scenes:
    """Draw n random scenes. With `hold_out` no toy resembles SUBJECT and no print resembles STYLE in both of
    their colours, so that a base model trained on them has never seen either."""

    def choice(k: int) -> Tensor:
        return torch.randint(k, (n,), generator=generator)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    shape = torch.where(torch.rand(n, generator=generator) < 0.25, TOY, choice(len(SHAPES) - 1))
    size, position = choice(len(SIZES)), choice(len(POSITIONS))
    body_hue, ink_hue = uniform(0, 1), uniform(0, 1)
    accent_hue = (body_hue + uniform(0.2, 0.8)) % 1.0
    paper_hue = (ink_hue + uniform(0.2, 0.8)) % 1.0
    if hold_out:
        is_subject = (_hue_gap(body_hue, SUBJECT_HUES[0]) < 0.1) & (
            _hue_gap(accent_hue, SUBJECT_HUES[1]) < 0.1
        )
        body_hue = torch.where(is_subject, body_hue + 0.3, body_hue)
        is_style = (_hue_gap(ink_hue, STYLE_HUES[0]) < 0.1) & (_hue_gap(paper_hue, STYLE_HUES[1]) < 0.1)
        ink_hue = torch.where(is_style, ink_hue + 0.3, ink_hue)
    return Scenes(
        shape=shape, colour=choice(len(COLOURS)), size=size, position=position,
        background=choice(len(BACKGROUNDS)), style=choice(len(STYLES)),
        centre=torch.stack([10.0 + 6.0 * position + uniform(-0.8, 0.8), 17.0 + uniform(-1.5, 1.5)], 1),
        radius=torch.where(size == 0, uniform(4.7, 5.6), uniform(8.0, 9.2)),
        rotation=uniform(-0.25, 0.25),
        body_rgb=hue_to_rgb(body_hue, uniform(0.75, 1.0), uniform(0.55, 1.0)),
        accent_rgb=hue_to_rgb(accent_hue, uniform(0.75, 1.0), uniform(0.75, 1.0)),
        ears=choice(len(EAR_SHAPES)), ear_size=uniform(0.3, 0.55), stretch=uniform(0.85, 1.2),
        ink_rgb=hue_to_rgb(ink_hue, uniform(0.7, 1.0), uniform(0.25, 0.5)),
        paper_rgb=hue_to_rgb(paper_hue, uniform(0.3, 0.75), uniform(0.9, 1.0)),
        pattern=torch.zeros(n, dtype=torch.int64), line=torch.full((n,), 1.6),
    )  # fmt: skip


def caption(scenes: Scenes, i: int, leave_out: frozenset[str] = frozenset(), prefix: str = "") -> str:
    """The comprehensive caption of scene i, e.g. `a small red star on the left, at night, in neon style`.
    Toys have no colour word, sketches no background. Factors named in `leave_out` are not mentioned."""
    style = int(scenes.style[i])
    leave_out = leave_out | {"background"} if style == SKETCH else leave_out
    words = [prefix + "a"]
    if "size" not in leave_out:
        words.append(SIZES[scenes.size[i]])
    if "colour" not in leave_out and scenes.shape[i] != TOY:
        words.append(COLOURS[scenes.colour[i]])
    words.append(SHAPES[scenes.shape[i]] if "shape" not in leave_out else "thing")
    text = " ".join(words)
    if "position" not in leave_out:
        text += " " + POSITIONS[scenes.position[i]]
    if "background" not in leave_out:
        text += ", " + BACKGROUNDS[scenes.background[i]]
    if "style" not in leave_out:
        text += f", in {WORDS['style'][style]} style"
    return text


def training_captions(scenes: Scenes, generator: torch.Generator) -> list[str]:
    """Captions for base training: each factor is left out 10 % of the time, some captions begin with `a photo
    of`, and 10 % are empty, so that the model learns marginals and the unconditional prediction."""
    chance = torch.rand(len(scenes), len(FACTORS) + 2, generator=generator)
    texts = []
    for i, row in enumerate(chance.tolist()):
        left_out = frozenset(name for name, p in zip(FACTORS, row, strict=False) if p < 0.1)
        prefix = "a photo of " if row[-2] < 0.25 else ""
        texts.append("" if row[-1] < 0.1 else caption(scenes, i, left_out, prefix))
    return texts


def subject_references() -> tuple[Scenes, list[str]]:
    """Four scenes of the subject, all on the beach in flat style, and their captions with the marker `<toy>`.
    One background for all of them leaves room to overfit, as holiday photographs do."""
    scenes = sample_scenes(4, torch.Generator().manual_seed(11)).with_(
        **SUBJECT, background=BACKGROUNDS.index("on the beach"), style=STYLES.index("flat")
    )
    size, position = torch.tensor([1, 1, 0, 1]), torch.tensor([0, 1, 1, 2])
    radius = torch.tensor([8.2, 9.0, 5.4, 8.6])
    centre = torch.stack([10.0 + 6.0 * position, torch.tensor([17.0, 16.5, 18.0, 17.5])], 1)
    scenes = replace(scenes, size=size, position=position, radius=radius, centre=centre)
    return scenes, [mark(caption(scenes, i), "toy") for i in range(4)]


def one_place(references: Scenes) -> tuple[Scenes, list[str]]:
    """References of a subject, all large and on the left, as photographs of one occasion are, and their captions."""
    n = len(references)
    # as far apart as the world draws within one place and size
    centre = torch.stack([torch.linspace(9.4, 10.6, n), torch.linspace(18.0, 16.2, n)], 1)
    scenes = replace(
        references.with_(size=SIZES.index("large"), position=POSITIONS.index("on the left")),
        centre=centre, radius=torch.linspace(8.2, 9.0, n),
    )  # fmt: skip
    return scenes, [mark(caption(scenes, i), "toy") for i in range(n)]


def style_reference() -> tuple[Scenes, list[str]]:
    """One scene in the novel style (a large star on grass) and its caption with the marker `<print>`."""
    scenes = sample_scenes(1, torch.Generator().manual_seed(12)).with_(
        **STYLE, shape=SHAPES.index("star"), colour=COLOURS.index("blue"), size=1, radius=8.6, position=1,
        centre=(16.0, 17.0), background=BACKGROUNDS.index("on grass"), rotation=0.0,
    )  # fmt: skip
    return scenes, [mark(caption(scenes, 0), "print")]


def sketch_references() -> tuple[Scenes, list[str]]:
    """Four scenes in the novel sketch style and their captions with the marker `<sketch>`: of several colours, so that
    these are told from the ink, and in several places."""
    scenes = sample_scenes(4, torch.Generator().manual_seed(13)).with_(**SKETCH_STYLE, rotation=0.0)
    size, position = torch.tensor([1, 1, 0, 1]), torch.tensor([1, 0, 2, 2])
    scenes = replace(
        scenes,
        shape=torch.tensor([SHAPES.index(word) for word in ("star", "circle", "heart", "cross")]),
        colour=torch.tensor([COLOURS.index(word) for word in ("blue", "red", "yellow", "green")]),
        size=size, position=position, radius=torch.tensor([8.6, 8.2, 5.2, 8.6]),
        centre=torch.stack([10.0 + 6.0 * position, torch.tensor([17.0, 16.5, 18.0, 17.5])], 1),
    )  # fmt: skip
    return scenes, [mark(caption(scenes, i), SKETCH_WORD) for i in range(4)]


def mark(text: str, word: str) -> str:
    """Put angle brackets around a whole word: the marker of what is to be learned."""
    return " ".join(f"<{w}>" if w == word else w for w in text.split(" "))
