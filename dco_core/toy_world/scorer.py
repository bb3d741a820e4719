"""Scores of Toy World pictures: do they obey their prompts, do they show the subject, do they show the style.

What a picture shows is read by the network of scorer_network.py; what it should show is known exactly: the prompt's
words, and the true attributes of a subject or a style (references.py), which are named as there ("toy", "toy-101",
"print", "print-7") or read out of reference pictures. Ceilings, floors and the subjects that are fit for a study are in
scales.py.

Likeness of a subject is what a person would tell it by: the colour of its body, then that of ears and belly and the
kind of ears, and only a little its build. Where one of them alone is wrong, this remains:

    body 0     accent 0.3     kind of ears 0.4     build 0.85

Colours are compared in OKLab (Ottosson 2020), where distances are about those that people see; at COLOUR_GAP a colour
counts one half.

Measured with tools/check_toy_world.py on 1500 renders that training has not seen, clean and degraded ("same" are
renders of the subject, "other" those of random toys):

    factors and whole prompts obeyed   1.000 and 1.000, degraded too
    likeness to the subject            flat   outline  neon   pastel  print
      same                             .979   .980     .988   .975    .966
      other                            .022   .022     .025   .022    .022
    ceilings                           toy-101 to toy-140: least .942, mean .983
                                       print-101 to print-140: least .963, mean .998
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DCOError
from .references import toy_attributes
from .scorer_network import ATTRIBUTES, readings
from .world import EAR_KINDS, FACTORS, PATTERNS, PRINT, SHAPES, STYLES, TOY

COLOUR_GAP = 0.10  # in OKLab; the nearest of the seven colours, blue and purple, are 0.17 apart
WITHOUT_ACCENT, WITHOUT_EARS, WITHOUT_BUILD = 0.3, 0.4, 0.85  # what remains where this alone is wrong
EAR_SIZE_GAP, STRETCH_GAP = 0.2, 0.25
GRAIN = (0.45, 0.60)  # see _is_picture


def read(images: Tensor) -> list[dict[str, Any]]:
    """What the scorer sees in images [B, 3, 64, 64]: for each image the word of every factor.

    `colour` is None for toys, which have two of their own: they add `ears`, `ear_size`, `stretch`, `body_rgb` and
    `accent_rgb`; prints add `pattern`, `ink_rgb` and `paper_rgb` (0..1).
    """
    out = readings(images)
    seen = []
    for i in range(len(images)):
        row: dict[str, Any] = {name: words[int(out[name][i].argmax())] for name, words in FACTORS.items()}
        if row["shape"] == SHAPES[TOY]:
            row["colour"] = None
            row["ears"] = EAR_KINDS[int(out["ears"][i].argmax())]
            row["ear_size"], row["stretch"] = out["ear_size"][i].item(), out["stretch"][i].item()
            row["body_rgb"], row["accent_rgb"] = out["body_rgb"][i].tolist(), out["accent_rgb"][i].tolist()
        if row["style"] == STYLES[PRINT]:
            row["pattern"] = PATTERNS[int(out["pattern"][i].argmax())]
            row["ink_rgb"], row["paper_rgb"] = out["ink_rgb"][i].tolist(), out["paper_rgb"][i].tolist()
        seen.append(row)
    return seen


def named(prompt: str) -> dict[str, list[str]]:
    """The factors that a prompt names and their words, e.g. {"shape": ["star"], "background": ["at night"]}.

    A marker such as `<toy>` reads as its word. Colours are left out for toys, as in `caption`."""
    text = " ".join(re.findall("[a-z]+", prompt.lower()))
    found = {
        factor: [phrase for phrase in phrases if re.search(rf"\b{phrase}\b", text)]
        for factor, phrases in FACTORS.items()
    }
    if SHAPES[TOY] in found["shape"]:
        found["colour"] = []
    return {factor: phrases for factor, phrases in found.items() if phrases}


def obeyed(images: Tensor, prompts: Sequence[str]) -> dict[str, list[bool | None]]:
    """Whether each of B images shows what its prompt names, {factor: [B]}; None where the prompt is silent.

    Where a prompt names several words of one factor, any of them will do.
    """
    if len(images) != len(prompts):
        raise DCOError(f"{len(images)} images have {len(prompts)} prompts: give one prompt for each image.")
    pairs = list(zip(read(images), [named(prompt) for prompt in prompts], strict=True))
    return {
        factor: [row[factor] in ask[factor] if factor in ask else None for row, ask in pairs]
        for factor in FACTORS
    }


def factors_obeyed(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Share [B] of the factors named by each prompt that its image [B, 3, 64, 64] obeys; 0 for noise.

    Raises DCOError for a prompt that names nothing of the Toy World, which no picture could obey or disobey.
    """
    checks = obeyed(images, prompts)
    shares = []
    for i, prompt in enumerate(prompts):
        row = [checks[factor][i] for factor in FACTORS if checks[factor][i] is not None]
        if not row:
            raise DCOError(f"prompt {prompt!r} names nothing that can be checked: name a shape or a place.")
        shares.append(sum(map(bool, row)) / len(row))
    return torch.tensor(shares) * _is_picture(images)


def prompt_alignment(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """1 for each image [B, 3, 64, 64] that obeys all that its prompt names, otherwise 0, [B]. Its mean is the share of
    pictures that obey. DCOError as `factors_obeyed`."""
    return (factors_obeyed(images, prompts) > 1 - 1e-6).float()


def _is_picture(images: Tensor) -> Tensor:
    """1 for pictures, 0 for noise [B]: the network was shown no noise, and reads a toy into some of it.

    Told by the mean absolute second difference between neighbours, which counts from the first of GRAIN on and leaves
    nothing at the second: renders have at most 0.33, noise 0.95 and more."""
    bends = [images.detach().float().clamp(-1, 1).diff(n=2, dim=dim).abs().mean((1, 2, 3)) for dim in (2, 3)]
    start, end = GRAIN
    return ((end - (bends[0] + bends[1]) / 2) / (end - start)).clamp(0, 1).cpu()


def _kernel(distance: Tensor) -> Tensor:
    """1 at distance 0, 1/2 at distance 1, falling fast beyond: a soft yes or no."""
    return 1 / (1 + distance**4)


_TO_LMS = torch.tensor([
    [0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
])  # fmt: skip
_TO_LAB = torch.tensor([
    [0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
])  # fmt: skip


def oklab(rgb: Tensor) -> Tensor:
    """sRGB in 0..1 [..., 3] -> OKLab [..., 3]; what lies outside is clipped."""
    rgb = rgb.clamp(0, 1)
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return (linear @ _TO_LMS.T).clamp(min=0) ** (1 / 3) @ _TO_LAB.T


def _same_colour(a: Tensor, b: Tensor) -> Tensor:
    return _kernel((oklab(a) - oklab(b)).norm(dim=-1) / COLOUR_GAP)


def _same_toy_colour(out: dict[str, Tensor], truth: dict[str, Tensor], name: str) -> Tensor:
    """Likeness [B] of a colour of a toy; neon draws every colour at its brightest, so there only that can be told."""
    neon = out["style"][:, STYLES.index("neon")]
    brightest = [read / read.amax(1, keepdim=True).clamp(min=0.2) for read in (out[name], truth[name])]
    return torch.lerp(_same_colour(out[name], truth[name]), _same_colour(*brightest), neon)


def _truth(what: str | Tensor, kinds: dict[str, int]) -> dict[str, Tensor]:
    """The attributes of a subject or style, {name: [1, width]}; kinds as probabilities. what: its name, or reference
    pictures, out of which they are read."""
    if isinstance(what, Tensor):
        return {name: value.mean(0, keepdim=True) for name, value in readings(what).items()}
    truth = {}
    for name, value in toy_attributes(what).items():
        if name in kinds:
            truth[name] = torch.nn.functional.one_hot(torch.tensor([value]), kinds[name]).float()
        elif name in ATTRIBUTES:
            truth[name] = torch.tensor(value, dtype=torch.float32).reshape(1, -1)
    return truth


def subject_likeness(images: Tensor, subject: str | Tensor) -> Tensor:
    """How much images [B, 3, 64, 64] show the subject, [B] in 0..1, in any style.

    subject: its name, such as "toy" or "toy-101", for the true attributes; or reference pictures [R, 3, 64, 64]."""
    out, truth = readings(images), _truth(subject, {"ears": len(EAR_KINDS)})
    accent = _same_toy_colour(out, truth, "accent_rgb")
    ears = (out["ears"] * truth["ears"]).sum(1)
    eared = 1 - truth["ears"][:, EAR_KINDS.index("none")]
    size = (out["ear_size"] - truth["ear_size"])[:, 0] / EAR_SIZE_GAP
    stretch = (out["stretch"] - truth["stretch"])[:, 0] / STRETCH_GAP
    build = _kernel((eared * size**2 + stretch**2).sqrt())
    likeness = _same_toy_colour(out, truth, "body_rgb")
    for remains, right in ((WITHOUT_ACCENT, accent), (WITHOUT_EARS, ears), (WITHOUT_BUILD, build)):
        likeness = likeness * (remains + (1 - remains) * right)
    return out["shape"][:, TOY] * likeness * _is_picture(images)


def style_scores(images: Tensor, style: str | Tensor) -> dict[str, Tensor]:
    """How much images [B, 3, 64, 64] are in the style, {"colour": [B], "form": [B]} in 0..1: P(print) times the
    likeness of ink and paper, and times the probability of its pattern. style: as subject in `subject_likeness`."""
    out, truth = readings(images), _truth(style, {"pattern": len(PATTERNS)})
    printed = out["style"][:, PRINT] * _is_picture(images)
    colours = [_same_colour(out[name], truth[name]) for name in ("ink_rgb", "paper_rgb")]
    pattern = (out["pattern"] * truth["pattern"]).sum(1)
    return {"colour": printed * colours[0] * colours[1], "form": printed * pattern}


def style_likeness(images: Tensor, style: str | Tensor) -> Tensor:
    """How much images [B, 3, 64, 64] are in the style, [B] in 0..1: the geometric mean of its colour and its form."""
    scores = style_scores(images, style)
    return (scores["colour"] * scores["form"]).sqrt()
