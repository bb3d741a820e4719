"""Train the refiner of the Toy World's bases, and write it into both of their weights.

    python tools/train_toy_refiner.py

The bases stay as train_toy_world.py left them. Their F is computed once for 6000 renders at random noise levels, half
by each base; the refiner then learns what is missing on crops, most of them around the object, by the mean squared
error (0.231 before, 0.138 after). The shipped one took 18 minutes on a part of one CPU core (seed 0).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from dco_core.toy_world.canvas import SIZE
from dco_core.toy_world.model import encode, weights_file
from dco_core.toy_world.renderer import render
from dco_core.toy_world.text_encoder import TextEncoder
from dco_core.toy_world.unet import BASES, SIGMA_DATA, Refiner, UNet, bare_target
from dco_core.toy_world.world import caption, sample_scenes
from tools.train_toy_world import emphasised

CROP, ANYWHERE = 32, 0.25  # pixels; share of crops that are not around the object
NOISIEST = 5.0  # noise over signal: above it there is nothing fine to see
PREFIX = "unet.refiner."


def _base(base: str) -> tuple[UNet, TextEncoder]:
    """A base of the shipped weights, its refiner still without effect."""
    unet, text_encoder = UNet(base), TextEncoder()
    weights = load_file(weights_file(base))
    for module, prefix in ((unet, "unet."), (text_encoder, "text_encoder.")):
        own = {
            k[len(prefix) :]: v.float()
            for k, v in weights.items()
            if k.startswith(prefix) and PREFIX not in k
        }
        module.load_state_dict(own, strict=False)
        module.eval().requires_grad_(False)
    return unet, text_encoder


@torch.no_grad()
def crops(base: str, count: int, seed: int, batch: int = 16) -> list[Tensor]:
    """Inputs and targets of the refiner: x_t of unit variance, F and what F should be, each fp16
    [count, 3, CROP, CROP], and the noise levels [count]."""
    unet, text_encoder = _base(base)
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[Tensor, ...]] = []
    for _ in range(0, count, batch):
        scenes = emphasised(sample_scenes(batch, generator), generator)
        x0 = render(scenes)
        context = encode(text_encoder, [caption(scenes, i) for i in range(batch)])
        # noise over signal log-uniform from that of a nearly clean picture on
        spread = math.log(0.05), math.log(NOISIEST)
        ratio = torch.exp(spread[0] + (spread[1] - spread[0]) * torch.rand(batch, generator=generator))
        if base == "epsilon":
            alpha, sigma = (1 + ratio**2).rsqrt(), ratio * (1 + ratio**2).rsqrt()
        else:
            alpha, sigma = 1 / (1 + ratio), ratio / (1 + ratio)
        alpha, sigma = alpha[:, None, None, None], sigma[:, None, None, None]
        noise = torch.randn(x0.shape, generator=generator)
        x_t = alpha * x0 + sigma * noise
        bare = unet.bare(x_t, alpha, sigma, context)
        x = x_t * (alpha**2 * SIGMA_DATA**2 + sigma**2).rsqrt()
        level = torch.atan2(sigma, SIGMA_DATA * alpha).flatten() / (math.pi / 2)
        centre = scenes.centre - CROP / 2 + 8 * (torch.rand(batch, 2, generator=generator) - 0.5)
        anywhere = torch.rand(batch, 2, generator=generator) * SIZE
        corner = torch.where(torch.rand(batch, 1, generator=generator) < ANYWHERE, anywhere, centre)
        corner = (corner.clamp(0, SIZE - CROP) / 2).long() * 2
        target = bare_target(x0, noise, alpha, sigma)
        cut = [
            torch.stack([
                full[i, :, int(top) : int(top) + CROP, int(left) : int(left) + CROP]
                for i, (left, top) in enumerate(corner)
            ]).half()
            for full in (x, bare, target)
        ]  # fmt: skip
        found.append((*cut, level))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    started = time.time()
    halves = [crops(base, args.pictures // 2, args.seed + i) for i, base in enumerate(BASES)]
    x, bare, target, level = (torch.cat(parts) for parts in zip(*halves, strict=True))
    print(
        f"{len(x)} crops, {time.time() - started:.0f} s, error {(bare.float() - target).square().mean():.4f}",
        flush=True,
    )
    refiner = Refiner()
    optimizer = torch.optim.AdamW(refiner.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.1)
    generator, running = torch.Generator().manual_seed(args.seed), 0.0
    for step in range(args.steps):
        rows = torch.randint(len(x), (args.batch,), generator=generator)
        coarse = bare[rows].float()
        loss = (coarse + refiner(x[rows].float(), coarse, level[rows]) - target[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(refiner.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = loss.item() if step == 0 else 0.99 * running + 0.01 * loss.item()
        if (step + 1) % 100 == 0:
            print(
                f"step {step + 1}/{args.steps} loss {running:.4f} {time.time() - started:.0f} s", flush=True
            )
    for base in BASES:
        with safe_open(weights_file(base), framework="pt") as file:
            metadata = file.metadata()
        weights = {k: v for k, v in load_file(weights_file(base)).items() if not k.startswith(PREFIX)}
        weights |= {PREFIX + k: v.detach().half().contiguous() for k, v in refiner.state_dict().items()}
        save_file(weights, weights_file(base), metadata=metadata)


if __name__ == "__main__":
    main()
