"""What reward guidance costs: a step against classifier-free guidance of the same model, in turns.

    python -m benchmarks.guidance_cost --family sd15 sdxl --pixels 256

The host's own sampler (Euler) on the family's block structure with fewer channels and random weights
(benchmarks/networks.py); a LoRA on all attention projections. Every variant samples `--steps` steps a turn; one round
is one turn of each. The table gives medians over `--rounds` rounds of seconds a step, of CPU time and of their ratio to
CFG in the same round. The self-check is off but in its own row: it costs the first step of a run once more. Memory: the
most that a run holds above what is held before it, of tensors that torch's profiler sees. Wants COMFYUI_PATH or
.dev/ComfyUI.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from devtools import in_process_host as host

from .networks import Shape, host_model, shape_of

W_RG, W_TEXT, TOKENS = 3.0, 7.5, 77
CFG = "CFG (two rows)"


def lora_for(model, rank: int) -> dict[str, torch.Tensor]:
    """A LoRA on every attention projection of a UNet, fp32."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, torch.Tensor] = {}
    for name, module in model.model.diffusion_model.named_modules():
        if isinstance(module, torch.nn.Linear) and (".attn1." in name or ".attn2." in name):
            out, inner = module.weight.shape
            found[f"diffusion_model.{name}.lora_down.weight"] = (
                torch.randn((rank, inner), generator=generator) * 0.02
            )
            found[f"diffusion_model.{name}.lora_up.weight"] = (
                torch.randn((out, rank), generator=generator) * 0.02
            )
    return found


def conditioning(shape: Shape, seed: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn((1, TOKENS, shape.context), generator=generator)
    return [[text, {"pooled_output": torch.randn((1, shape.pooled), generator=generator)}]]


class Setup:
    """Sampling runs of one family that differ in their guidance."""

    def __init__(self, family: str, width: float, pixels: int, rank: int, steps: int):
        import comfy.samplers

        self.shape, self.steps = shape_of(family, width), steps
        self.model = host_model(self.shape, None)
        for name, parameter in self.model.model.diffusion_model.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
        self.lora = lora_for(self.model, rank)
        self.latent = torch.zeros(1, 4, pixels // 8, pixels // 8)
        sampling = self.model.get_model_object("model_sampling")
        self.sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)

    def sampler(self, w_rg: float | None, **options) -> Callable[[], None]:
        """w_rg: None for plain CFG."""
        import comfy.samplers

        guided = host.pack("nodes.guidance.guided").Guided
        model = self.model
        if w_rg is not None:
            model = guided(model, self.lora, None, {"self_check": False} | options).patched("reward", w_rg)

        def run() -> None:
            guider = comfy.samplers.CFGGuider(model)
            guider.set_conds(conditioning(self.shape, 1), conditioning(self.shape, 2))
            guider.set_cfg(W_TEXT)
            with torch.inference_mode():
                guider.sample(
                    torch.randn(self.latent.shape), self.latent, comfy.samplers.sampler_object("euler"), self.sigmas,
                    disable_pbar=True, seed=0,
                )  # fmt: skip

        return run


def variants(setup: Setup, chosen: list[str] | None) -> dict[str, Callable[[], None]]:
    """Every run, or CFG and those whose name holds one of `chosen`."""
    runs = {
        CFG: setup.sampler(None),
        "reward guidance (three rows)": setup.sampler(W_RG),
        "reward guidance on half the schedule": setup.sampler(W_RG, start_percent=0.0, end_percent=0.5),
        "w_rg = w_text (two rows)": setup.sampler(W_TEXT),
        "w_rg = 0 (off)": setup.sampler(0.0),
        "reward guidance, low memory": setup.sampler(W_RG, low_memory=True),
        "reward guidance with its self-check": setup.sampler(W_RG, self_check=True),
    }
    return {
        name: run
        for name, run in runs.items()
        if name == CFG or chosen is None or any(part in name for part in chosen)
    }


def peak(run: Callable[[], None]) -> int:
    """Bytes of tensors held at most above those before the run."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    held = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def measure(setup: Setup, rounds: int, chosen: list[str] | None) -> None:
    runs = variants(setup, chosen)
    for run in runs.values():
        run()
    clock: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began, used = time.perf_counter(), time.process_time()
            run()
            clock[name].append((time.perf_counter() - began) / setup.steps)
            cpu[name].append((time.process_time() - used) / setup.steps)
    held = {name: peak(run) for name, run in runs.items()}
    print("\n| run | s/step | x CFG | CPU s/step | x CFG (CPU) | peak MiB |\n|---|---|---|---|---|---|")
    for name in runs:
        ratios = [
            statistics.median(a / b for a, b in zip(times[name], times[CFG], strict=True))
            for times in (clock, cpu)
        ]
        print(
            f"| {name} | {statistics.median(clock[name]):.3f} | {ratios[0]:.2f} | {statistics.median(cpu[name]):.3f} "
            f"| {ratios[1]:.2f} | {held[name] / 2**20:.1f} |",
            flush=True,
        )
    size = sum(t.numel() * t.element_size() for t in setup.lora.values())
    most = max(held[name] for name in runs) - held[CFG]
    print(
        f"\nAt most {most / 2**20:.1f} MiB more than CFG. The LoRA ({size / 2**20:.1f} MiB, held by its node already) "
        f"and one more row of activations (half of CFG's two) are {(size + held[CFG] / 2) / 2**20:.1f} MiB."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", nargs="+", choices=("sd15", "sdxl"), default=["sd15", "sdxl"])
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--width", type=float, default=0.4, help="of the networks; 1.0 is real")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="more suffer when others compute")
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help="runs whose name holds one of these; CFG always runs"
    )
    values = parser.parse_args()
    torch.set_num_threads(values.threads)
    host.start()
    for family in values.family:
        setup = Setup(family, values.width, values.pixels, values.rank, values.steps)
        print(
            f"\n{family}: {', '.join(map(str, setup.shape.channels))} channels, {values.pixels} px, rank {values.rank}"
            f", fp32, batch 1, {values.threads} threads, {values.rounds} rounds of {values.steps} steps"
        )
        measure(setup, values.rounds, values.only)


if __name__ == "__main__":
    main()
