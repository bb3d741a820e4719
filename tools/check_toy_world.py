"""Measure what the Toy World ships: its scorer on renders and its bases on prompts.

    python tools/check_toy_world.py [--pictures 192]

Prints the tables that the docstrings of dco_core/toy_world/scorer.py and tools/train_toy_world.py repeat.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from dco_core.toy_world import scales, scorer
from dco_core.toy_world.model import encode, load_text_encoder, load_unet, sample
from dco_core.toy_world.renderer import render
from dco_core.toy_world.unet import BASES
from dco_core.toy_world.world import PRINT, SIZES, STYLES, SUBJECT, TOY, Scenes, caption, sample_scenes
from tools.train_toy_scorer import degrade, widen

AT_ONCE = 16


def scenes_of(count: int, seed: int) -> Scenes:
    """Scenes of which every third is a toy and every fifth a print."""
    scenes = sample_scenes(count, torch.Generator().manual_seed(seed), hold_out=False)
    order = torch.arange(count)
    return scenes.with_(
        shape=torch.where(order % 3 == 0, TOY, scenes.shape),
        style=torch.where(order % 5 == 1, PRINT, scenes.style),
    )


def check_scorer(count: int = 1500) -> None:
    generator = torch.Generator().manual_seed(987_654_321)
    scenes = widen(scenes_of(count, 31), generator)
    prompts = [caption(scenes, i) for i in range(count)]
    for title, pictures in {"clean": render(scenes), "degraded": degrade(render(scenes), generator)}.items():
        whole = scorer.prompt_alignment(pictures, prompts).mean()
        print(
            f"renders, {title}: factors {scorer.factors_obeyed(pictures, prompts).mean():.4f}, whole {whole:.4f}"
        )
    toys = scenes[scenes.shape == TOY]
    for index, word in enumerate(STYLES):
        same, other = (
            scorer.subject_likeness(render(group.with_(style=index)), "toy").mean()
            for group in (toys.with_(**SUBJECT), toys)
        )
        print(f"likeness to the subject in {word}: its renders {same:.3f}, other toys {other:.3f}")
    for kind in ("toy", "print"):
        reached = torch.tensor([scales.ceiling(f"{kind}-{number}") for number in range(101, 141)])
        print(f"ceilings of {kind}-101 to {kind}-140: least {reached.min():.3f}, mean {reached.mean():.3f}")


def _drawn(base: str, prompts: list[str], seed: int) -> Tensor:
    network, text_encoder = load_unet(base), load_text_encoder(base)
    noise = torch.randn(len(prompts), 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    empty = encode(text_encoder, [""])
    return torch.cat([
        sample(network, encode(text_encoder, prompts[i : i + AT_ONCE]), empty, noise[i : i + AT_ONCE], 0.0)
        for i in range(0, len(prompts), AT_ONCE)
    ])  # fmt: skip


def check_base(base: str, count: int) -> None:
    scenes = scenes_of(count, 32)
    small = (scenes.shape == TOY) & (torch.arange(count) % 2 == 0)
    scenes = scenes.with_(size=torch.where(small, SIZES.index("small"), scenes.size))
    prompts = [caption(scenes, i) for i in range(count)]
    pictures = _drawn(base, prompts, 33)
    factors, whole = scorer.factors_obeyed(pictures, prompts), scorer.prompt_alignment(pictures, prompts)
    print(f"{base}: {count} prompts, factors {factors.mean():.3f}, whole {whole.mean():.3f}", end=", ")
    print(f"small toys {whole[small].mean():.3f} of {int(small.sum())}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=192)
    args = parser.parse_args()
    check_scorer()
    for base in BASES:
        check_base(base, args.pictures)


if __name__ == "__main__":
    main()
