"""What the reference pass takes beside theta's step: its memory by the number of rows, and what there is to gain by
computing the layers before the first adapted one once for theta and phi.

    python -m benchmarks.reference_pass --family sd15 sdxl --pixels 128 512 --width 0.1
    python -m benchmarks.reference_pass --family sd15 --pixels 512 --width 1 --prefix

Memory: the most that tensors made inside hold at once, counted operation by operation, so it is exact and the same in
every run; without and with gradient checkpointing. Prefix: seconds from the start of a forward pass to the first layer
that has a LoRA (the attention, as by default), and of a whole step (forward and backward); medians over --rounds.
Networks of diffusers, fp32, batch 1, on the CPU, random weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dco_core.network.denoiser import NetworkDenoiser
from dco_core.network.lora_layers import AdapterConfig, lora_layers
from devtools.host_launcher import declare_torchvision_schemas

from . import networks
from .sdxl_gpu import SDXL, conditioning

ROWS = (1, 3, 8)


class LiveTensors(TorchDispatchMode):
    """Inside, `peak` is the most bytes that storages made inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), given)
        return out

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in given or key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


class SD15(SDXL):
    def forward(self, x_t: Tensor, t: Tensor, conditioning: Sequence[Any]) -> Tensor:
        return self.network(x_t, t, torch.stack([context for context, _, _ in conditioning])).sample


class Pass:
    """A network with what it is to look at."""

    def __init__(self, family: str, width: float, pixels: int, blocks: bool = False):
        shape = networks.shape_of(family, width)
        kind = SDXL if shape.sdxl else SD15
        self.denoiser: NetworkDenoiser = kind(
            networks.diffusers_unet(shape), AdapterConfig(rank=32), torch.float32
        )
        if blocks:
            self.denoiser.checkpoint_blocks()
        self._text, self._side = conditioning(shape, pixels, "cpu", 0), pixels // 8

    def _predict(self, rows: int, adapter: bool) -> Tensor:
        x = torch.randn(rows, 4, self._side, self._side)
        return self.denoiser.predict(x, torch.full((rows,), 500), [self._text] * rows, adapter=adapter)

    def step(self) -> None:
        self._predict(1, adapter=True).square().mean().backward()

    @torch.no_grad()
    def reference(self, rows: int) -> None:
        self._predict(rows, adapter=False)


def memory(family: str, width: float, pixels: int) -> str:
    """A row of the table for each way to train."""
    lines = []
    for blocks in (False, True):
        one = Pass(family, width, pixels, blocks)
        one.step()  # the first makes gradients and looks at every block
        with LiveTensors() as live:
            one.step()
        step, found = live.peak, []
        for rows in ROWS:
            with LiveTensors() as live:
                one.reference(rows)
            found.append(live.peak)
        cells = " | ".join(f"{n / 1e6:.1f} ({n / step:.2f})" for n in found)
        lines.append(
            f"| {family}, {pixels} px{', checkpointed' if blocks else ''} | {step / 1e6:.1f} | {cells} |"
        )
    return "\n".join(lines)


def prefix(family: str, width: float, pixels: int, rounds: int) -> str:
    one = Pass(family, width, pixels)
    reached: list[float] = []
    for _, layer in lora_layers(one.denoiser.network):
        layer.register_forward_pre_hook(lambda *_: reached.append(time.perf_counter()))
    found = []
    for _ in range(rounds + 1):
        reached.clear()
        started = time.perf_counter()
        one.step()
        found.append((reached[0] - started, time.perf_counter() - started))
    before, step = (statistics.median(values) for values in zip(*found[1:], strict=True))
    return f"| {family}, width {width:g}, {pixels} px | {before:.4f} | {step:.4f} | {100 * before / step:.1f} % |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", nargs="+", default=["sd15", "sdxl"], choices=["sd15", "sdxl"])
    parser.add_argument("--pixels", nargs="+", type=int, default=[128, 512], help="side of the pictures")
    parser.add_argument("--width", type=float, default=0.1, help="of the networks; 1.0 is real")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prefix", action="store_true", help="the second table instead of the first")
    options = parser.parse_args()
    kept = declare_torchvision_schemas()  # noqa: F841  # peft imports torchvision
    torch.set_num_threads(options.threads)
    if options.prefix:
        print("| network | s to the first adapted layer | s/step | share |\n|---|---|---|---|")
    else:
        heads = " | ".join(f"phi, {n} rows" for n in ROWS)
        print(f"| network | step, MB | {heads} |\n{'|---' * (len(ROWS) + 2)}|")
    for family in options.family:
        for pixels in options.pixels:
            if options.prefix:
                print(prefix(family, options.width, pixels, options.rounds), flush=True)
            else:
                print(memory(family, options.width, pixels), flush=True)


if __name__ == "__main__":
    main()
