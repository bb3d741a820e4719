"""What a merge costs: ours, kohya's methods and PEFT's, against reading and writing the same bytes.

    python -m benchmarks.merge_cost [--rank 64] [--layers 722] [--svd-layers 6] [--rounds 3] [--output FILE.md]

Two LoRAs in fp16 on the linear layers of SDXL's UNet that kohya's scripts adapt (722), random values. Every contender
runs in a process of its own and says how long it took from files to a file on disk (fsync), without imports. Each run
is followed by one that reads both files and writes as many bytes, and the ratio is of these two, so that what else the
machine does weighs on both; the table has medians over `--rounds`. Memory is the process's peak resident set, in
brackets what the imports alone take (peft's among them). The error is max |dW - dense sum| / |dense sum| over every
60th layer, in fp64.

kohya's scripts (sd-scripts, networks/sdxl_merge_lora.py --concat and svd_merge_lora.py) need an environment of their
own, so their arithmetic is written out here: file in, the same operations in the same order and precision ("float"),
file out. PEFT is the real add_weighted_adapter on a network of linear layers with these names and sizes, whose weights
take no memory. The SVD methods would take hours on a CPU: they run on `--svd-layers` layers, spread over the network,
and the table says how long a layer took.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from devtools.environment import PASSIVE_WAITING
from devtools.host_launcher import declare_torchvision_schemas

TORCHVISION = declare_torchvision_schemas()  # diffusers and peft import torchvision; kept alive here
WEIGHTS = (0.8, -0.5)


def sdxl_layers() -> dict[str, tuple[int, int]]:
    """{kohya key: (out, in)} of the 722 linear layers in SDXL's attention blocks, from diffusers' UNet."""
    import diffusers

    from dco_core.lora import canonical_keys

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            cross_attention_dim=2048,
            attention_head_dim=(5, 10, 20),
            use_linear_projection=True,
        )
    sizes = {
        f"unet.{name}": (module.out_features, module.in_features)
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear) and ".attentions." in name
    }
    names = canonical_keys(sizes)
    return {names[name]: size for name, size in sizes.items()}


def make(path: Path, layers: dict[str, tuple[int, int]], rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, (out, inside) in layers.items():
        tensors[f"{key}.lora_down.weight"] = (torch.randn(rank, inside, generator=generator) / 30).half()
        tensors[f"{key}.lora_up.weight"] = (torch.randn(out, rank, generator=generator) / 30).half()
        tensors[f"{key}.alpha"] = torch.tensor(rank / 2).half()
    save_file(tensors, path)


def copy(a: Path, b: Path, out: Path, size: int) -> None:
    """Read both files once, in pieces of 8 MiB, and write `size` bytes."""
    piece = memoryview(bytearray(2**23))
    left = size
    with out.open("wb") as file:
        for path in (a, b):
            with path.open("rb") as source:
                while read := source.readinto(piece):
                    left -= file.write(piece[: min(read, left)])
        while left > 0:
            left -= file.write(piece[: min(len(piece), left)])
        file.flush()
        os.fsync(file.fileno())


def ours(*options: str) -> Callable[[Path, Path, Path], None]:
    def run(a: Path, b: Path, out: Path) -> None:
        from dco_core.cli.commands import main

        assert not main(["merge", f"{a}={WEIGHTS[0]}", f"{b}={WEIGHTS[1]}", "--output", str(out), *options])

    return run


def ours_in_memory(a: Path, b: Path, out: Path) -> None:
    """What the node does."""
    from dco_core.lora import merge, read_lora, write_lora

    write_lora(out, merge([read_lora(a), read_lora(b)], WEIGHTS))


def kohya_concat(a: Path, b: Path, out: Path) -> None:
    """sdxl_merge_lora.py merge_lora_models(concat=True): both factors times sqrt(alpha / base alpha) * ratio (its
    absolute value for up), concatenated; alpha stays that of the first LoRA."""
    merged: dict[str, torch.Tensor] = {}
    alphas: dict[str, float] = {}
    for path, ratio in zip((a, b), WEIGHTS, strict=True):
        state = {key: tensor.float() for key, tensor in load_file(path).items()}
        own = {key[: -len(".alpha")]: float(t) for key, t in state.items() if key.endswith(".alpha")}
        for name, alpha in own.items():
            alphas.setdefault(name, alpha)
        for key, tensor in state.items():
            if key.endswith(".alpha"):
                continue
            name = key[: key.rfind(".lora_")]
            scale = math.sqrt(own[name] / alphas[name]) * ratio
            scale = abs(scale) if "lora_up" in key else scale
            dim = 1 if "lora_up" in key else 0
            merged[key] = torch.cat([merged[key], tensor * scale], dim) if key in merged else tensor * scale
    merged |= {f"{name}.alpha": torch.tensor(alpha) for name, alpha in alphas.items()}
    _save(merged, out)


def kohya_svd(a: Path, b: Path, out: Path, rank: int) -> None:
    """svd_merge_lora.py: the dense sum of all layers, then a full SVD of each, cut, and clamped at a quantile."""
    dense: dict[str, torch.Tensor] = {}
    for path, ratio in zip((a, b), WEIGHTS, strict=True):
        state = {key: tensor.float() for key, tensor in load_file(path).items()}
        for key, down in state.items():
            if "lora_down" in key:
                name = key[: key.rfind(".lora_down")]
                scale = state[f"{name}.alpha"] / down.shape[0]
                delta = ratio * (state[f"{name}.lora_up.weight"] @ down) * scale
                dense[name] = dense[name] + delta if name in dense else delta
    merged = {}
    for name, delta in dense.items():
        u, s, vh = torch.linalg.svd(delta)
        u, vh = u[:, :rank] @ torch.diag(s[:rank]), vh[:rank]
        values = torch.cat([u.flatten(), vh.flatten()])
        # torch.quantile takes up to 16 million values; kohya's layers stay below
        high = torch.quantile(values, 0.99)
        merged[f"{name}.lora_up.weight"] = u.clamp(-high, high).contiguous()
        merged[f"{name}.lora_down.weight"] = vh.clamp(-high, high).contiguous()
        merged[f"{name}.alpha"] = torch.tensor(float(rank))
    _save(merged, out)


def peft_merge(combination: str) -> Callable[..., None]:
    def run(a: Path, b: Path, out: Path, rank: int) -> None:
        import peft

        network = torch.nn.Module()
        states = [load_file(path) for path in (a, b)]
        names = [key.removesuffix(".alpha") for key in states[0] if key.endswith(".alpha")]
        for name in names:
            down, up = states[0][f"{name}.lora_down.weight"], states[0][f"{name}.lora_up.weight"]
            linear = torch.nn.Linear(1, 1, bias=False)
            linear.in_features, linear.out_features = down.shape[1], up.shape[0]
            linear.weight = torch.nn.Parameter(torch.zeros(1, 1).expand(up.shape[0], down.shape[1]), False)
            network.add_module(_plain(name), linear)
        r = down.shape[0]
        config = peft.LoraConfig(
            r=r, lora_alpha=r // 2, target_modules=[_plain(n) for n in names], init_lora_weights=False
        )
        model = peft.get_peft_model(network, config, adapter_name="first")
        model.add_adapter("second", config)
        for adapter, state in zip(("first", "second"), states, strict=True):
            renamed = {}
            for name in names:
                renamed[f"base_model.model.{_plain(name)}.lora_A.weight"] = state[
                    f"{name}.lora_down.weight"
                ].float()
                renamed[f"base_model.model.{_plain(name)}.lora_B.weight"] = state[
                    f"{name}.lora_up.weight"
                ].float()
            peft.set_peft_model_state_dict(model, renamed, adapter_name=adapter)
        options = {"svd_rank": rank} if combination == "svd" else {}
        model.add_weighted_adapter(
            ["first", "second"], list(WEIGHTS), "sum", combination_type=combination, **options
        )
        merged = {}
        for name in names:
            layer = getattr(network, _plain(name))
            merged[f"{name}.lora_down.weight"] = layer.lora_A["sum"].weight.detach().contiguous()
            merged[f"{name}.lora_up.weight"] = (
                layer.lora_B["sum"].weight * layer.scaling["sum"]
            ).contiguous()
        _save(merged, out)

    return run


def _plain(name: str) -> str:
    return name.removeprefix("lora_")  # PEFT leaves out modules whose names contain its own prefix


def _save(tensors: dict[str, torch.Tensor], out: Path) -> None:
    save_file({key: tensor.detach() for key, tensor in tensors.items()}, out)
    with out.open("rb+") as file:
        os.fsync(file.fileno())


CONTENDERS: dict[
    str, tuple[Callable[..., None], bool, bool]
] = {  # name: (function, takes the rank, full SVD)
    "dco_core merge (exact, fp32)": (ours(), False, False),
    "dco_core merge --dtype fp16": (ours("--dtype", "fp16"), False, False),
    "dco_core merge, in memory": (ours_in_memory, False, False),
    "kohya sdxl_merge_lora --concat": (kohya_concat, False, False),
    "PEFT add_weighted_adapter cat": (peft_merge("cat"), True, False),
    "dco_core merge --rank 64": (ours("--rank", "64"), False, False),
    "kohya svd_merge_lora": (kohya_svd, True, True),
    "PEFT add_weighted_adapter svd": (peft_merge("svd"), True, True),
    "dco_core merge --rank 64 ": (ours("--rank", "64"), False, True),
}


def child(name: str, number: int, a: Path, b: Path, out: Path) -> None:
    """Run one contender, or read both files and write `number` bytes; prints its figures as JSON."""
    run, takes_number, _ = CONTENDERS.get(name, (copy, True, False))
    import peft  # noqa: F401

    import dco_core.cli.commands  # noqa: F401

    before = peak_memory()
    started, busy = time.perf_counter(), time.process_time()
    run(a, b, out, number) if takes_number else run(a, b, out)
    seconds = time.perf_counter() - started
    found = {"seconds": seconds, "cpu": time.process_time() - busy, "peak": peak_memory(), "imports": before}
    print(json.dumps(found))


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes; mapped files count."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measured(name: str, a: Path, b: Path, out: Path, rank: int) -> dict[str, float]:
    environment = {**PASSIVE_WAITING, **os.environ}
    command = [sys.executable, "-m", "benchmarks.merge_cost", "--child", name, str(a), str(b), str(out)]
    done = subprocess.run(
        [*command, "--rank", str(rank)], capture_output=True, text=True, check=True, env=environment
    )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found | {"bytes": out.stat().st_size} | ({} if name == "copy" else {"error": error(a, b, out)})


def rounds(name: str, a: Path, b: Path, out: Path, rank: int, count: int) -> dict[str, float]:
    """Medians of the figures of `count` runs, each beside one that reads and writes the same bytes: floor (s), ratio
    and cpu_ratio are of them."""
    runs = []
    for _ in range(count):
        run = measured(name, a, b, out, rank)
        floor = measured("copy", a, b, out, int(run["bytes"]))
        ratios = {"ratio": run["seconds"] / floor["seconds"], "cpu_ratio": run["cpu"] / floor["cpu"]}
        runs.append(run | ratios | {"floor": floor["seconds"]})
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def error(a: Path, b: Path, out: Path) -> float:
    """max |dW - dense sum| / |dense sum| over every 60th layer."""

    def delta(file, name: str) -> torch.Tensor:
        down = file.get_tensor(f"{name}.lora_down.weight").double()
        alpha = f"{name}.alpha"
        scale = float(file.get_tensor(alpha)) / down.shape[0] if alpha in file.keys() else 1.0
        return scale * file.get_tensor(f"{name}.lora_up.weight").double() @ down

    worst = 0.0
    with safe_open(a, "pt") as fa, safe_open(b, "pt") as fb, safe_open(out, "pt") as fo:
        names = sorted(key.removesuffix(".alpha") for key in fa.keys() if key.endswith(".alpha"))
        for name in names[::60]:
            expected = WEIGHTS[0] * delta(fa, name) + WEIGHTS[1] * delta(fb, name)
            worst = max(worst, float((delta(fo, name) - expected).norm() / expected.norm()))
    return worst


def report(rank: int, count: int, svd_count: int, repeats: int) -> str:
    layers = sdxl_layers()
    every = dict(list(layers.items())[:count])
    some = dict(list(layers.items())[:: max(1, len(layers) // svd_count)][:svd_count])
    lines = [
        f"Two LoRAs of rank {rank}, fp16, {len(every)} layers of SDXL's UNet; weights {WEIGHTS}; torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} CPU cores; medians of {repeats}.",
        "",
        "| merge | seconds | CPU seconds | time / reading and writing | the same in CPU time | peak memory / output | "
        "output MiB | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        a, b, out = (Path(folder) / f"{n}.safetensors" for n in ("a", "b", "out"))
        make(a, every, rank, 0)
        make(b, every, rank, 1)
        for name, (_, _, full_svd) in CONTENDERS.items():
            if full_svd:
                continue
            found = rounds(name, a, b, out, rank, repeats)
            lines.append(
                f"| {name} | {found['seconds']:.1f} | {found['cpu']:.1f} | "
                f"{found['ratio']:.1f} ({found['floor']:.1f} s) | {found['cpu_ratio']:.1f} | "
                f"{found['peak'] / found['bytes']:.2f} (imports {found['imports'] / found['bytes']:.2f}) | "
                f"{found['bytes'] / 2**20:.0f} | {found['error']:.1e} |"
            )
            print(lines[-1], flush=True)
        lines += ["", f"| to rank {rank}, on {len(some)} layers | seconds a layer | error |", "|---|---|---|"]
        make(a, some, rank, 0)
        make(b, some, rank, 1)
        for name, (_, _, full_svd) in CONTENDERS.items():
            if full_svd:
                found = measured(name, a, b, out, rank)
                lines.append(
                    f"| {name.strip()} | {found['seconds'] / len(some):.2f} | {found['error']:.3f} |"
                )
                print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--layers", type=int, default=722)
    parser.add_argument("--svd-layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a Markdown file for the tables")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    values = parser.parse_args()
    if values.child:
        name, *paths = values.child
        child(name, values.rank, *map(Path, paths))
        return
    text = report(values.rank, values.layers, values.svd_layers, values.rounds)
    print("\n" + text)
    if values.output:
        values.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
