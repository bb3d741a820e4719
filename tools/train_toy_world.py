"""Train the Toy World's base model (UNet and text encoder) from its renderer, and write the shipped weights.

    python tools/train_toy_world.py --seed 0 --output dco_core/toy_world/weights.safetensors

Flow matching with the velocity loss; t is logit-normal with a tenth uniform (Esser et al. 2024); AdamW with
warm-up and cosine decay; the exponential moving average of the weights is kept, in fp16. Rerunning the same
command goes on from the last state file; with another --images the cosine is planned anew from there.

The shipped weights were made in four such parts, on two shared CPU cores: an hour without emphasis (--toys 0 --prints
0; planned for 360000 images up to 48000, for 240000 up to 144000, and for 302400 to the end), and 45 minutes more from
there, with it:

    python tools/train_toy_world.py --start dco_core/toy_world/weights.safetensors --images 512000 --batch 32 \\
        --seed 1 --output dco_core/toy_world/weights.safetensors

One uninterrupted run is the better recipe.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from dco_core.toy_world.renderer import render
from dco_core.toy_world.text_encoder import TextEncoder
from dco_core.toy_world.tokenizer import END, UNKNOWN, tokenize
from dco_core.toy_world.unet import UNet
from dco_core.toy_world.world import PRINT, TOY, Scenes, sample_scenes, training_captions


def emphasised(scenes: Scenes, toys: float, prints: float, generator: torch.Generator) -> Scenes:
    """The scenes with that share of them, drawn at random, turned into toys and into prints: the two classes with
    many members are the ones that take long to learn. What a caption says is still what its picture shows."""
    chance = torch.rand(2, len(scenes), generator=generator)
    return scenes.with_(
        shape=torch.where(chance[0] < toys, TOY, scenes.shape),
        style=torch.where(chance[1] < prints, PRINT, scenes.style),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=360_000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--toys", type=float, default=0.5, help="share of the scenes turned into toys")
    parser.add_argument("--prints", type=float, default=0.15, help="share of the scenes turned into prints")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--state", type=Path, default=Path("toy_world_training.pt"))
    parser.add_argument(
        "--start", type=Path, default=None, help="weights to go on from, in place of random ones"
    )
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = torch.nn.ModuleDict({"unet": UNet(), "text_encoder": TextEncoder()})
    if args.start is not None:
        model.load_state_dict({name: value.float() for name, value in load_file(args.start).items()})
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    ema = copy.deepcopy(model).requires_grad_(False)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
    steps, warmup, first = args.images // args.batch, 300, 0
    if args.state.exists():
        state = torch.load(args.state)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    started, running = time.time(), 0.0
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        scenes = emphasised(sample_scenes(args.batch, generator), args.toys, args.prints, generator)
        x0, ids = render(scenes), tokenize(training_captions(scenes, generator))
        unknown = (torch.rand(ids.shape, generator=generator) < 0.01) & (ids > END)
        ids = torch.where(unknown, UNKNOWN, ids)
        t = torch.sigmoid(torch.randn(args.batch, generator=generator))
        uniform = torch.rand(args.batch, generator=generator)
        t = torch.where(torch.arange(args.batch) < args.batch // 10, uniform, t)
        noise = torch.randn(x0.shape, generator=generator)
        at = (slice(None), None, None, None)
        velocity = model["unet"]((1 - t[at]) * x0 + t[at] * noise, t, model["text_encoder"](ids))
        loss = torch.nn.functional.mse_loss(velocity, noise - x0)
        rate = min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - keep)
        running = loss.item() if step == first else 0.99 * running + 0.01 * loss.item()
        if (step + 1) % 100 == 0:
            done = (step + 1 - first) * args.batch / (time.time() - started)
            print(f"step {step + 1}/{steps} loss {running:.4f} {done:.0f} images/s", flush=True)
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            state = {
                "model": model.state_dict(),
                "ema": ema.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save({**state, "step": step + 1}, args.state.with_suffix(".tmp"))
            os.replace(args.state.with_suffix(".tmp"), args.state)
            weights = {k: v.half().contiguous() for k, v in ema.state_dict().items()}
            recipe = {"images": str((step + 1) * args.batch), "seed": str(args.seed), "lr": str(args.lr)}
            save_file(weights, args.output, metadata={"format": "pt", "loss": f"{running:.4f}", **recipe})


if __name__ == "__main__":
    main()
