"""Pictures in sketch style, read by their pixels: the network of scorer_network.py has seen none.

Paper and pattern are fitted first, by medians over the pixels where a pattern has ink and where it has none, as an
object covers less than half of either. What does not fit is the object, whose rim is the ink of its outline. With the
paper and the outline taken away, what remains is an object on white, which the network knows: so a sketch is read as
others are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .renderer import PATTERN_IMAGES

# Distances of colours are of RGB in 0..1. Between the two numbers of a pair a score rises from 0 to 1.
OFF_PAPER = 0.20  # a pixel this far from the fitted paper belongs to the object
NEAR_INK = 0.25
ON_A_LINE = 0.12  # a pixel this near to the line between ink and fill is a mixture of the two
SHARE = (0.49, 0.55)  # of the picture that is paper: true renders have 0.54 and more
CONTRAST = (0.08, 0.18)  # between a pattern and its paper: true renders have 0.2 and more
COVERED = (0.5, 0.8)  # of an object's rim that is ink
APART = (0.06, 0.15)  # ink and fill: without an outline the rim is fill
AGREED = (0.70, 0.82)  # 1 less the sine of the angle, at the paper, between the inks of outline and pattern
DARKER = (0.10, 0.25)  # ink than paper, in luminance
COLOURFUL = (0.016, 0.026)  # standard deviation along the second axis of its colours: a print has one axis
LEAST_OBJECT = 0.02  # of the picture
_WHITE = (0.93, 0.93, 0.94)  # as the world's white background has it, on average
_LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Sketches:
    """What is read of B pictures."""

    patterned: Tensor  # [K, B] in 0..1: patterned paper, of each of world.PATTERNS
    outlined: Tensor  # [B] in 0..1: an object with an outline in ink; 0 where no paper was found
    paper_rgb: Tensor  # [B, 3] of the pattern that fits best
    ink_rgb: Tensor  # [B, 3]
    plain: Tensor  # [B, 3, H, W] in -1..1: the objects without outline, on white; as given where no paper was found

    @property
    def found(self) -> Tensor:
        """Which pictures are sketches, bool [B]."""
        return self.patterned.amax(0) * self.outlined > 0.5


def read_sketches(images: Tensor) -> Sketches:
    """images [B, 3, 32, 32] in about -1..1."""
    rgb = (images.detach().float().cpu().clamp(-1, 1) + 1) / 2
    patterned, paper, marks, off = _fitted(rgb)
    best = patterned.argmax(0)
    rows = torch.arange(len(rgb))
    paper, marks, off = (fitted[best, rows] for fitted in (paper, marks, off))
    outlined, ink, plain = torch.zeros(len(rgb)), torch.zeros(len(rgb), 3), images.detach().float().cpu().clone()
    some = (patterned.amax(0) > 0).nonzero()[:, 0]
    if len(some):
        outlined[some], ink[some], plain[some] = _objects(rgb[some], paper[some], marks[some], off[some])
    return Sketches(patterned, outlined, paper, ink, plain)


def _ramp(x: Tensor, ends: tuple[float, float]) -> Tensor:
    return ((x - ends[0]) / (ends[1] - ends[0])).clamp(0, 1)


def _fitted(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each pattern fitted to pictures [B, 3, H, W]: how much it is there [K, B], the colours of its paper and of its
    marks [K, B, 3], and how far each pixel is from both [K, B, H, W]."""
    pixels = rgb.flatten(2)
    there, papers, inked, distances = [], [], [], []
    for pattern in PATTERN_IMAGES:
        ink = pattern.flatten()
        paper, marks = (pixels[:, :, where].median(-1).values for where in (ink == 0, ink == 1))
        distance = (pixels - paper[..., None] - ink * (marks - paper)[..., None]).norm(dim=1)
        share, contrast = (distance < OFF_PAPER).float().mean(1), (marks - paper).norm(dim=1)
        there.append(_ramp(share, SHARE) * _ramp(contrast, CONTRAST))
        papers.append(paper)
        inked.append(marks)
        distances.append(distance.view(-1, *rgb.shape[2:]))
    return torch.stack(there), torch.stack(papers), torch.stack(inked), torch.stack(distances)


def _objects(rgb: Tensor, paper: Tensor, marks: Tensor, off: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of pictures [B, 3, H, W] on paper with marks [B, 3], off which each pixel is so far [B, H, W]: how well the
    object is outlined [B], in which ink [B, 3], and the object without its outline on white [B, 3, H, W] in -1..1."""
    shape = ~_from_the_frame(~_grown(_shrunk(off >= OFF_PAPER)))  # specks go, holes fill
    luminance = (rgb * torch.tensor(_LUMINANCE)[:, None, None]).sum(1)
    rim = torch.where(shape & ~_shrunk(shape, 2), luminance, torch.nan)
    dark = rim <= rim.flatten(1).nanquantile(0.35, dim=1)[:, None, None]  # the rest is mixed with paper and fill
    ink = _median(rgb, dark).nan_to_num(1.0)
    from_ink = (rgb - ink[:, :, None, None]).norm(dim=1)
    near = from_ink < NEAR_INK
    edge = shape & ~_shrunk(shape)
    covered = (edge & _grown(near)).sum((1, 2)) / edge.sum((1, 2)).clamp(min=1)
    fill = _median(rgb, _shrunk(shape, 3))
    agreed = 1 - _sine(marks - paper, ink - paper)  # a rim of fill is seldom on the way from paper to marks
    darker = ((paper - ink) * torch.tensor(_LUMINANCE)).sum(1)
    outlined = (
        _ramp(covered, COVERED) * _ramp((fill - ink).norm(dim=1).nan_to_num(1.0), APART) * _ramp(darker, DARKER)
        * _ramp(agreed, AGREED) * _ramp(_second_axis(rgb), COLOURFUL) * (shape.float().mean((1, 2)) > LEAST_OBJECT)
    )  # fmt: skip
    return outlined, ink, _without_outline(rgb, shape, ink, from_ink) * 2 - 1


def _sine(a: Tensor, b: Tensor) -> Tensor:
    """Of the angle between vectors [B, 3], [B]; 1 where they point apart."""
    cosine = F.cosine_similarity(a, b)
    return torch.where(cosine > 0, (1 - cosine.square()).clamp(min=0).sqrt(), 1.0)


def _second_axis(rgb: Tensor) -> Tensor:
    """Standard deviation [B] of the colours of pictures [B, 3, H, W] along their second principal axis; blurred, as
    grain has all colours."""
    colours = F.avg_pool2d(rgb, 3, 1).flatten(2)
    colours = colours - colours.mean(2, keepdim=True)
    variances = torch.linalg.eigvalsh(colours @ colours.transpose(1, 2) / colours.shape[2])
    return variances[:, 1].clamp(min=0).sqrt()


def _without_outline(rgb: Tensor, shape: Tensor, ink: Tensor, from_ink: Tensor) -> Tensor:
    """The object on white. Its ink becomes white too; a mixture of ink and fill becomes one of white and fill."""
    white = torch.tensor(_WHITE)[:, None, None]
    ring = shape & ~_shrunk(shape, 3) & (from_ink < NEAR_INK)
    inside = shape & (from_ink >= NEAR_INK)
    # the fill next to a pixel: its neighbour that is least like ink
    _, place = F.max_pool2d(torch.where(inside, from_ink, -1.0)[:, None], 3, 1, 1, return_indices=True)
    fill = rgb.flatten(2).gather(2, place.flatten(2).expand(-1, 3, -1)).view_as(rgb)
    way, start = fill - ink[:, :, None, None], rgb - ink[:, :, None, None]
    share = ((start * way).sum(1, True) / way.square().sum(1, True).clamp(min=1e-3)).clamp(0, 1)
    on_the_line = (start - share * way).norm(dim=1) < ON_A_LINE
    mixed = shape & _grown(ring) & ~ring & on_the_line & ~_shrunk(shape, 4)
    plain = torch.where(mixed[:, None], share * fill + (1 - share) * white, rgb)
    # a mixture of ink and paper: at the rim, and not next to the fill
    outer = shape & ~_shrunk(shape, 2) & ~_grown(inside & _shrunk(shape, 2))
    return torch.where((~shape | ring | outer)[:, None], white, plain)


def _grown(mask: Tensor, by: int = 1) -> Tensor:
    """A mask [B, H, W] and what is so near to it."""
    return F.max_pool2d(mask.float()[:, None], 2 * by + 1, 1, by)[:, 0] > 0.5


def _shrunk(mask: Tensor, by: int = 1) -> Tensor:
    return ~_grown(~mask, by)


def _from_the_frame(mask: Tensor) -> Tensor:
    """The parts of a mask [B, H, W] that reach the frame."""
    frame = torch.zeros_like(mask)
    frame[:, [0, -1]] = frame[:, :, [0, -1]] = True
    found = frame & mask
    for _ in range(sum(mask.shape[1:])):
        larger = _grown(found) & mask
        if torch.equal(larger, found):
            break
        found = larger
    return found


def _median(rgb: Tensor, where: Tensor) -> Tensor:
    """Median colours [B, 3] over masks [B, H, W]; NaN where a mask is empty."""
    return torch.where(where[:, None], rgb, torch.nan).flatten(2).nanmedian(-1).values
