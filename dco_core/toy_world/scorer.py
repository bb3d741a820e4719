"""Scorers of the Toy World: does a picture obey its prompt, does it show the subject, does it show the style.

A small CNN reads the world's factors and the attributes of toys and prints out of a picture. It is trained on
renders that are blurred, grainy and off in colour as model samples are, and unlike the base model it has seen
every toy and every print, the subject and the style included (sample_scenes(hold_out=False)).

Measured with: python tools/train_toy_scorer.py --evaluate (1536 new scenes; 400k training images, seed 0).
"Degraded" renders are blurred, tinted and grainy.

    accuracy   shape  colour  size   position  background  style  ears of toys
    clean      .999   1.000   1.000  1.000     1.000       .999   .995
    degraded   .988   .998    .999   1.000     .999        .999   .979

    prompt_alignment of true renders   clean  degraded
    the subject                        .999   .999
    the style                          .997   .995

    subject_likeness     clean: same  other  AUC      degraded: same  other  AUC
    flat                        .942  .034   .999               .933  .034   .999
    outline                     .957  .033   .999               .952  .034  1.000
    neon                        .949  .036   .999               .937  .036   .999
    pastel                      .927  .038   .999               .864  .038   .996
    print (form alone)          .958  .211   .971               .953  .213   .969
    objects that are no toy            .000                            .001
    style_likeness
    other prints                .982  .077   .999               .973  .077   .999
    other styles                       .000                            .000

    what one score alone would take for success, on the evaluation prompts (prompts/)
                                      customization   stylization   style
    copies of references  likeness        .984            .984       1.000
                          alignment       .580            .383        .444   (some factors agree by chance)
    base model's samples  likeness        .028            .029        .045
                          alignment       .995            .994        .983
    noise                 both            .000            .000        .000

"Same" is the subject (the style) in random scenes, against the references of world.py; "other" are random toys
(prints).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import DCOError
from .world import EAR_KINDS, FACTORS, PRINT, SHAPES, STYLES, TOY

WEIGHTS = Path(__file__).with_name("scorer.safetensors")

# Attributes are read as centre + scale * output; RGB and sizes in the units of world.Scenes.
ATTRIBUTES = {
    "body_rgb": (3, 0.5, 0.30), "accent_rgb": (3, 0.5, 0.30), "ear_size": (1, 0.425, 0.072),
    "stretch": (1, 1.025, 0.10), "ink_rgb": (3, 0.2, 0.15), "paper_rgb": (3, 0.75, 0.20),
}  # fmt: skip
# Differences at which one attribute alone halves the likeness; chosen for the separation measured above.
COLOUR_GAP, EARS_GAP, EAR_SIZE_GAP, STRETCH_GAP = 0.5, 0.6, 0.15, 0.2
INKS_GAP = 0.27
# Mean absolute second difference between neighbours, at which a picture begins to count less and counts no more:
# renders stay below 0.26, degraded ones below 0.34, samples at three times the usual guidance below 0.28; noise has
# 0.95 and more.
GRAIN = (0.40, 0.55)
HEADS = {
    **{name: len(values) for name, values in FACTORS.items()},
    "ears": len(EAR_KINDS),
    **{name: width for name, (width, _, _) in ATTRIBUTES.items()},
}


class Scorer(nn.Module):
    """Images [B, 3, 32, 32] in about -1..1 -> outputs {head: [B, width]}, heads as in HEADS: logits for the
    factors and `ears`, attributes in their own units for the rest."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, kernel, stride in ((32, 4, 2), (48, 3, 1), (64, 3, 2), (64, 3, 1), (96, 3, 2), (96, 3, 1)):
            convolution = nn.Conv2d(channels, width, kernel, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 16, 128), nn.ReLU())
        self.heads = nn.Linear(128, sum(HEADS.values()))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.heads(self.features(images.clamp(-1, 1))).split(list(HEADS.values()), dim=1)
        read = dict(zip(HEADS, outputs, strict=True))
        for name, (_, centre, scale) in ATTRIBUTES.items():
            read[name] = centre + scale * read[name]
        return read


@functools.cache
def load_scorer() -> Scorer:
    """The shipped scorer in fp32, frozen."""
    scorer = Scorer()
    weights = {name: value.float() for name, value in load_file(WEIGHTS).items()}
    scorer.load_state_dict(weights, strict=False)  # BatchNorm's step counters are not shipped
    return scorer.eval().requires_grad_(False)


def _outputs(images: Tensor) -> dict[str, Tensor]:
    """Probabilities and attributes the shipped scorer gives images [B, 3, 32, 32], {head: [B, width]}."""
    if images.ndim != 4 or images.shape[1:] != (3, 32, 32):
        raise DCOError(
            f"images of shape {list(images.shape)} cannot be scored: give Toy World images [B, 3, 32, 32]."
        )
    with torch.no_grad():
        chunks = [load_scorer()(chunk) for chunk in images.detach().float().cpu().split(256)]
    joined = {name: torch.cat([chunk[name] for chunk in chunks]) for name in HEADS}
    return {name: out if name in ATTRIBUTES else out.softmax(1) for name, out in joined.items()}


def read(images: Tensor) -> list[dict[str, Any]]:
    """What the scorer sees in images [B, 3, 32, 32]: for each image the word of every factor.

    `colour` is None for toys and prints, which have no colour of their own. Toys add `ears`, `ear_size` and
    `stretch`, unless printed also `body_rgb` and `accent_rgb`; prints add `ink_rgb` and `paper_rgb` (0..1).
    """
    out = _outputs(images)
    seen = []
    for i in range(len(images)):
        row: dict[str, Any] = {name: words[int(out[name][i].argmax())] for name, words in FACTORS.items()}
        toy, printed = row["shape"] == SHAPES[TOY], row["style"] == STYLES[PRINT]
        if toy or printed:
            row["colour"] = None
        if toy:
            row["ears"] = EAR_KINDS[int(out["ears"][i].argmax())]
            row["ear_size"], row["stretch"] = out["ear_size"][i].item(), out["stretch"][i].item()
        if toy and not printed:
            row["body_rgb"], row["accent_rgb"] = out["body_rgb"][i].tolist(), out["accent_rgb"][i].tolist()
        if printed:
            row["ink_rgb"], row["paper_rgb"] = out["ink_rgb"][i].tolist(), out["paper_rgb"][i].tolist()
        seen.append(row)
    return seen


def named(prompt: str) -> dict[str, list[str]]:
    """The factors that a prompt names and their words, e.g. {"shape": ["star"], "background": ["at night"]}.

    A marker such as `<toy>` reads as its word. Colours are left out for toys and prints, as in `caption`."""
    text = " ".join(re.findall("[a-z]+", prompt.lower()))
    found = {
        factor: [phrase for phrase in phrases if re.search(rf"\b{phrase}\b", text)]
        for factor, phrases in FACTORS.items()
    }
    if SHAPES[TOY] in found["shape"] or STYLES[PRINT] in found["style"]:
        found["colour"] = []
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


def prompt_alignment(images: Tensor, prompts: Sequence[str]) -> Tensor:
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


def _is_picture(images: Tensor) -> Tensor:
    """1 for pictures, 0 for noise [B]: the network was shown no noise, and reads a toy into some of it."""
    bends = [images.detach().float().clamp(-1, 1).diff(n=2, dim=dim).abs().mean((1, 2, 3)) for dim in (2, 3)]
    start, end = GRAIN
    return ((end - (bends[0] + bends[1]) / 2) / (end - start)).clamp(0, 1).cpu()


def _kernel(distance: Tensor) -> Tensor:
    """1 at distance 0, 1/2 at distance 1, falling fast beyond: a soft yes or no."""
    return 1 / (1 + distance**4)


def subject_likeness(images: Tensor, references: Tensor) -> Tensor:
    """How much images [B, 3, 32, 32] show the toy of the references [R, 3, 32, 32], [B] in 0..1.

    P(toy) times a kernel on the distance of the toy attributes from their mean over the references: colours
    of body and accent, kind and size of the ears, stretch. Colours do not count in prints, whose two inks
    hide them: there the likeness is one of form alone, and other toys can have the same form.
    """
    out, reference = _outputs(images), {k: v.mean(0, keepdim=True) for k, v in _outputs(references).items()}
    gap = {name: ((out[name] - reference[name]) ** 2).sum(1) for name in ATTRIBUTES}
    colour = (gap["body_rgb"] + gap["accent_rgb"]) / COLOUR_GAP**2
    eared = 1 - reference["ears"][:, EAR_KINDS.index("none")]
    form = (
        (1 - (out["ears"] * reference["ears"]).sum(1)) / EARS_GAP**2
        + eared * gap["ear_size"] / EAR_SIZE_GAP**2
        + gap["stretch"] / STRETCH_GAP**2
    )
    distance = ((1 - out["style"][:, PRINT]) * colour + form).sqrt()
    return out["shape"][:, TOY] * _kernel(distance) * _is_picture(images)


def style_likeness(images: Tensor, references: Tensor) -> Tensor:
    """How much images [B, 3, 32, 32] are prints in the inks of the references [R, 3, 32, 32], [B] in 0..1.

    P(print) times a kernel on the distance of ink and paper colour to their mean over the references.
    """
    out, reference = _outputs(images), {k: v.mean(0, keepdim=True) for k, v in _outputs(references).items()}
    inks = [out[name] - reference[name] for name in ("ink_rgb", "paper_rgb")]
    likeness = out["style"][:, PRINT] * _kernel(torch.cat(inks, 1).norm(dim=1) / INKS_GAP)
    return likeness * _is_picture(images)
