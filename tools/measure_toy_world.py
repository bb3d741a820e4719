"""Measure whether the Toy World's bases draw what they are asked for: small toys, large toys and other things apart.

    python tools/measure_toy_world.py

Comprehensive captions of random scenes, a picture each, 10 steps at w_text 2, as studies sample; read by scorer.py, and
beside each number that of true renders of the same scenes, which is as much as the scorer lets a picture have.

Measured (1536 pictures; shares of all that prompts name, and of whole prompts):

                   all          small toys   large toys   small others  large others
    true renders   .999 .997    .999 .995    .999 .995    .999 .996     1.000 .998
    epsilon        .998 .989    .999 .995    .999 .995    .995 .973     1.000 1.000
    flow           .997 .986    .999 .995    .999 .995    .994 .966     1.000 .998
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from dco_core.sampling import sample
from dco_core.toy_world.bases import BASES
from dco_core.toy_world.image_model import ToyWorldModel
from dco_core.toy_world.renderer import render
from dco_core.toy_world.scorer import factors_obeyed, obeyed, prompt_alignment
from dco_core.toy_world.world import FACTORS, SIZES, TOY, Scenes, caption, sample_scenes


def drawn(base: str, captions: list[str], noise: Tensor, steps: int, at_once: int = 64) -> Tensor:
    """Pictures [B, 3, 32, 32] of the captions, one each."""
    model = ToyWorldModel(base=base)
    denoiser, (empty,) = model.denoiser(None), model.encode_captions([""])
    pictures = []
    for first in range(0, len(captions), at_once):
        texts = model.encode_captions(captions[first : first + at_once])
        some = noise[first : first + at_once]
        pictures.append(
            sample(
                denoiser, texts, None, [empty] * len(texts), some, w_rg=0.0, w_text=model.w_text, steps=steps
            )
        )
    return torch.cat(pictures)


def report(title: str, pictures: Tensor, captions: list[str], scenes: Scenes) -> None:
    """Print the shares: of what prompts name, each kind of it by itself, and of whole prompts, by what is shown."""
    kinds = {
        "all": torch.ones(len(scenes), dtype=torch.bool),
        **{f"{size} toys": (scenes.shape == TOY) & (scenes.size == i) for i, size in enumerate(SIZES)},
        **{f"{size} others": (scenes.shape != TOY) & (scenes.size == i) for i, size in enumerate(SIZES)},
    }
    for kind, of in kinds.items():
        some, asked = pictures[of], [captions[i] for i in of.nonzero()[:, 0].tolist()]
        checks = obeyed(some, asked)
        each = {
            factor: [float(right) for right in checks[factor] if right is not None] for factor in FACTORS
        }  # fmt: skip
        shares = "  ".join(f"{factor} {sum(v) / len(v):.3f}" for factor, v in each.items() if v)
        factors, whole = factors_obeyed(some, asked).mean(), prompt_alignment(some, asked).mean()
        print(
            f"{title:13s}{kind:13s}{len(asked):5d}  factors {factors:.3f}  whole prompts {whole:.3f}  ({shares})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=1536)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=6001)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(args.seed)
    scenes = sample_scenes(args.pictures, generator)
    captions = [caption(scenes, i) for i in range(len(scenes))]
    noise = torch.randn(len(scenes), 3, 32, 32, generator=generator)
    report("true renders", render(scenes), captions, scenes)
    for base in BASES:
        report(base, drawn(base, captions, noise, args.steps), captions, scenes)


if __name__ == "__main__":
    main()
