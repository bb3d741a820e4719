"""SDXL at its real size on a GPU: what DCO costs over the plain loss, and reward guidance over CFG.

    python -m benchmarks.sdxl_gpu                       # one GPU with about 16 GB
    python -m benchmarks.sdxl_gpu --device cpu --tiny   # the same code on a tiny network

Random weights with SDXL's dimensions in bf16, through diffusers and dco_core alone: no download, no host. Training is
batch 1 at --pixels with a LoRA of --rank on the attention; the loops take turns, one round is `--window` steps of
each, so that each holds whole calls of phi. Guidance: one evaluation of the network on CFG's two rows and on reward
guidance's three, of which one gets the LoRA. Medians over --rounds; peak memory of the GPU's allocator.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dco_core.guidance import reward_guidance
from dco_core.network.denoiser import NetworkDenoiser
from dco_core.network.lora_layers import ADAPTER, AdapterConfig, adapter_off, lora_layers
from dco_core.schedules import Schedule
from dco_core.training.config import TrainingConfig
from dco_core.training.examples import Example
from dco_core.training.trainer import Training
from devtools.host_launcher import declare_torchvision_schemas

from . import networks

ROWS = 4  # pictures


class SDXL(NetworkDenoiser):
    """A conditioning is (context [77, C], pooled [P], time ids [6])."""

    def __init__(self, unet: nn.Module, config: AdapterConfig, dtype: torch.dtype):
        # SDXL's noise schedule
        cumulative = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
        super().__init__(
            unet, Schedule.from_sigmas("epsilon", ((1 - cumulative) / cumulative).sqrt()), config
        )
        self._dtype = dtype

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Sequence[Any]) -> Tensor:
        context, pooled, ids = (torch.stack(part) for part in zip(*conditioning, strict=True))
        added = {"text_embeds": pooled.to(self._dtype), "time_ids": ids}
        with torch.autocast(x_t.device.type, self._dtype, enabled=self._dtype != torch.float32):
            out = self.network(x_t, t.to(x_t.device), context.to(self._dtype), added_cond_kwargs=added).sample
        return out.float()


@contextmanager
def lora_on_rows(network: nn.Module, rows: slice) -> Iterator[None]:
    """Inside, the LoRA is added to these rows of the batch alone, by hooks as reward guidance adds it."""

    def hook(layer: Any) -> Callable[..., Tensor]:
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        scale = layer.scaling[ADAPTER]

        def add(_module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            x = args[0][rows]
            output[rows] += nn.functional.linear(x @ down.to(x).T, up.to(x)) * scale
            return output

        return add

    handles = [layer.get_base_layer().register_forward_hook(hook(layer)) for _, layer in lora_layers(network)]
    try:
        with adapter_off(network):
            yield
    finally:
        for handle in handles:
            handle.remove()


def conditioning(shape: networks.Shape, pixels: int, device: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(networks.TOKENS, shape.context, generator=generator)
    pooled = torch.randn(shape.pooled, generator=generator)
    sizes = torch.tensor([pixels, pixels, 0, 0, pixels, pixels])
    return context.to(device), pooled.to(device), sizes.float().to(device)


class Clock:
    """Seconds and the peak memory of what runs in between."""

    def __init__(self, device: str):
        self.cuda = device.startswith("cuda")

    def measure(self, run: Callable[[], object]) -> tuple[float, int]:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        run()
        if self.cuda:
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() if self.cuda else 0
        return time.perf_counter() - started, peak


def training_loops(
    denoiser: SDXL, shape: networks.Shape, options: argparse.Namespace
) -> dict[str, list[tuple[float, int]]]:
    """{loop: (seconds, bytes) of every round}. The loops train one LoRA in turns: only one of them runs at a time."""
    side = options.pixels // 8
    examples = [
        Example(
            torch.randn(4, side, side, device=options.device),
            conditioning(shape, options.pixels, options.device, i),
            std=torch.full((4, side, side), 0.1, device=options.device),
        )
        for i in range(ROWS)
    ]
    variants = {"plain": ("dreambooth", 1), "DCO, naive": ("dco", 1), "DCO, look-ahead": ("dco", options.window)}
    clock = Clock(options.device)
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in variants}
    for turn in range(options.rounds + 1):  # the first warms up
        for name, (objective, window) in variants.items():
            config = TrainingConfig(steps=options.window, objective=objective, look_ahead=window, seed=turn)
            run = Training(denoiser, examples, config)
            seconds, peak = clock.measure(run.run)
            if turn:
                found[name].append((seconds / options.window, peak))
    return found


def guidance(
    denoiser: SDXL, shape: networks.Shape, options: argparse.Namespace
) -> dict[str, list[tuple[float, int]]]:
    side = options.pixels // 8
    x = torch.randn(1, 4, side, side, device=options.device)
    prompt, empty = (conditioning(shape, options.pixels, options.device, i) for i in (0, 9))
    t = torch.tensor([500])

    def cfg() -> Tensor:
        with adapter_off(denoiser.network):
            phi, phi_0 = denoiser.forward(x.expand(2, -1, -1, -1), t.expand(2), [prompt, empty])[:, None]
        return phi_0 + 7.5 * (phi - phi_0)

    def guided() -> Tensor:
        with lora_on_rows(denoiser.network, slice(0, 1)):
            rows = denoiser.forward(x.expand(3, -1, -1, -1), t.expand(3), [prompt, prompt, empty])[:, None]
        return reward_guidance(rows[0], rows[1], rows[2], 3.0, 7.5)

    clock = Clock(options.device)
    variants = {"CFG, 2 rows": cfg, "reward guidance, 3 rows": guided}
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in variants}
    with torch.no_grad():
        for turn in range(options.rounds + 1):
            for name, run in variants.items():
                one = clock.measure(run)
                if turn:
                    found[name].append(one)
    return found


def table(found: dict[str, list[tuple[float, int]]], unit: str) -> str:
    medians = {name: statistics.median(s for s, _ in rounds) for name, rounds in found.items()}
    peaks = {name: max(p for _, p in rounds) for name, rounds in found.items()}
    first = next(iter(found))
    lines = [f"| loop | s/{unit} | x {first} | peak MiB | x {first} |", "|---|---|---|---|---|"]
    for name in found:
        peak = f"{peaks[name] / 2**20:.0f} | {peaks[name] / peaks[first]:.2f}" if peaks[first] else "- | -"
        lines.append(f"| {name} | {medians[name]:.3f} | {medians[name] / medians[first]:.2f} | {peak} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tenth of the width, 64 px, fp32")
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--window", type=int, default=8, help="batches that phi looks ahead")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--blocks", action="store_true", help="gradient checkpointing")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device: use --device cpu --tiny to try the script out.")
    kept = declare_torchvision_schemas()  # noqa: F841  # peft imports torchvision
    if options.device == "cpu":
        torch.set_num_threads(1)  # a trial run: more threads only suffer where other programs compute
    dtype = torch.float32 if options.tiny else torch.bfloat16
    options.pixels = 64 if options.tiny else options.pixels
    shape = networks.shape_of("sdxl", 0.1 if options.tiny else 1.0)
    unet = networks.diffusers_unet(shape).to(options.device, dtype)
    denoiser = SDXL(unet, AdapterConfig(rank=options.rank), dtype)
    if options.blocks:
        denoiser.checkpoint_blocks()
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(f"{name}, torch {torch.__version__}, {shape.channels} channels, {options.pixels} px, {dtype}\n")
    print(table(training_loops(denoiser, shape, options), "step"), "\n")
    print(table(guidance(denoiser, shape, options), "evaluation"))


if __name__ == "__main__":
    main()
