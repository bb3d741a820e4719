"""LoRA files that are damaged or want to do harm: sound ones of all adapter types (`seeds`), and 28 mutations of them.

File number n is the same on every machine; hostile_merge.py merges them.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load, save

LINEAR = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_output_blocks_2_2_conv"
TEXT = "lora_te1_text_model_encoder_layers_0_mlp_fc1"


@functools.cache
def seeds() -> dict[str, bytes]:
    """Sound files of all adapter types, which the mutations start from."""
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
        "kohya": titled(save(kohya), {"modelspec.title": "a", "dco.tokens": '{"cat": "cat"}'}),
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


def titled(data: bytes, metadata: dict[str, str]) -> bytes:
    """The file with this header; safetensors itself writes the entries in another order each time."""
    header, body = split(data)
    return joined({"__metadata__": metadata, **header}, body)


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
    """One module under two spellings, or two adapter types in one module."""
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
    size = chance.choice([
        [2**63 - 1, 0], [0, 2**62], [0], [0] * 40, [1] * 70 + [0], [2**62, 2**62, 0], [0, 2**61, 7], [1] * 5000 + [0],
    ])  # fmt: skip
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
    n = chance.choice([16000, 40000, 100000])
    sizes = chance.choice([
        {"lokr_w1": (n, 1), "lokr_w2": (n, 1)}, {"lokr_w1": (128, 128), "lokr_w2": (128, 128)},
        {"lora_down.weight": (n, 1), "lora_up.weight": (1, n)},
        {"lokr_w1": (n, 1), "lokr_w2_a": (n, 1), "lokr_w2_b": (1, 30)},
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


def boundless(data, chance, sentinel):
    """JSON in the header that is too deep, and numbers that no float holds."""
    header, body = split(data)
    long, huge = "1" * 5000, 10**400
    texts = "[" * 100_000, long, f"[{long}]", f'{{"a": {long}}}'
    header["__metadata__"] = chance.choice([
        *({key: text} for key in ("dco.tokens", "dco.merge") for text in texts),
        {"dco.merge": json.dumps([{"title": "a", "sha256": "b", "weight": chance.choice([huge, -huge, str(huge)])}])},
        {"lora_adapter_metadata": json.dumps({"lora_alpha": huge})},
        {"lora_adapter_metadata": json.dumps({"lora_alpha": 1, "r": huge, "alpha_pattern": {"to_q": -huge}})},
        {"lora_adapter_metadata": json.dumps({"lora_alpha": 1, "alpha_pattern": {"(a+)+": 2}})},
    ])  # fmt: skip
    return joined(header, body)


MUTATIONS: tuple[Callable[[bytes, random.Random, Path], bytes], ...] = (
    truncate, append, flip_anywhere, flip_header, header_length, shape, reshape, dtype, other_dtype, offsets, values,
    missing, alpha, duplicate_entry, duplicate_module, rename, metadata, other_kind, a_pickle, no_file_of_this_kind,
    hollow, overlap, blown_up, control_name, extreme, no_floats, header_text, boundless,
)  # fmt: skip


def file_number(number: int, sentinel: Path) -> tuple[str, bytes]:
    """Name of the mutation and the bytes."""
    chance = random.Random(number)
    mutate = MUTATIONS[number % len(MUTATIONS)]
    found = seeds()
    data = found[chance.choice(sorted(found))]
    return mutate.__name__, mutate(data, chance, sentinel)


def _key(header: dict, chance: random.Random) -> str:
    return chance.choice(sorted(key for key in header if key != "__metadata__"))


def _tensors(data: bytes) -> dict[str, torch.Tensor]:
    return load(data)
