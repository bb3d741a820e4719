"""What DCO costs beside plain training in a first run, and in a second one that finds the base model's errors on disk.

    python -m benchmarks.reference_cache --family sd15 sdxl --pixels 64

Runs take turns in one process on the same network (benchmarks/networks.py: the family's block structure, fewer
channels, random weights): plain (the diffusion loss), first (DCO, an empty folder) and second (DCO with another beta
and learning rate, the folder of the first). Medians over --rounds of CPU seconds a step and of their ratio to plain in
the same round; the losses of a second run are compared with those of the same run without a folder. `found` is the time
to make the key and read the file, once a run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from dco_core.network.denoiser import NetworkDenoiser
from dco_core.network.lora_layers import AdapterConfig
from dco_core.training.config import TrainingConfig
from dco_core.training.examples import Example
from dco_core.training.reference_cache import ReferenceCache
from dco_core.training.trainer import Training

from . import networks
from .host import declare_torchvision_schemas
from .reference_pass import SD15
from .sdxl_gpu import SDXL, conditioning

PLAIN, FIRST, SECOND = "plain", "first", "second"
CONFIGS = {
    PLAIN: {"objective": "dreambooth"},
    FIRST: {"beta": 1.0},
    SECOND: {"beta": 0.5, "learning_rate": 1e-4},
}


def denoiser_of(network: torch.nn.Module, shape: networks.Shape) -> NetworkDenoiser:
    return (SDXL if shape.sdxl else SD15)(network, AdapterConfig(rank=32), torch.float32)


def run(
    shape: networks.Shape, examples: list[Example], name: str, folder: Path | None, steps: int
) -> tuple[float, float, list[float]]:
    """(CPU seconds a step, CPU seconds until the first, the losses)."""
    denoiser = denoiser_of(networks.diffusers_unet(shape), shape)
    config = TrainingConfig(steps=steps, look_ahead=8, seed=1, **CONFIGS[name])
    started = time.process_time()
    cache = None if folder is None else ReferenceCache(folder, shape.family)
    training = Training(denoiser, examples, config, reference_cache=cache)
    ready = time.process_time()
    training.run()
    ended = time.process_time()
    return (ended - ready) / steps, ready - started, [report.loss for report in training.history]


def row(family: str, width: float, pixels: int, steps: int, rounds: int) -> str:
    shape = networks.shape_of(family, width)
    generator = torch.Generator().manual_seed(0)
    examples = [
        Example(torch.randn(4, pixels // 8, pixels // 8, generator=generator), conditioning(shape, pixels, "cpu", i))
        for i in range(4)
    ]
    run(shape, examples, PLAIN, None, 2)  # imports, allocator
    found: dict[str, list[float]] = {name: [] for name in CONFIGS}
    opened = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in CONFIGS:
                seconds, before, losses = run(shape, examples, name, Path(folder), steps)
                found[name].append(seconds)
            opened.append(before)
    *_, alone = run(shape, examples, SECOND, None, steps)
    if losses != alone:
        raise SystemExit("A second run gave other losses than the same run without kept errors.")
    ratios = [
        statistics.median(a / b for a, b in zip(found[name], found[PLAIN], strict=True)) for name in (FIRST, SECOND)
    ]
    plain = statistics.median(found[PLAIN])
    return (
        f"| {family}, width {width:g}, {pixels} px | {plain:.3f} | {ratios[0]:.2f} | {ratios[1]:.2f} | "
        f"{statistics.median(opened):.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", nargs="+", default=["sd15", "sdxl"], choices=["sd15", "sdxl"])
    parser.add_argument("--pixels", nargs="+", type=int, default=[64], help="side of the pictures")
    parser.add_argument("--width", type=float, default=0.1, help="of the networks; 1.0 is real")
    parser.add_argument("--steps", type=int, default=16, help="of each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    kept = declare_torchvision_schemas()  # noqa: F841  # peft imports torchvision
    torch.set_num_threads(options.threads)
    print("| network, rank 32, window 8 | plain, CPU s | DCO, first run | DCO, second run | found, s |")
    print("|---|---|---|---|---|")
    for family in options.family:
        for pixels in options.pixels:
            print(row(family, options.width, pixels, options.steps, options.rounds), flush=True)


if __name__ == "__main__":
    main()
