"""Scores of Toy World pictures: do they obey their prompts, do they show the subject, do they show the style.

What a picture shows is read by the network of scorer_network.py. What it should show is known exactly: the prompt's
words, and the true attributes of a subject or a style, which are named as in references.py ("toy", "toy-101", "print",
"print-7") or read out of reference pictures.

Likeness of a subject is what a person would tell it by: the colour of its body, then that of ears and belly and the
kind of ears, and only a little its build. Where one of them alone is wrong, this remains:

    body 0     accent 0.3     kind of ears 0.4     build 0.85

Colours are compared in OKLab (Ottosson 2020), where distances are about those that people see. A print hides them in
its two inks: there only ears and build can be told, and other toys have them too. A sketch shows them; it is read by
its pixels, and its object by the network on white (sketches.py).

Measured with: python tools/train_toy_scorer.py --evaluate (1536 new scenes; 400k training images, seed 0). "Degraded"
renders are blurred, tinted and grainy. "Same" is the subject (the style) in random scenes, against its true attributes;
"other" are random toys (prints).

    accuracy   shape  colour  size   position  background  style  ears of toys
    clean      .999   1.000   1.000  1.000     1.000       .999   .995
    degraded   .988   .998    .999   1.000     .999        .999   .979

    prompt_alignment of true renders   clean  degraded
    the subject                        .997   .997
    the style                          .985   .975

    subject_likeness     clean: same  other  AUC      degraded: same  other  AUC
    flat                        .917  .041   1.000              .914  .043   1.000
    outline                     .918  .047   1.000              .898  .047   1.000
    neon                        .946  .042   .999               .942  .042   .999
    pastel                      .949  .050   1.000              .894  .052   .998
    print (form alone)          .982  .532   .953               .984  .520   .953
    objects that are no toy            .001                            .002

Sketches, which the network has never seen: true renders of "toy" in sketch-101 to 110 (48 of each) are found to be
sketches in 99 of 100 cases, have a style score of .98 to 1.00 (degraded .91 to .99), against another sketch .00, a
likeness of .90 to .94 (to toy-101 .01), and obey all of their prompt; things in them obey .92 to 1.00 (degraded .83 to
1.00). Of 10000 other renders none was taken for a sketch, of as many degraded ones 1.

The ceiling of a subject, its true renders of a study's prompts, is .93 for "toy" and .92 on average over numbered ones;
of the least read it is .5, which is why studies choose theirs by it (evidence/toy_prompts.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DCOError
from .references import kind_of, toy_attributes
from .scorer_network import ATTRIBUTES, readings
from .sketches import Sketches, read_sketches
from .world import EAR_SHAPES, FACTORS, PATTERNS, PRINT, SHAPES, SKETCH_WORD, STYLES, TOY, WORDS

# Differences in OKLab at which a colour counts one half. The nearest of the seven colours, blue and purple, are 0.17
# apart. The colours of a small toy are read less exactly than the inks of a whole picture.
COLOUR_GAP, INK_GAP = 0.14, 0.10
WITHOUT_ACCENT, WITHOUT_EARS, WITHOUT_BUILD = 0.3, 0.4, 0.85  # what remains where this alone is wrong
_STYLE_COLOURS = ("ink_rgb", "paper_rgb")
EAR_SIZE_GAP, STRETCH_GAP = 0.2, 0.25
# Mean absolute second difference between neighbours, at which a picture begins to count less and counts no more:
# renders stay below 0.26, degraded ones below 0.34, samples at three times the usual guidance below 0.28; noise has
# 0.95 and more.
GRAIN = (0.40, 0.55)


def _readings(images: Tensor) -> tuple[dict[str, Tensor], Sketches]:
    """What the network reads, of sketches without their paper and outline; and what those are."""
    sketches = read_sketches(images)
    return readings(sketches.plain.where(sketches.found[:, None, None, None], images.detach().float().cpu())), sketches


def read(images: Tensor) -> list[dict[str, Any]]:
    """What the scorer sees in images [B, 3, 32, 32]: for each image the word of every factor.

    `colour` is None for toys and prints, which have no colour of their own, `background` for sketches. Toys add `ears`,
    `ear_size` and `stretch`, unless printed also `body_rgb` and `accent_rgb`; prints and sketches add `ink_rgb` and
    `paper_rgb` (0..1), sketches `pattern`.
    """
    out, sketches = _readings(images)
    seen = []
    for i in range(len(images)):
        row: dict[str, Any] = {name: words[int(out[name][i].argmax())] for name, words in FACTORS.items()}
        toy, printed = row["shape"] == SHAPES[TOY], row["style"] == STYLES[PRINT]
        if sketches.found[i]:
            printed = False
            row |= {"style": SKETCH_WORD, "background": None, "pattern": PATTERNS[sketches.patterned[:, i].argmax()]}
            row |= {name: getattr(sketches, name)[i].tolist() for name in _STYLE_COLOURS}
        if toy or printed:
            row["colour"] = None
        if toy:
            row["ears"] = EAR_SHAPES[int(out["ears"][i].argmax())]
            row["ear_size"], row["stretch"] = out["ear_size"][i].item(), out["stretch"][i].item()
        if toy and not printed:
            row["body_rgb"], row["accent_rgb"] = out["body_rgb"][i].tolist(), out["accent_rgb"][i].tolist()
        if printed:
            row["ink_rgb"], row["paper_rgb"] = out["ink_rgb"][i].tolist(), out["paper_rgb"][i].tolist()
        seen.append(row)
    return seen


def named(prompt: str) -> dict[str, list[str]]:
    """The factors that a prompt names and their words, e.g. {"shape": ["star"], "background": ["at night"]}.

    A marker such as `<toy>` reads as its word. Colours are left out for toys and prints, backgrounds for sketches, as
    in `caption`."""
    text = " ".join(re.findall("[a-z]+", prompt.lower()))
    found = {
        factor: [phrase for phrase in phrases if re.search(rf"\b{phrase}\b", text)]
        for factor, phrases in WORDS.items()
    }
    if SHAPES[TOY] in found["shape"] or STYLES[PRINT] in found["style"]:
        found["colour"] = []
    if SKETCH_WORD in found["style"]:
        found["background"] = []
    return {factor: phrases for factor, phrases in found.items() if phrases}


def obeyed(images: Tensor, prompts: Sequence[str]) -> dict[str, list[bool | None]]:
    """Whether each of B images shows what its prompt names, {factor: [B]}; None where the prompt is silent.

    Where a prompt names several words of one factor, any of them will do.
    """
    if len(images) != len(prompts):
        raise DCOError(f"{len(images)} images have {len(prompts)} prompts: give one prompt for each image.")
    seen, asked = read(images), [named(prompt) for prompt in prompts]
    pairs = list(zip(seen, asked, strict=True))
    return {
        factor: [row[factor] in ask[factor] if factor in ask else None for row, ask in pairs]
        for factor in FACTORS
    }


def factors_obeyed(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Share [B] of the factors named by each prompt that its image [B, 3, 32, 32] obeys; 0 for noise.

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
    """1 for each image [B, 3, 32, 32] that obeys all that its prompt names, otherwise 0, [B]: one thing out of six that
    is wrong spoils a picture. The mean is the share of pictures that obey. DCOError as in `factors_obeyed`."""
    return (factors_obeyed(images, prompts) > 1 - 1e-6).float()


def _is_picture(images: Tensor) -> Tensor:
    """1 for pictures, 0 for noise [B]: the network was shown no noise, and reads a toy into some of it."""
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


def _same_colour(a: Tensor, b: Tensor, gap: float) -> Tensor:
    return _kernel((oklab(a) - oklab(b)).norm(dim=-1) / gap)


def _same_toy_colour(out: dict[str, Tensor], truth: dict[str, Tensor], name: str) -> Tensor:
    """Likeness [B] of a colour of a toy; neon draws every colour at its brightest, so there only that can be told."""
    neon = out["style"][:, STYLES.index("neon")]
    brightest = [read / read.amax(1, keepdim=True).clamp(min=0.2) for read in (out[name], truth[name])]
    same = _same_colour(out[name], truth[name], COLOUR_GAP)
    return torch.lerp(same, _same_colour(brightest[0], brightest[1], COLOUR_GAP), neon)


def _truth(what: str | Tensor, categories: dict[str, int]) -> dict[str, Tensor]:
    """The attributes of a subject or style, {name: [1, width]}; categories as probabilities. what: its name, or
    reference pictures, out of which they are read."""
    if isinstance(what, Tensor):
        return {name: value.mean(0, keepdim=True) for name, value in _readings(what)[0].items()}
    truth = {}
    for name, value in toy_attributes(what).items():
        if name in categories:
            truth[name] = F.one_hot(torch.tensor([value]), categories[name]).float()
        elif name in ATTRIBUTES:
            truth[name] = torch.tensor(value, dtype=torch.float32).reshape(1, -1)
    return truth


def subject_likeness(images: Tensor, subject: str | Tensor, style: str | None = None) -> Tensor:
    """How much images [B, 3, 32, 32] show the subject, [B] in 0..1. In prints it is a likeness of form alone.

    subject: its name, such as "toy" or "toy-101", for the true attributes; or reference pictures [R, 3, 32, 32]. style:
    the name of the style that was asked for; with a sketch colours count in every picture, also in one that has come
    out as a print."""
    out, truth = _readings(images)[0], _truth(subject, {"ears": len(EAR_SHAPES)})
    printed = out["style"][:, PRINT]
    if style is not None and kind_of(style) == SKETCH_WORD:
        printed = torch.zeros_like(printed)
    body, accent = (
        torch.lerp(_same_toy_colour(out, truth, name), torch.ones(len(images)), printed)
        for name in ("body_rgb", "accent_rgb")
    )
    ears = (out["ears"] * truth["ears"]).sum(1)
    eared = 1 - truth["ears"][:, EAR_SHAPES.index("none")]
    size = (out["ear_size"] - truth["ear_size"])[:, 0] / EAR_SIZE_GAP
    stretch = (out["stretch"] - truth["stretch"])[:, 0] / STRETCH_GAP
    build = _kernel((eared * size**2 + stretch**2).sqrt())
    likeness = body
    for remains, right in ((WITHOUT_ACCENT, accent), (WITHOUT_EARS, ears), (WITHOUT_BUILD, build)):
        likeness = likeness * (remains + (1 - remains) * right)
    return out["shape"][:, TOY] * likeness * _is_picture(images)


def _style_truth(style: str | Tensor) -> tuple[dict[str, Tensor], int | None]:
    """The colours of a style, {name: [1, 3]}, and the pattern of a sketch, None of a print."""
    if isinstance(style, str):
        return _truth(style, {}), toy_attributes(style).get("pattern")
    sketches = read_sketches(style)
    if sketches.found.float().mean() <= 0.5:
        return _truth(style, {}), None
    truth = {name: getattr(sketches, name).mean(0, keepdim=True) for name in _STYLE_COLOURS}
    return truth, int(sketches.patterned.mean(1).argmax())


def style_scores(images: Tensor, style: str | Tensor) -> dict[str, Tensor]:
    """How much images [B, 3, 32, 32] are in the style, {"colour": [B], "form": [B]} in 0..1. form: drawn as such
    pictures are, in whatever colours: for a print P(print), two inks and no more; for a sketch an outline, and paper
    with the right pattern. colour: form times the likeness of both colours, ink and paper. style: as subject in
    `subject_likeness`."""
    out, sketches = _readings(images)
    truth, pattern = _style_truth(style)
    seen = out if pattern is None else {name: getattr(sketches, name) for name in _STYLE_COLOURS}
    form = out["style"][:, PRINT] if pattern is None else sketches.patterned[pattern] * sketches.outlined
    form = form * _is_picture(images)
    ink, paper = (_same_colour(seen[name], truth[name], INK_GAP) for name in _STYLE_COLOURS)
    return {"colour": form * ink * paper, "form": form}


def style_likeness(images: Tensor, style: str | Tensor) -> Tensor:
    """How much images [B, 3, 32, 32] are in the style, [B] in 0..1: the colour of `style_scores`, which needs the form
    too."""
    return style_scores(images, style)["colour"]
