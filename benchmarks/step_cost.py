"""What a training step costs: our plain loss, DCO (naive and look-ahead), the host's TrainLoraNode, the authors' loop.

    python -m benchmarks.step_cost --family sd15 sdxl --pixels 64 256

Every loop runs in a process of its own, on the same network (benchmarks/networks.py: the family's block structure,
fewer channels, random weights). They take turns: `--window` steps of look-ahead DCO, so that each turn holds one call
of phi, and `--steps` of each other loop; one round is one turn of each. The table gives medians over `--rounds` rounds
of seconds a step, by the clock and of CPU time (which other programs on the machine disturb less), and their ratio to
the plain step; below it, what is to be reached. Memory: the most that each loop held at once in steps, its network
included, above what the process needs when everything is imported; from a second, untimed run. Wants COMFYUI_PATH or
.dev/ComfyUI.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from devtools import in_process_host as host

from .variants import AS_SHIPPED, AUTHORS, LOOK_AHEAD, PLAIN, Setting, variants

ROOT = Path(__file__).resolve().parent.parent
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Loop:
    """One variant in a process of its own, which stops after every step until asked for more."""

    def __init__(self, name: str, setting: Setting, threads: int, give_back_memory: bool = False):
        self.name = name
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": str(threads)}
        if give_back_memory:  # freed tensors leave the process at once; slower
            environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        about = json.dumps(dataclasses.asdict(setting))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.step_cost", "--loop", name, about, "--threads", str(threads)],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._answer()

    def steps(self, count: int) -> dict[str, float]:
        """Run so many steps: {"seconds": of one, "cpu": seconds of one, "peak": bytes so far}."""
        assert self._process.stdin is not None
        print(count, file=self._process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"The loop {self.name!r} ended early; see its error above.")


def _serve(name: str, setting: Setting, threads: int) -> None:
    """Be one Loop's process."""
    torch.set_num_threads(threads)
    host.start()
    imports = (
        "comfy.sd", "comfy_extras.nodes_train", "diffusers", "transformers", "peft",
        "torch._dynamo",  # torch.utils.checkpoint imports it
    )  # fmt: skip
    for module in imports:
        __import__(module)
    before = _resident("VmRSS")
    left, asked, started = 0, 0, (0.0, 0.0)

    def callback() -> None:
        nonlocal left, asked, started
        left -= 1
        if left > 0:
            return
        clock, cpu = time.perf_counter(), time.process_time()
        count = max(1, asked)
        print(
            json.dumps(
                {
                    "seconds": (clock - started[0]) / count,
                    "cpu": (cpu - started[1]) / count,
                    "peak": _peak() - before,
                }
            ),
            flush=True,
        )
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        if not asked:
            gc.collect()
            if RESET.exists():
                RESET.write_text("5")  # the peak so far is forgotten: it was building
        asked = left = int(line)
        started = time.perf_counter(), time.process_time()

    variants(setting)[name](setting, callback)


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _resident("VmHWM")


def _resident(field: str) -> int:
    """Bytes, from Linux; 0 elsewhere and on a GPU, where the allocator counts."""
    if torch.cuda.is_available() or not STATUS.exists():
        return 0
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def time_in_turns(
    names: Sequence[str], setting: Setting, rounds: int, steps: int, threads: int
) -> dict[str, list[dict[str, float]]]:
    """{variant: what each round took}."""
    loops = {name: Loop(name, setting, threads) for name in names}
    counts = {name: setting.window if name == LOOK_AHEAD else steps for name in names}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    try:
        for name, loop in loops.items():
            loop.steps(counts[name])  # warm-up: optimizer states, allocator
        for _ in range(rounds):
            for name, loop in loops.items():
                found[name].append(loop.steps(counts[name]))
    finally:
        for loop in loops.values():
            loop.end()
    return found


def peak_of(name: str, setting: Setting, threads: int) -> int:
    """Bytes that the loop holds at most, over two windows of look-ahead."""
    loop = Loop(name, setting, threads, give_back_memory=True)
    try:
        return int(loop.steps(setting.window + 1 if name == LOOK_AHEAD else 2)["peak"])
    finally:
        loop.end()


def table(found: Mapping[str, Sequence[Mapping[str, float]]], peaks: Mapping[str, int]) -> str:
    """A markdown table with a row for every variant."""
    median = {
        name: {key: statistics.median(r[key] for r in rounds) for key in ("seconds", "cpu")}
        for name, rounds in found.items()
    }
    lines = [
        "| loop | s/step | x plain | CPU s/step | x plain (CPU) | peak MiB | x plain |",
        "|---|---|---|---|---|---|---|",
    ]
    plain = median.get(PLAIN) or next(iter(median.values()))
    least = peaks.get(PLAIN) or next(iter(peaks.values()), 0)
    for name, m in median.items():
        peak = f"{peaks[name] / 2**20:.0f} | {peaks[name] / least:.2f}" if peaks.get(name) else "- | -"
        lines.append(
            f"| {name} | {m['seconds']:.3f} | {m['seconds'] / plain['seconds']:.2f} | {m['cpu']:.3f} | "
            f"{m['cpu'] / plain['cpu']:.2f} | {peak} |"
        )
    return "\n".join(lines)


def goals(found: Mapping[str, Sequence[Mapping[str, float]]], peaks: Mapping[str, int]) -> str:
    """What is to be reached beside what was: medians over rounds of the ratio of two loops in one round."""

    def ratio(above: str, below: str) -> str:
        pairs = list(zip(found[above], found[below], strict=True))
        by = {key: statistics.median(a[key] / b[key] for a, b in pairs) for key in ("seconds", "cpu")}
        return f"{by['seconds']:.2f} (CPU {by['cpu']:.2f})"

    rows = [
        ("DCO / plain, at most 1.15 (1.30 where compute-bound)", LOOK_AHEAD, PLAIN),
        ("DCO / TrainLoraNode as it ships, at most 1.0", LOOK_AHEAD, AS_SHIPPED),
        ("authors' DCO / DCO, at least 1.5", AUTHORS, LOOK_AHEAD),
    ]
    lines = ["| to reach | reached |", "|---|---|"]
    lines += [f"| {what} | {ratio(a, b)} |" for what, a, b in rows if a in found and b in found]
    if peaks.get(LOOK_AHEAD) and peaks.get(PLAIN):
        lines.append(f"| peak memory, DCO / plain, at most 1.05 | {peaks[LOOK_AHEAD] / peaks[PLAIN]:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", nargs="+", default=["sd15", "sdxl"], choices=["sd15", "sdxl"])
    parser.add_argument("--pixels", nargs="+", type=int, default=[64, 256], help="side of the pictures")
    parser.add_argument("--width", type=float, default=0.2, help="of the networks; 1.0 is real")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--window", type=int, default=8, help="batches that phi looks ahead")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="of each other loop in a turn")
    parser.add_argument("--threads", type=int, default=1, help="more suffer when others compute")
    parser.add_argument("--blocks", action="store_true", help="gradient checkpointing in our loops too")
    parser.add_argument("--dtype", default="float32", help="of the host's network for our loops")
    parser.add_argument("--only", nargs="+", default=None, help="names of loops")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--loop", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:
        _serve(options.loop[0], Setting(**json.loads(options.loop[1])), options.threads)
        return
    for family in options.family:
        for pixels in options.pixels:
            setting = Setting(
                family, options.width, pixels, options.rank, options.window, options.blocks, options.dtype
            )
            names = options.only or list(variants(setting))
            found = time_in_turns(names, setting, options.rounds, options.steps, options.threads)
            peaks = (
                {} if options.no_memory else {name: peak_of(name, setting, options.threads) for name in names}
            )
            channels = ", ".join(map(str, setting.shape.channels))
            print(
                f"\n{family}: {channels} channels, {pixels} px, rank {options.rank}, {options.dtype}, batch 1, window "
                f"{options.window}, {options.threads} threads, {options.rounds} rounds\n"
            )
            print(table(found, peaks), goals(found, peaks), sep="\n\n", flush=True)


if __name__ == "__main__":
    main()
