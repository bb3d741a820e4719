"""Prompts of the Toy World for a study, by rule: that change some of what the references show or all of it, and that
show other things; and true renders of a prompt, which are what a perfect model would draw."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DCOError
from ..toy_world import scorer
from ..toy_world.references import kind_of, toy_references
from ..toy_world.renderer import render
from ..toy_world.world import PRINT, SKETCH, SKETCH_WORD, TOY, WORDS, Scenes, caption, sample_scenes
from .prompts import FAR, NEAR

_SCENE = (
    "size",
    "position",
    "background",
    "style",
)  # what references have in common, and a prompt may change
_NOT_THINGS = ("centre", "radius", "rotation")
_POOL = 4096


@functools.cache
def _pool(seed: int) -> Scenes:
    return sample_scenes(_POOL, torch.Generator().manual_seed(seed))


def _first(allowed: Tensor, count: int, texts: Sequence[str]) -> list[str]:
    """The first `count` different texts of the scenes that are allowed."""
    found = list(dict.fromkeys(texts[i] for i in allowed.nonzero()[:, 0].tolist()))
    if len(found) < count:
        raise DCOError(f"The Toy World has {len(found)} such prompts, not {count}: ask for fewer.")
    return found[:count]


@functools.cache
def _texts(seed: int, toys: bool) -> list[str]:
    scenes = _pool(seed)
    scenes = scenes.with_(shape=TOY) if toys else scenes
    return [caption(scenes, i) for i in range(len(scenes))]


def subject_prompts(count: int) -> list[tuple[str, str]]:
    """(NEAR or FAR, prompt) of a toy, half and half. Near: large, flat, as the references are, in another place; far:
    another size, position, place and style. Drawn once and for all from seed 4101, whatever is taught."""
    reference, _ = toy_references("toy")
    scenes, known = _pool(4101), {name: getattr(reference, name)[0] for name in _SCENE}
    same = {name: getattr(scenes, name) == value for name, value in known.items()}
    no_print = scenes.style != PRINT
    near = same["size"] & same["style"] & ~same["background"]
    far = no_print & ~same["size"] & ~same["position"] & ~same["background"] & ~same["style"]
    texts, half = _texts(4101, True), count // 2
    return [(NEAR, text) for text in _first(near, count - half, texts)] + [
        (FAR, text) for text in _first(far, half, texts)
    ]


def other_prompts(count: int) -> list[str]:
    """Prompts of things that are no toys, none of them printed: what neither subject nor style should touch."""
    scenes = _pool(4102)
    return _first((scenes.shape != TOY) & (scenes.style != PRINT), count, _texts(4102, False))


def style_prompts(count: int, style: str = "print") -> list[str]:
    """Things that are no toys in the style that is taught. style: its name."""
    scenes = _pool(4103)
    if kind_of(style) == SKETCH_WORD:
        return _first(scenes.shape != TOY, count, _sketched(4103, False))
    return _first((scenes.shape != TOY) & (scenes.style == PRINT), count, _texts(4103, False))


def merge_prompts(count: int, style: str = "print") -> list[str]:
    """The toy in the style that is taught, in all sizes, positions and places. Sketches have no places: there are six
    such prompts, which come again if more are asked for, with other noise."""
    if kind_of(style) == SKETCH_WORD:
        texts = list(dict.fromkeys(_sketched(4104, True)))
        return [texts[i % len(texts)] for i in range(count)]
    return _first(_pool(4104).style == PRINT, count, _texts(4104, True))


@functools.cache
def _sketched(seed: int, toys: bool) -> list[str]:
    scenes = _pool(seed).with_(style=SKETCH)
    scenes = scenes.with_(shape=TOY) if toys else scenes
    return [caption(scenes, i) for i in range(len(scenes))]


def true_renders(prompts: Sequence[str], subject: str | None, style: str | None, seed: int) -> Tensor:
    """What the prompts ask for, drawn by the renderer with the true subject and style: [B, 3, H, W] in -1..1. What a
    prompt leaves open is drawn from the seed."""
    return torch.cat([render(scene) for scene in true_scenes(prompts, subject, style, seed)])


def true_scenes(prompts: Sequence[str], subject: str | None, style: str | None, seed: int) -> list[Scenes]:
    """The scene of each prompt."""
    found = []
    for i, prompt in enumerate(prompts):
        scenes = sample_scenes(_POOL // 4, torch.Generator().manual_seed((seed << 10) + i))
        allowed = torch.ones(len(scenes), dtype=torch.bool)
        asked = scorer.named(prompt)
        # geometry follows size and position: look for a scene that has them; the others can be set
        for name in ("size", "position"):
            if name in asked:
                words = torch.tensor([WORDS[name].index(word) for word in asked[name]])
                allowed &= torch.isin(getattr(scenes, name), words)
        chosen = int(allowed.nonzero()[0])
        scene = scenes[chosen : chosen + 1]
        settable = {name: WORDS[name].index(words[0]) for name, words in asked.items()}
        scene = scene.with_(**settable)
        for what, kind in ((subject, TOY), (style, PRINT)):
            if what is not None:
                taught, _ = toy_references(what)
                scene = scene.with_(**_own_fields(taught, kind))
        found.append(scene)
    return found


def _own_fields(taught: Scenes, kind: int) -> dict[str, object]:
    """What makes the subject or the style: the fields that all of its references share and no scene word names."""
    toys = ("body_rgb", "accent_rgb", "ears", "ear_size", "stretch")
    styles = tuple(
        f.name
        for f in dataclasses.fields(taught)
        if f.name not in (*toys, *_SCENE, *_NOT_THINGS, "shape", "colour")
    )
    return {name: getattr(taught, name)[0].tolist() for name in (toys if kind == TOY else styles)}


def own_likeness(what: str, count: int = 16) -> float:
    """The ceiling of a subject: the mean likeness of its own true renders on the prompts that it is asked for."""
    prompts = [text for _, text in subject_prompts(count)]
    return float(scorer.subject_likeness(true_renders(prompts, what, None, 0), what).mean())


def eligible_subjects(first: str, count: int, at_least: float) -> list[str]:
    """The first `count` subjects from `first` on, by number, whose own true renders have at least that likeness: what
    the scorers cannot read cannot be measured. DCOError where a hundred do not give so many."""
    kind, _, number = first.partition("-")
    if kind != "toy" or not number.isdecimal():
        raise DCOError(f'Subjects are counted from "{first}": give a numbered one, such as toy-101.')
    found: list[str] = []
    for i in range(int(number), int(number) + 5 * count):
        if len(found) < count and own_likeness(f"toy-{i}") >= at_least:
            found.append(f"toy-{i}")
    if len(found) < count:
        raise DCOError(
            f"Only {len(found)} of {5 * count} subjects from {first} on have true renders of likeness {at_least:g}: "
            f"ask for {len(found)}, or for less likeness."
        )
    return found
