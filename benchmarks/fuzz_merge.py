"""Damaged and hostile LoRA files against `python -m dco_core`: a clear error or a correct result.

    python -m benchmarks.fuzz_merge [--files 10000] [--first 0]

File number n is the same on every machine. Each is merged with a sound file onto an output that is there already, with
the options taking turns; every fifth is resized, converted and inspected too. Allowed: exit status 0 and, of an exact
merge, the dense sum, computed here from the raw tensors; or status 1, one printable line that begins with "error: ",
and the old output as it was. Never: another exception, a file left over, or the pickles' code run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import io
import json
import os
import pickle
import random
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from dco_core.command_line import main as command
from dco_core.lora import canonical_keys, read_lora
from dco_core.lora.keys import split_key

OLD = b"the file that was there before"
LINEAR = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_output_blocks_2_2_conv"
TEXT = "lora_te1_text_model_encoder_layers_0_mlp_fc1"


@functools.cache
def seeds() -> dict[str, bytes]:
    """Sound files of all kinds, which the mutations start from."""
    generator = torch.Generator().manual_seed(0)

    def r(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    kohya = {
        f"{LINEAR}.lora_down.weight": r(3, 8, dtype=torch.float16), f"{LINEAR}.lora_up.weight": r(6, 3),
        f"{LINEAR}.alpha": torch.tensor(1.5), f"{CONV}.lora_down.weight": r(2, 4, 3, 3),
        f"{CONV}.lora_up.weight": r(5, 2, 1, 1), f"{TEXT}.lora_down.weight": r(2, 8, dtype=torch.bfloat16),
        f"{TEXT}.lora_up.weight": r(4, 2), f"{TEXT}.alpha": torch.tensor(4.0), "bundle_emb.cat.clip_l": r(2, 8),
    }  # fmt: skip
    diffusers = {
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": r(2, 8),
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight": r(6, 2),
    }
    loha = {f"{LINEAR}.hada_w{i}_{x}": r(*((6, 2) if x == "a" else (2, 8))) for i in "12" for x in "ab"}
    lokr = {f"{LINEAR}.lokr_w1": r(2, 2), f"{LINEAR}.lokr_w2_a": r(3, 1), f"{LINEAR}.lokr_w2_b": r(1, 4)}
    full = {f"{LINEAR}.diff": r(6, 8), f"{LINEAR}.diff_b": r(6)}
    alpha = {f"{LINEAR}.alpha": torch.tensor(3.0)}
    return {
        "kohya": save(kohya, {"modelspec.title": "a", "dco.tokens": '{"cat": "cat"}'}),
        "diffusers": save(diffusers, {"lora_adapter_metadata": '{"unet.r": 2, "unet.lora_alpha": 3}'}),
        "loha": save(loha | alpha), "lokr": save(lokr | alpha), "full": save(full),
    }  # fmt: skip


SOUND = save({
    f"{LINEAR}.lora_down.weight": torch.full((1, 8), 0.5), f"{LINEAR}.lora_up.weight": torch.full((6, 1), 0.25),
    f"{LINEAR}.alpha": torch.tensor(1.0),
})  # fmt: skip


def split(data: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict | str, body: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


class Payload:
    """A pickle that would make a file."""

    def __init__(self, sentinel: Path):
        self._sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (str(self._sentinel),)


def truncate(data, chance, sentinel):
    return data[: chance.randrange(len(data))]


def append(data, chance, sentinel):
    return data + chance.randbytes(chance.randrange(1, 64))


def flip_anywhere(data, chance, sentinel):
    damaged = bytearray(data)
    for _ in range(chance.randrange(1, 9)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


def flip_header(data, chance, sentinel):
    damaged = bytearray(data)
    (length,) = struct.unpack("<Q", data[:8])
    for _ in range(chance.randrange(1, 4)):
        damaged[8 + chance.randrange(length)] = chance.choice(b'0123456789{}[]",:FIB-. ')
    return bytes(damaged)


def header_length(data, chance, sentinel):
    length = chance.choice(
        [0, 1, 7, 2**20, 10**8, 10**8 + 1, 2**31, 2**63, 2**64 - 1, chance.randrange(2**16)]
    )
    return struct.pack("<Q", length) + data[8:]


def shape(data, chance, sentinel):
    header, body = split(data)
    entry = header[_key(header, chance)]
    entry["shape"] = chance.choice(
        [entry["shape"][::-1], [*entry["shape"], 1], [1, *entry["shape"]], [], [0, 8], [2**40, 2**40], [-1, 8],
         [sum(entry["shape"])], entry["shape"][1:], [2**64], ["8", "2"], None, [1.5, 2]]
    )  # fmt: skip
    return joined(header, body)


def reshape(data, chance, sentinel):
    """Another shape of the same size: the file is sound, its parts do not fit."""
    header, body = split(data)
    entry = header[_key(header, chance)]
    size = 1
    for n in entry["shape"]:
        size *= n
    factor = chance.choice([d for d in range(1, size + 1) if size % d == 0] or [1])
    entry["shape"] = chance.choice(
        [[size // factor, factor], [size], [1, 1, size], [size // factor, factor, 1, 1]]
    )
    return joined(header, body)


def dtype(data, chance, sentinel):
    header, body = split(data)
    header[_key(header, chance)]["dtype"] = chance.choice(
        ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4",
         "C64", "U64", "XX", "", 7, None]
    )  # fmt: skip
    return joined(header, body)


def other_dtype(data, chance, sentinel):
    """A tensor soundly saved in another dtype."""
    tensors = _tensors(data)
    key = chance.choice(sorted(tensors))
    wanted = chance.choice(
        [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float64, torch.float16]
    )
    tensors[key] = tensors[key].to(wanted)
    return save(tensors)


def offsets(data, chance, sentinel):
    header, body = split(data)
    entry = header[_key(header, chance)]
    begin, end = entry["data_offsets"]
    entry["data_offsets"] = chance.choice(
        [[end, begin], [0, end - begin], [begin, end + 4], [begin + 1, end + 1], [-4, end], [2**63, 2**63 + 4], [begin],
         [0, 0], None]
    )  # fmt: skip
    return joined(header, body)


def values(data, chance, sentinel):
    tensors = _tensors(data)
    key = chance.choice(sorted(tensors))
    tensor = tensors[key] = tensors[key].clone()
    value = chance.choice([float("nan"), float("inf"), -float("inf"), 0.0, 1e38, 65504.0, 1e-45, -1.0])
    tensor.reshape(-1)[chance.randrange(tensor.numel())] = value
    return save(tensors)


def missing(data, chance, sentinel):
    tensors = _tensors(data)
    for _ in range(chance.randrange(1, 3)):
        if tensors:
            del tensors[chance.choice(sorted(tensors))]
    return save(tensors)


def alpha(data, chance, sentinel):
    tensors = _tensors(data)
    tensors[f"{LINEAR}.alpha"] = chance.choice(
        [torch.tensor(float("nan")), torch.tensor(0.0), torch.tensor(-7.0), torch.ones(2), torch.ones(1, 1),
         torch.tensor(3), torch.tensor(1e30), torch.zeros(0), torch.tensor(True), torch.tensor([5.0])]
    )  # fmt: skip
    return save(tensors)


def duplicate_entry(data, chance, sentinel):
    """A key that stands twice in the header."""
    header, body = split(data)
    key = _key(header, chance)
    text = json.dumps(header)
    entry = f"{json.dumps(key)}: {json.dumps(header[chance.choice([key, _key(header, chance)])])}"
    return joined(text[:-1] + ", " + entry + "}", body)


def duplicate_module(data, chance, sentinel):
    """One module under two spellings, or two kinds in one module."""
    tensors = _tensors(data)
    spelled = chance.choice([
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", LINEAR,
    ])  # fmt: skip
    down, up = chance.choice(
        [("lora_down", "lora_up"), ("lora_A", "lora_B"), ("lora_A.default", "lora_B.default")]
    )
    tensors[f"{spelled}.{down}.weight"], tensors[f"{spelled}.{up}.weight"] = (
        torch.ones(1, 8),
        torch.ones(6, 1),
    )
    return save(tensors)


def rename(data, chance, sentinel):
    """Names that are paths, code, or hard to print."""
    header, body = split(data)
    key = _key(header, chance)
    name = chance.choice([
        "../../../../etc/passwd", "..\\..\\evil", "/tmp/evil", "C:\\evil", "a\0b", "\u202e", "\ud800", "", " ",
        "x" * 70000,
        "__metadata__", "__import__('os')", "%s%n{}", "\n\r\t", "bundle_emb../../evil.clip_l", "bundle_emb..", "con",
        f"{LINEAR}.lora_down.weight/../..", "../" + key, key + "/..", key.upper(),
    ])  # fmt: skip
    return joined({(name if k == key else k): v for k, v in header.items()}, body)


def metadata(data, chance, sentinel):
    header, body = split(data)
    header["__metadata__"] = chance.choice([
        {"dco.merge": "[[["}, {"dco.tokens": "[1]"}, {"dco.tokens": "{" * 5000}, {"lora_adapter_metadata": "{"},
        {"lora_adapter_metadata": "[]"}, {"lora_adapter_metadata": '{"unet.lora_alpha": "NaN"}'},
        {"lora_adapter_metadata": '{"lora_alpha": NaN}'}, {"lora_adapter_metadata": '{"lora_alpha": 1e999}'},
        {"lora_adapter_metadata": '{"lora_alpha": 2, "alpha_pattern": {"(": 1}}'}, {"a": 1}, {"a": {"b": "c"}}, [], "x",
        None, {"modelspec.title": "x" * 10**6}, {"modelspec.title": "\0\n"},
        {"lora_adapter_metadata": "[" * 100000},
    ])  # fmt: skip
    return joined(header, body)


def other_kind(data, chance, sentinel):
    tensors = _tensors(data)
    suffix = chance.choice([
        "dora_scale", "lora_magnitude_vector", "oft_blocks", "a1.weight", "on_input", "set_weight", "reshape_weight",
        "lora_mid.weight", "hada_w1_a", "hada_t1", "lokr_w1", "lokr_t2", "diff", "diff_b", "w_norm", "lora_B.bias",
        "lora_embedding_A",
    ])  # fmt: skip
    size = chance.choice([(6, 8), (6,), (2, 2), (3, 3, 3, 3), (6, 1), ()])
    tensors[f"{LINEAR}.{suffix}"] = torch.ones(size)
    return save(tensors)


def a_pickle(data, chance, sentinel):
    payload = Payload(sentinel)
    if chance.random() < 0.5:
        return pickle.dumps(payload, protocol=chance.randrange(6))
    file = io.BytesIO()
    torch.save({"a": payload}, file, _use_new_zipfile_serialization=chance.random() < 0.5)
    return file.getvalue()


def no_file_of_this_kind(data, chance, sentinel):
    return chance.choice(
        [b"", b"\0" * 8, b"<!DOCTYPE html>", b"PK\3\4", b"GGUF" + bytes(40), b"version https://git-lfs\n",
         chance.randbytes(chance.randrange(1, 400)), joined("{" * 100000, b""),
         joined('{"a":' * 300 + "1" + "}" * 300, b"")]
    )  # fmt: skip


def hollow(data, chance, sentinel):
    """Tensors without numbers, of shapes that overflow or have no end."""
    header, body = split(data)
    name = chance.choice(["bundle_emb.a.clip_l", f"{LINEAR}.diff_b", f"{CONV}x.lora_down.weight", "a", f"{CONV}x.diff"])
    size = chance.choice([[2**63 - 1, 0], [0, 2**62], [0], [0] * 40, [1] * 70 + [0], [2**62, 2**62, 0]])
    header[name] = {"dtype": "F32", "shape": size, "data_offsets": [len(body), len(body)]}
    return joined(header, body)


def overlap(data, chance, sentinel):
    """Two tensors on the same bytes, a hole between two, or bytes after the last."""
    header, body = split(data)
    entry, other = header[_key(header, chance)], header[_key(header, chance)]
    begin, end = entry["data_offsets"]
    what = chance.randrange(3)
    if what == 0:
        other["data_offsets"] = [begin, begin + other["data_offsets"][1] - other["data_offsets"][0]]
    elif what == 1:
        entry["data_offsets"], body = [len(body) + 4, len(body) + 4 + end - begin], body + bytes(4 + end - begin)
    else:
        body += bytes(8)
    return joined(header, body)


def blown_up(data, chance, sentinel):
    """Small parts of a huge module."""
    n = chance.choice([40000, 100000])
    sizes = chance.choice([
        {"lokr_w1": (n, 1), "lokr_w2": (n, 1)}, {"lokr_w1": (n, 1), "lokr_w2_a": (n, 1), "lokr_w2_b": (1, 30)},
    ])  # fmt: skip
    return save({f"{LINEAR}.{part}": torch.ones(size, dtype=torch.float16) for part, size in sizes.items()})


def control_name(data, chance, sentinel):
    """Module and token names that would steer a terminal, or stand on two lines, in sound and in broken files."""
    tensors = _tensors(data)
    name = "lora_unet_" + chance.choice(["a\nerror: b", "\x1b[2J", "\u202e", "a\rb", "\0", "../../a", "x" * 5000])
    tensors[f"{name}.lora_down.weight"] = torch.ones(1, chance.choice([0, 4]))
    if chance.random() < 0.5:
        tensors[f"{name}.lora_up.weight"] = torch.ones(3, chance.choice([1, 2]))
    tensors[f"bundle_emb.{name}.clip_l"] = torch.ones(chance.choice([(2, 8), (0, 8), ()]))
    return save(tensors, {"modelspec.title": name})


def extreme(data, chance, sentinel):
    """Values near the ends of fp32, which no sum of squares survives."""
    tensors = _tensors(data)
    value = chance.choice([1e38, 1e30, 1e19, 1e10, -1e10, 1e-10, 1e-30, 1e-45, 0.0])
    for key in sorted(tensors):
        if chance.random() < 0.7 and tensors[key].dtype == torch.float32:
            tensors[key] = torch.full_like(tensors[key], value)
    return save(tensors)


def no_floats(data, chance, sentinel):
    """Integers, booleans and single numbers in the place of factors."""
    tensors = _tensors(data)
    for key in sorted(tensors):
        if chance.random() < 0.4:
            made = torch.ones_like(tensors[key], dtype=chance.choice([torch.int64, torch.uint8, torch.bool]))
            tensors[key] = chance.choice([made, torch.tensor(1.0), torch.tensor(2), made.float()[None]])
    return save(tensors)


def header_text(data, chance, sentinel):
    """Headers in other encodings, and JSON that only some readers take."""
    header, body = split(data)
    text = json.dumps(header)
    made = chance.choice([
        text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode(), text.replace("F32", "F\xff").encode("latin-1"),
        text.replace("[", "[NaN, ", 1).encode(), text.replace("}", ",}", 1).encode(), (" " * 99 + text).encode(),
        text.replace('"dtype"', '"dtype": "F32", "dtype"', 1).encode(), text.encode() + b"\0" * 8, f"[{text}]".encode(),
        text.replace('{"dtype"', '{"extra": {"a": [1]}, "dtype"', 1).encode(),
    ])  # fmt: skip
    return struct.pack("<Q", len(made)) + made + body


MUTATIONS: tuple[Callable[[bytes, random.Random, Path], bytes], ...] = (
    truncate, append, flip_anywhere, flip_header, header_length, shape, reshape, dtype, other_dtype, offsets, values,
    missing, alpha, duplicate_entry, duplicate_module, rename, metadata, other_kind, a_pickle, no_file_of_this_kind,
    hollow, overlap, blown_up, control_name, extreme, no_floats, header_text,
)
# Those without options must give the exact sum.
OPTIONS = (
    [], ["--rank", "2"], [], ["--max-error", "0.1"], [], ["--max-error", "0.1", "--dtype", "bf16"], ["--dtype", "fp16"],
    ["--method", "ties", "--rank", "1"], ["--method", "np-lora"], ["--keys", "diffusers"], [],
)  # fmt: skip


def _key(header: dict, chance: random.Random) -> str:
    return chance.choice(sorted(key for key in header if key != "__metadata__"))


def _tensors(data: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(data)


def dense(tensors: dict[str, torch.Tensor], pair_alpha: float | None) -> dict[str, torch.Tensor]:
    """{canonical key: dW in fp64}, from the definitions of the kinds. pair_alpha: alpha where a pair has none."""
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


def file_number(number: int, sentinel: Path) -> tuple[str, bytes]:
    """Name of the mutation and the bytes."""
    chance = random.Random(number)
    mutate = MUTATIONS[number % len(MUTATIONS)]
    found = seeds()
    data = found[chance.choice(sorted(found))]
    return mutate.__name__, mutate(data, chance, sentinel)


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
    where, said, wrong = f"{where}, {arguments[0]}:", io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
        status = command([str(argument) for argument in arguments])
    assert not sentinel.exists(), f"{where} ran code"
    left = sorted(path.name for path in out.parent.iterdir())
    assert left == ["mutated.safetensors", "out.safetensors", "sound.safetensors"], f"{where} left {left}"
    assert (said.getvalue() + wrong.getvalue()).replace("\n", "").isprintable(), f"{where} steers the terminal"
    if status == 1:
        message = wrong.getvalue()
        assert message.startswith("error: ") and message.count("\n") == 1, f"{where} said {message!r}"
        assert out.read_bytes() == OLD, f"{where} touched the output"
    else:
        assert status == 0 and not wrong.getvalue(), f"{where} ended with {status}"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--first", type=int, default=0)
    values = parser.parse_args()
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    failed = 0
    for number in range(values.first, values.first + values.files):
        name = MUTATIONS[number % len(MUTATIONS)].__name__
        with tempfile.TemporaryDirectory() as folder:
            try:
                counts[name, check(number, Path(folder))] += 1
            except Exception as error:
                failed += 1
                print(f"file {number} ({name}): {type(error).__name__}: {error}", flush=True)
    for name in (m.__name__ for m in MUTATIONS):
        print(f"{name:22} merged {counts[name, 'merged']:5}  refused {counts[name, 'refused']:5}")
    print(f"{values.files} files, {failed} failures")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
