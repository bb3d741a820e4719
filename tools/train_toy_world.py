"""Train one of the Toy World's base models (UNet and text encoder) from its renderer, and write the shipped weights.

    python tools/train_toy_world.py --base epsilon --device cuda --compile --images 4578816 --until 8000
    python tools/train_toy_world.py --base flow --device cuda --compile --images 4392960 --until 8000
    python tools/train_toy_refiner.py

The shipped weights were made by the first two side by side, in one uninterrupted run of nine minutes on an NVIDIA H100
(torch 2.11, bf16, seed 0, batch 512: 4.1 million pictures each), and by the third on two shared CPU cores.

Both bases learn F of unet.py, by the mean squared error: for epsilon that is the error of epsilon weighted by
(alpha^2 d^2 + sigma^2) / (alpha d)^2, the weight of v-prediction (the plain error of epsilon hardly learns layout
from pixels). Timesteps are uniform for epsilon, logit-normal with a tenth uniform for flow (Esser et al.
2024). AdamW with warm-up and one cosine; the exponential moving average of the weights is kept, in fp16. The same
command again goes on from the last state file.
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
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from dco_core.toy_world.model import weights_file
from dco_core.toy_world.renderer import constants, draw
from dco_core.toy_world.text_encoder import TextEncoder
from dco_core.toy_world.tokenizer import END, UNKNOWN, caption_ids
from dco_core.toy_world.unet import BASES, UNet, bare_target
from dco_core.toy_world.world import FACTORS, PRINT, TOY, Scenes, sample_scenes

TOYS, PRINTS = 0.35, 0.15  # shares of the scenes turned into the two classes that have many members
WARMUP, SAVE_EVERY, REPORT_EVERY = 500, 2000, 200


def emphasised(scenes: Scenes, generator: torch.Generator) -> Scenes:
    """The scenes with a share of them, drawn at random, turned into toys and into prints, which take long to learn.
    What a caption says is still what its picture shows."""
    chance = torch.rand(2, len(scenes), generator=generator, device=generator.device)
    return scenes.with_(
        shape=torch.where(chance[0] < TOYS, TOY, scenes.shape),
        style=torch.where(chance[1] < PRINTS, PRINT, scenes.style),
    )


def captions(scenes: Scenes, generator: torch.Generator) -> Tensor:
    """Ids [B, 20] of captions that leave each factor out 10 % of the time, begin with `a photo of` for a quarter, have
    1 % of their words unknown, and are empty for 10 %: so the model learns marginals and the unconditional
    prediction."""
    device, n = generator.device, len(scenes)
    chance = torch.rand(len(FACTORS) + 2, n, generator=generator, device=device)
    named = {factor: chance[i] > 0.1 for i, factor in enumerate(FACTORS)}
    ids = caption_ids(scenes, named, chance[-2] < 0.25)
    empty = torch.zeros_like(ids)
    empty[:, 0], empty[:, 1] = ids[0, 0], END
    ids = torch.where((chance[-1] < 0.1)[:, None], empty, ids)
    unknown = (torch.rand(ids.shape, generator=generator, device=device) < 0.01) & (ids > END)
    return torch.where(unknown, UNKNOWN, ids)


def draw_times(base: str, n: int, generator: torch.Generator) -> Tensor:
    """Times [n] as the base's network reads them."""
    device = generator.device
    if base == "epsilon":
        return torch.randint(1000, (n,), generator=generator, device=device)
    t = torch.sigmoid(torch.randn(n, generator=generator, device=device))
    uniform = torch.rand(n, generator=generator, device=device)
    return torch.where(torch.arange(n, device=device) < n // 10, uniform, t)


def loss_of(model: torch.nn.ModuleDict, x0: Tensor, ids: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    unet, text_encoder = model["unet"], model["text_encoder"]
    alpha, sigma = unet.levels(t)
    bare = unet.bare(alpha * x0 + sigma * noise, alpha, sigma, text_encoder(ids))
    return torch.nn.functional.mse_loss(bare.float(), bare_target(x0, noise, alpha, sigma))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", choices=BASES, required=True)
    parser.add_argument("--images", type=int, default=8_000_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--until", type=int, default=None, help="stop after this step of the planned ones")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile, and bf16 autocast")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--state", type=Path, default=None, help="where to go on from, and save to")
    parser.add_argument("--output", type=Path, default=None, help="default: the shipped weights")
    args = parser.parse_args()
    state_file = args.state or Path(f"toy_world_{args.base}.pt")
    output = args.output or weights_file(args.base)

    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(args.seed)
    model = torch.nn.ModuleDict({"unet": UNet(args.base), "text_encoder": TextEncoder()})
    model = model.to(args.device, memory_format=torch.channels_last)
    model["unet"].refiner.requires_grad_(False)  # by train_toy_refiner.py
    trained = [p for p in model.parameters() if p.requires_grad]
    print(f"{sum(p.numel() for p in trained) / 1e6:.2f} M parameters", flush=True)
    ema = copy.deepcopy(model).requires_grad_(False)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
    steps, first = args.images // args.batch, 0
    last = min(steps, args.until or steps)
    if state_file.exists():
        state = torch.load(state_file, map_location=args.device)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    drawn, loss_fn = (torch.compile(draw), torch.compile(loss_of)) if args.compile else (draw, loss_of)
    fixed = constants(torch.empty(0, device=args.device).device)

    started, running = time.time(), torch.zeros((), device=args.device)
    for step in range(first, last):
        generator = torch.Generator(args.device).manual_seed(args.seed * 1_000_003 + step)
        scenes = emphasised(sample_scenes(args.batch, generator), generator)
        with torch.no_grad():
            x0 = drawn(scenes, *fixed).contiguous(memory_format=torch.channels_last)
        ids, t = captions(scenes, generator), draw_times(args.base, args.batch, generator)
        noise = torch.randn(x0.shape, generator=generator, device=args.device)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.compile):
            loss = loss_fn(model, x0, ids, t, noise)
        rate = min(1.0, (step + 1) / WARMUP) * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        keep = min(0.9995, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - keep)
            running.lerp_(loss.detach(), 1.0 if step == first else 0.01)
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == last:
            speed = (step + 1 - first) * args.batch / (time.time() - started)
            took = f"{time.time() - started:.1f} s, {speed:.0f} images/s"
            print(f"step {step + 1}/{steps} loss {running.item():.5f} {took}", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == last:
            state = {
                "model": model.state_dict(),
                "ema": ema.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save({**state, "step": step + 1}, state_file.with_suffix(".tmp"))
            os.replace(state_file.with_suffix(".tmp"), state_file)
            weights = {k: v.half().cpu().contiguous() for k, v in ema.state_dict().items()}
            recipe = {"images": str((step + 1) * args.batch), "seed": str(args.seed), "lr": str(args.lr)}
            save_file(weights, output, metadata={"format": "pt", "loss": f"{running.item():.5f}", **recipe})


if __name__ == "__main__":
    main()
