"""Damaged and hostile LoRA files against `python -m dco_core`: a clear error or a correct result.

File number n is the same on every machine. Each is merged with a sound file onto an output that is there already, with
the options taking turns; every fifth is resized, converted and inspected too. Allowed: exit status 0 and, of an exact
merge, the dense sum, computed here from the raw tensors; or status 1, one printable line that begins with "error: ",
and the old output as it was. Never: another exception, a file left over, or the pickles' code run.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from dco_core.cli.commands import main as command
from dco_core.lora import canonical_keys, read_lora
from dco_core.lora.keys import split_key

from .hostile_files import SOUND, file_number

OLD = b"the file that was there before"
# Those without options must give the exact sum.
OPTIONS: tuple[list[str], ...] = (
    [], ["--rank", "2"], [], ["--max-error", "0.1"], [], ["--max-error", "0.1", "--dtype", "bf16"], ["--dtype", "fp16"],
    ["--method", "ties", "--rank", "1"], ["--method", "np-lora"], ["--keys", "diffusers"], [],
)  # fmt: skip


def dense(tensors: dict[str, torch.Tensor], pair_alpha: float | None) -> dict[str, torch.Tensor]:
    """{canonical key: dW in fp64}, from the definitions of the adapter types. pair_alpha: alpha of a pair without."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        found = None if key.startswith("bundle_emb.") else split_key(key)
        if found:
            modules.setdefault(found[0], {})[found[1]] = tensor.double()
    names = canonical_keys(modules)
    deltas = {}
    for name, p in modules.items():
        scale = p["alpha"].reshape(()) if "alpha" in p else None
        if "down" in p:
            alpha = pair_alpha if scale is None and pair_alpha is not None else scale
            delta = (
                p["up"].flatten(1) @ p["down"].flatten(1) * (1 if alpha is None else alpha / len(p["down"]))
            )
        elif "hada_w1_a" in p:
            delta = (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])
            delta = delta * (1 if scale is None else scale / len(p["hada_w1_b"]))
        elif "lokr_w2_b" in p or "lokr_w2" in p or "lokr_w1" in p:
            w2 = p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_a"] @ p["lokr_w2_b"].flatten(1)
            delta = torch.kron(p["lokr_w1"], w2.flatten(1))
            delta = delta * (scale / len(p["lokr_w2_b"]) if scale is not None and "lokr_w2_b" in p else 1)
        elif "diff" in p and p["diff"].dim() > 1:
            delta = p["diff"].flatten(1)
        else:
            continue
        deltas[names[name]] = delta
    return deltas


def check(number: int, folder: Path) -> str:
    """Merge file `number`; returns 'merged' or 'refused'. Raises AssertionError for anything that must not happen."""
    sentinel = folder / "code was run"
    name, data = file_number(number, sentinel)
    a, b, out = (folder / f"{n}.safetensors" for n in ("mutated", "sound", "out"))
    a.write_bytes(data)
    b.write_bytes(SOUND)
    out.write_bytes(OLD)
    options = OPTIONS[number % len(OPTIONS)]
    where = f"file {number} ({name})"
    if number % 5 == 0:
        for other in (["resize", a, "--rank", "1"], ["convert", a, "--to", "diffusers"], ["inspect", a, b]):
            _done(where, sentinel, out, *other, *(["--output", out] if other[0] != "inspect" else []))
            out.write_bytes(OLD)
    if not _done(where, sentinel, out, "merge", f"{a}=0.7", f"{b}=-0.5", "--output", out, *options):
        return "refused"
    if not options:
        _assert_sum(where, a, b, out)
    return "merged"


def _done(where: str, sentinel: Path, out: Path, *arguments: object) -> bool:
    """Run a command: True if it was done, False if it was refused as it should be."""
    where, printed, errors = f"{where}, {arguments[0]}:", io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        status = command([str(argument) for argument in arguments])
    assert not sentinel.exists(), f"{where} ran code"
    left = sorted(path.name for path in out.parent.iterdir())
    assert left == ["mutated.safetensors", "out.safetensors", "sound.safetensors"], f"{where} left {left}"
    assert (printed.getvalue() + errors.getvalue()).replace("\n", "").isprintable(), f"{where} steers the terminal"
    if status == 1:
        message = errors.getvalue()
        assert message.startswith("error: ") and message.count("\n") == 1, f"{where} printed {message!r}"
        assert out.read_bytes() == OLD, f"{where} touched the output"
    else:
        assert status == 0 and not errors.getvalue(), f"{where} ended with {status}"
    return status == 0


def _assert_sum(where: str, a: Path, b: Path, out: Path) -> None:
    from safetensors import safe_open

    with safe_open(a, "pt") as file:
        config = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    config = config if isinstance(config, dict) else {}
    of_unet = any(key.startswith("unet.") for key in load_file(a))
    alpha = config.get("unet.lora_alpha" if of_unet and "unet.lora_alpha" in config else "lora_alpha")
    terms = [(0.7, dense(load_file(a), alpha)), (-0.5, dense(load_file(b), None))]
    merged = read_lora(out).layers
    assert set(merged) == {key for _, deltas in terms for key in deltas}, f"{where}: layers {sorted(merged)}"
    for key, layer in merged.items():
        there = [(w, deltas[key]) for w, deltas in terms if key in deltas]
        expected = sum(w * d for w, d in there)
        got = layer.scale * layer.up.double().flatten(1) @ layer.down.double().flatten(1)
        size = sum(abs(w) * d.norm() for w, d in there)
        assert (got - expected).norm() <= 1e-6 * size + 1e-40, f"{where}: {key} is wrong"
