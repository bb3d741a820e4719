"""Train the Toy World's scorer on degraded renders and write its weights.

    python tools/train_toy_scorer.py --device cuda --compile --images 2500000

The shipped weights were made by this in under two minutes on an NVIDIA H100, with two other trainings beside it (torch
2.11, seed 0, batch 512).

AdamW with one cosine cycle; the weights are kept in fp16. The same command again goes on from the last state file.
tools/check_toy_world.py measures the shipped weights.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from dco_core.toy_world.canvas import SIZE
from dco_core.toy_world.renderer import constants, draw
from dco_core.toy_world.scorer_network import ATTRIBUTES, WEIGHTS, Scorer
from dco_core.toy_world.world import EAR_KINDS, PRINT, TOY, Scenes, sample_scenes

SAVE_EVERY, REPORT_EVERY = 1000, 200


def widen(scenes: Scenes, generator: torch.Generator) -> Scenes:
    """Move, turn and scale objects a little beyond what the world draws: models are less exact than that.
    Positions and sizes stay closer to their own class than to the next."""
    device, n = generator.device, len(scenes)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=generator, device=device) - 1

    return replace(
        scenes,
        centre=scenes.centre + uniform(n, 2) * torch.tensor([2.4, 3.0], device=device),
        radius=scenes.radius * (1 + 0.07 * uniform(n)),
        rotation=scenes.rotation + 0.1 * uniform(n),
    )


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, tint and grain images [B, 3, 64, 64], each by its own random amount, as imperfect samples are.
    One in five stays clean."""
    device, n = generator.device, len(images)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    clean = images
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=device) / 16
    kernel = (row[:, None] * row).expand(3, 1, 5, 5)
    blurred = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    images = torch.lerp(images, blurred, uniform(n, 1, 1, 1))
    images = images * (1 + 0.08 * (2 * uniform(n, 3, 1, 1) - 1)) + 0.06 * (2 * uniform(n, 3, 1, 1) - 1)
    blotches = F.interpolate(normal(n, 3, 8, 8), size=SIZE, mode="bilinear")
    images = (
        images + 0.10 * uniform(n, 1, 1, 1) * blotches + 0.12 * uniform(n, 1, 1, 1) * normal(*images.shape)
    )
    return torch.where(uniform(n, 1, 1, 1) < 0.2, clean, images.clamp(-1, 1))


def scorer_loss(read: dict[str, Tensor], scenes: Scenes) -> Tensor:
    """Sum over the heads of the mean loss over the images in which the head's factor can be seen."""
    toy, printed = scenes.shape == TOY, scenes.style == PRINT
    visible = {
        "colour": ~toy, "body_rgb": toy, "accent_rgb": toy, "ears": toy,
        "ear_size": toy & (scenes.ears != EAR_KINDS.index("none")), "stretch": toy,
        "ink_rgb": printed, "paper_rgb": printed, "pattern": printed,
    }  # fmt: skip
    total = torch.zeros((), device=toy.device)
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


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--images", type=int, default=4_000_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the renderer")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--state", type=Path, default=Path("toy_scorer.pt"))
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(args.seed)
    scorer = Scorer().to(args.device, memory_format=torch.channels_last)
    steps, first = args.images // args.batch, 0
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=args.lr, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.1)
    if args.state.exists():
        state = torch.load(args.state, map_location=args.device)
        for part, name in ((scorer, "scorer"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(state[name])
        first = state["step"]
    drawn = torch.compile(draw) if args.compile else draw
    fixed = constants(torch.empty(0, device=args.device).device)
    started, running = time.time(), torch.zeros((), device=args.device)
    for step in range(first, steps):
        generator = torch.Generator(args.device).manual_seed(args.seed * 1_000_003 + step)
        scenes = widen(sample_scenes(args.batch, generator, hold_out=False), generator)
        with torch.no_grad():
            pictures = degrade(drawn(scenes, *fixed), generator)
        loss = scorer_loss(scorer(pictures.contiguous(memory_format=torch.channels_last)), scenes)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        running.lerp_(loss.detach(), 1.0 if step == first else 0.02)
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            speed = (step + 1 - first) * args.batch / (time.time() - started)
            print(f"step {step + 1}/{steps} loss {running.item():.4f} {speed:.0f} images/s", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            parts = {"scorer": scorer, "optimizer": optimizer, "schedule": schedule}
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**state, "step": step + 1}, args.state.with_suffix(".tmp"))
            os.replace(args.state.with_suffix(".tmp"), args.state)
            floats = {k: v for k, v in scorer.state_dict().items() if v.is_floating_point()}
            weights = {k: v.half().cpu().contiguous() for k, v in floats.items()}
            metadata = {"format": "pt", "images": str((step + 1) * args.batch), "seed": str(args.seed)}
            save_file(weights, args.output, metadata=metadata)


if __name__ == "__main__":
    main()
