"""Train the Toy World's scorer on degraded renders, write its weights and print how well it measures.

    python tools/train_toy_scorer.py

AdamW with one cosine cycle; the weights are kept in fp16. --evaluate only measures the shipped weights.
"""

from __future__ import annotations

import argparse
import operator
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from dco_core.evidence.prompts import evaluation_prompts, fill
from dco_core.sampling import sample
from dco_core.toy_world.model import ToyDenoiser, encode, load_text_encoder
from dco_core.toy_world.renderer import render
from dco_core.toy_world.scorer import (
    factors_obeyed,
    prompt_alignment,
    read,
    style_likeness,
    style_scores,
    subject_likeness,
)
from dco_core.toy_world.scorer_network import ATTRIBUTES, WEIGHTS, Scorer
from dco_core.toy_world.world import (
    EAR_SHAPES,
    FACTORS,
    PRINT,
    STYLE,
    STYLES,
    SUBJECT,
    TOY,
    Scenes,
    caption,
    sample_scenes,
    style_reference,
    subject_references,
)


def widen(scenes: Scenes, generator: torch.Generator) -> Scenes:
    """Move, turn and scale objects a little beyond what the world draws: models are less exact than that.
    Positions and sizes stay closer to their own class than to the next."""

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=generator) - 1

    n = len(scenes)
    return replace(
        scenes,
        centre=scenes.centre + uniform(n, 2) * torch.tensor([1.2, 1.5]),
        radius=scenes.radius * (1 + 0.07 * uniform(n)),
        rotation=scenes.rotation + 0.1 * uniform(n),
    )


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, tint and grain images [B, 3, 32, 32], each by its own random amount, as imperfect samples are.
    One in five stays clean."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    n, clean = len(images), images
    row = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (row[:, None] * row).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    images = torch.lerp(images, blurred, uniform(n, 1, 1, 1))
    images = images * (1 + 0.08 * (2 * uniform(n, 3, 1, 1) - 1)) + 0.06 * (2 * uniform(n, 3, 1, 1) - 1)
    blotches = F.interpolate(torch.randn(n, 3, 8, 8, generator=generator), size=32, mode="bilinear")
    grain = torch.randn(images.shape, generator=generator)
    images = images + 0.10 * uniform(n, 1, 1, 1) * blotches + 0.12 * uniform(n, 1, 1, 1) * grain
    return torch.where(uniform(n, 1, 1, 1) < 0.2, clean, images.clamp(-1, 1))


def scorer_loss(read: dict[str, Tensor], scenes: Scenes) -> Tensor:
    """Sum over the heads of the mean loss over the images in which the head's factor can be seen."""
    toy, printed = scenes.shape == TOY, scenes.style == PRINT
    visible = {
        "colour": ~toy & ~printed, "body_rgb": toy & ~printed, "accent_rgb": toy & ~printed, "ears": toy,
        "ear_size": toy & (scenes.ears != EAR_SHAPES.index("none")), "stretch": toy,
        "ink_rgb": printed, "paper_rgb": printed,
    }  # fmt: skip
    total = torch.zeros(())
    for name, output in read.items():
        truth = getattr(scenes, name)
        if name in ATTRIBUTES:
            _, _, scale = ATTRIBUTES[name]
            loss = F.mse_loss(output / scale, truth.view(len(scenes), -1) / scale, reduction="none").mean(1)
        else:
            loss = F.cross_entropy(output, truth, reduction="none")
        seen = visible.get(name, torch.ones_like(toy))
        total = total + (loss * seen).sum() / seen.sum().clamp(min=1)
    return total


def train(images: int, batch: int, lr: float, seed: int) -> Scorer:
    torch.manual_seed(seed)
    scorer = Scorer().to(memory_format=torch.channels_last)
    steps = images // batch
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    started, running = time.time(), 0.0
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        scenes = widen(sample_scenes(batch, generator, hold_out=False), generator)
        pictures = degrade(render(scenes), generator)
        loss = scorer_loss(scorer(pictures.contiguous(memory_format=torch.channels_last)), scenes)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 200 == 0:
            speed = (step + 1) * batch / (time.time() - started)
            print(f"step {step + 1}/{steps} loss {running:.3f} {speed:.0f} images/s", flush=True)
    return scorer.eval().requires_grad_(False)


def auc(same: Tensor, other: Tensor) -> float:
    """Chance that a picture of the same thing scores higher than one of another; ties count half."""
    gap = same[:, None] - other[None]
    return ((gap > 0).float() + 0.5 * (gap == 0).float()).mean().item()


def validation(seed: int = 987_654_321, n: int = 1536) -> None:
    """Print how the shipped scorer measures renders it has not been trained on, clean and degraded."""
    generator = torch.Generator().manual_seed(seed)
    scenes = sample_scenes(n, generator, hold_out=False)
    toy, printed = scenes.shape == TOY, scenes.style == PRINT
    subject, style = "toy", "print"  # against their true attributes

    def share(seen: list, truth: list) -> str:
        return f"{sum(map(operator.eq, seen, truth)) / len(truth):.3f}"

    conditions = {"clean": lambda images: images, "degraded": lambda images: degrade(images, generator)}
    for title, spoil in conditions.items():
        rows = read(spoil(render(scenes)))
        print(f"accuracy, {title} renders:", end="")
        for factor, words in FACTORS.items():
            visible = range(n) if factor != "colour" else (~toy & ~printed).nonzero().flatten().tolist()
            truth = [words[getattr(scenes, factor)[i]] for i in visible]
            print(f" {factor} {share([rows[i][factor] for i in visible], truth)}", end="")
        toys = [i for i, row in enumerate(rows) if toy[i] and "ears" in row]
        print(f" ears {share([rows[i]['ears'] for i in toys], [EAR_SHAPES[scenes.ears[i]] for i in toys])}")
        for name, changes in (("subject", SUBJECT), ("style", STYLE)):
            changed = scenes.with_(**changes)
            prompts = [caption(changed, i) for i in range(n)]
            pictures = spoil(render(changed))
            alignment, factors = (f(pictures, prompts).mean() for f in (prompt_alignment, factors_obeyed))
            print(f"  of the {name}'s true renders obey all {alignment:.3f}, of factors {factors:.3f}")

        other = subject_likeness(spoil(render(scenes.with_(shape=TOY))), subject)
        objects = subject_likeness(spoil(render(scenes[~toy])), subject)
        print(f"  subject likeness, other objects {objects.mean():.3f}")
        for index, word in enumerate(STYLES):
            same = subject_likeness(spoil(render(scenes.with_(**SUBJECT, style=index))), subject)
            others = subject_likeness(spoil(render(scenes.with_(shape=TOY, style=index))), subject)
            print(f"  subject likeness, {word}: same {same.mean():.3f}", end=" ")
            print(f"other toys {others.mean():.3f} AUC {auc(same, others):.4f}")
        same = subject_likeness(spoil(render(scenes.with_(**SUBJECT))), subject)[~printed]
        print(f"  subject likeness, all but print: same {same.mean():.3f}", end=" ")
        print(f"other toys {other[~printed].mean():.3f} AUC {auc(same, other[~printed]):.4f}")
        same = style_likeness(spoil(render(scenes.with_(**STYLE))), style)
        prints = style_likeness(spoil(render(scenes.with_(style=PRINT))), style)
        rest = style_likeness(spoil(render(scenes[~printed])), style)
        print(f"  style likeness: same {same.mean():.3f} other prints {prints.mean():.3f}", end=" ")
        print(f"other styles {rest.mean():.3f} AUC same/other prints {auc(same, prints):.4f}")
        form = style_scores(spoil(render(scenes.with_(style=PRINT))), style)["form"]
        print(f"  style form: other prints {form.mean():.3f}")


def fooling(seed: int = 5) -> None:
    """Print the scores of what likeness or alignment alone would take for success, on the evaluation prompts."""
    generator = torch.Generator().manual_seed(seed)
    denoiser, text_encoder = ToyDenoiser(None), load_text_encoder()
    empty = encode(text_encoder, [""])[0]
    subject, style = (render(make()[0]) for make in (subject_references, style_reference))
    for kind, references, likeness in (
        ("customization", subject, subject_likeness),
        ("stylization", subject, subject_likeness),
        ("style", style, style_likeness),
    ):
        what = "print" if kind == "style" else "toy"
        prompts = fill(evaluation_prompts(kind, "toy world"), what) * 4
        noise = torch.randn(len(prompts), 3, 32, 32, generator=generator)
        pictures = {
            "copies of references": references[torch.arange(len(prompts)) % len(references)],
            "samples of the base model": sample(
                denoiser, list(encode(text_encoder, prompts)), None, [empty] * len(noise), noise, w_rg=0.0, w_text=2.0,
                steps=20,
            ),
            "noise": noise,
        }
        for name, images in pictures.items():
            alignment = prompt_alignment(images, prompts)
            print(f"{kind}, {name}: likeness {likeness(images, what).mean():.3f}", end=" ")
            print(f"alignment {alignment.mean():.3f}, at most {alignment.max():.3f}")


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--images", type=int, default=400_000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--evaluate", action="store_true", help="only measure the shipped weights")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.evaluate:
        scorer = train(args.images, args.batch, args.lr, args.seed)
        weights = {k: v.half().contiguous() for k, v in scorer.state_dict().items() if v.is_floating_point()}
        metadata = {"format": "pt", "images": str(args.images), "seed": str(args.seed)}
        save_file(weights, args.output, metadata=metadata)
    validation()
    fooling()


if __name__ == "__main__":
    main()
