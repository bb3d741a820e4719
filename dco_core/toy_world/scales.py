"""What scores mean: the ceiling that true renders reach and whether a subject is fit for a study.

The floor of a score is what the base model has on the same prompts; the caller samples it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DCOError
from .references import toy_attributes
from .renderer import render
from .scorer import named, style_likeness, subject_likeness
from .world import FACTORS, PRINT, TOY, Scenes, sample_scenes

FIT = 0.9  # the ceiling a subject or a style needs in a study
_CHECKED = 96  # scenes that its ceiling is measured on


def true_renders(
    prompts: Sequence[str], subject: str | None = None, style: str | None = None, seed: int = 0
) -> Tensor:
    """One picture [B, 3, 64, 64] for each prompt that obeys it exactly: what a model that knew everything would draw.
    Scored like samples they give the ceiling of every score. What a prompt leaves open is random.

    subject, style: the toy and the print that the prompts' words mean, named as in `toy_attributes`; None: any."""
    generator = torch.Generator().manual_seed(seed)
    scenes = sample_scenes(len(prompts), generator, hold_out=False)
    chosen = {factor: getattr(scenes, factor).clone() for factor in FACTORS}
    for i, prompt in enumerate(prompts):
        for factor, words in named(prompt).items():
            chosen[factor][i] = FACTORS[factor].index(words[0])
    scenes = _placed(scenes, chosen, seed)
    for what in (subject, style):
        if what is not None:
            scenes = scenes.with_(**toy_attributes(what))
    return render(scenes)


def _placed(scenes: Scenes, chosen: dict[str, Tensor], seed: int) -> Scenes:
    """The scenes with other factors, and sizes and places in pixels that are right for them."""
    pool = sample_scenes(384, torch.Generator().manual_seed(seed + 1))
    radius, centre = scenes.radius.clone(), scenes.centre.clone()
    for i in range(len(scenes)):
        of_size = (pool.size == chosen["size"][i]).nonzero().flatten()
        at_place = (pool.position == chosen["position"][i]).nonzero().flatten()
        radius[i] = pool.radius[of_size[i % len(of_size)]]
        centre[i] = pool.centre[at_place[i % len(at_place)]]
    return scenes.with_(**chosen, radius=radius, centre=centre)


def ceiling(what: str) -> float:
    """Mean likeness in 0..1 of true renders of a subject or a style in every place, size and style; of a style, of
    every object in it. Named as in `toy_attributes`."""
    attributes = toy_attributes(what)
    is_toy = what.startswith("toy")
    kind = {"shape": TOY} if is_toy else {"style": PRINT}
    scenes = sample_scenes(_CHECKED, torch.Generator().manual_seed(77), hold_out=False)
    pictures = render(scenes.with_(**kind, **attributes))
    return (subject_likeness if is_toy else style_likeness)(pictures, what).mean().item()


def fit(what: str) -> bool:
    """Whether a study may use a subject or a style: its own true renders score FIT or more."""
    return ceiling(what) >= FIT


def fit_numbers(kind: str, count: int, first: int = 101) -> list[str]:
    """The first `count` subjects (kind "toy") or styles ("print") from a number on that are fit for a study."""
    if kind not in ("toy", "print"):
        raise DCOError(f'"{kind}" is no kind of reference: use toy or print.')
    found: list[str] = []
    number = first
    while len(found) < count:
        if fit(f"{kind}-{number}"):
            found.append(f"{kind}-{number}")
        number += 1
    return found
