"""What tells models and files apart: every value counts, wherever it is and whatever its type was before."""

import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dco_core.files import file_fingerprint
from dco_core.files.content_key import content_key
from dco_core.files.file_fingerprint import files_fingerprint
from dco_core.files.fingerprints import network_fingerprint

# 3 x 7 x 11 is odd; 40 x 64 is a multiple of all strides; 640 x 320 is a layer's size; 1025 words leave a rest
SHAPES = {"odd": (3, 7, 11), "even": (40, 64), "layer": (640, 320), "rest": (2050,), "bias": (5,), "one": ()}


def weights(held=torch.float32, came_as=torch.float32):
    g = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=g).to(came_as).to(held) for n, s in SHAPES.items()}


def key(tensors):
    return network_fingerprint(tensors.items())


@pytest.mark.parametrize("came_as", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("held", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_a_tensor_of_noise_in_place_of_another_shows(came_as, held, name):
    """Half-precision values held as fp32 have zeros in their low bytes."""
    base = weights(held, came_as)
    noise = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(9)).to(came_as).to(held)
    assert key(base | {name: noise}) != key(base) == key(weights(held, came_as))


@pytest.mark.parametrize("came_as", [torch.float16, torch.bfloat16])
def test_one_changed_element_shows_wherever_it_is(came_as):
    base = weights(torch.float32, came_as)
    before, g = key(base), torch.Generator().manual_seed(1)
    for name, tensor in base.items():
        n = tensor.numel()
        for place in {0, n - 1, n // 2, *torch.randint(n, (40,), generator=g).tolist()}:
            changed = tensor.clone()
            flat = changed.view(-1)
            flat[place] = torch.nextafter(flat[place].to(came_as), torch.tensor(9.0).to(came_as)).float()
            assert key(base | {name: changed}) != before, (name, place)


@pytest.mark.parametrize("strength", [1.0, 0.001])
def test_a_lora_baked_in_shows(strength):
    base = weights(torch.float32, torch.float16)
    g = torch.Generator().manual_seed(2)
    up, down = torch.randn(640, 4, generator=g), torch.randn(4, 320, generator=g) * 0.01
    baked = (base["layer"] + strength * up @ down).half().float()
    assert not torch.equal(baked, base["layer"])
    assert key(base | {"layer": baked}) != key(base)


def test_the_same_values_in_another_order_show():
    base = weights()
    for changed in (
        base["layer"].flip(0),
        base["layer"].flip(1),
        base["layer"].roll(1, 1),
        base["layer"].roll(64, 0),
    ):
        assert key(base | {"layer": changed.contiguous()}) != key(base)
    turned = dict(reversed(base.items()))
    assert key(turned) != key(base)
    square = torch.randn(128, 128, generator=torch.Generator().manual_seed(3))
    assert key({"a": square}) != key({"a": square.T}) == key({"a": square.T.contiguous()})


def test_names_types_and_shapes_show_and_memory_does_not():
    base = {"a": torch.zeros(4, 6)}
    assert (
        len({key(x) for x in (base, {"b": base["a"]}, {"a": base["a"].half()}, {"a": torch.zeros(6, 4)})})
        == 4
    )
    stored = torch.randn(9000)
    part = stored[1:8999]  # begins in the middle of a word of 8 bytes
    assert key({"a": part}) == key({"a": part.clone()})
    assert key({"a": torch.nn.Parameter(part)}) == key({"a": part})
    empty = torch.zeros(0, 4)
    assert key({"a": empty}) == key({"a": empty.clone()}) != key({})


@dataclasses.dataclass
class Scales:
    scale: Tensor


class Quantised(torch.Tensor):
    """As the host's: small numbers with a scale beside them."""

    @staticmethod
    def of(values, scale):
        made = torch.Tensor._make_subclass(Quantised, values.float())
        made._qdata, made._params = values, Scales(scale)
        return made

    def detach(self):
        return self


def test_quantised_weights_show_by_their_numbers_and_by_their_scales():
    numbers = torch.arange(60, dtype=torch.uint8).view(6, 10)
    keys = [
        of({"a": Quantised.of(values, torch.tensor(scale))})
        for of in (key, content_key)
        for values, scale in ((numbers, 1.0), (numbers, 2.0), (numbers + 1, 1.0))
    ]
    assert len(set(keys)) == 6


# --- files


def edited(path, place):
    """Another byte at a place, the size and the time of change as they were."""
    status = path.stat()
    with path.open("rb+") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_edit_of_equal_size_shows_anywhere_in_a_file_of_moderate_size(tmp_path):
    path = tmp_path / "model" / "a.safetensors"
    path.parent.mkdir()
    save_file({str(i): torch.randn(700, 501) for i in range(3)}, path)  # 4 MB, more than any piece
    size = path.stat().st_size
    before = files_fingerprint(path.parent)
    for place in [
        0,
        9,
        size - 1,
        *torch.randint(size, (12,), generator=torch.Generator().manual_seed(0)).tolist(),
    ]:
        edited(path, place)
        assert files_fingerprint(path.parent) != before, place
        edited(path, place)
        assert files_fingerprint(path.parent) == before
    path.rename(path.with_name("b.safetensors"))
    assert files_fingerprint(path.parent) != before


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that counts as large, of tensors of all sizes."""
    monkeypatch.setattr(file_fingerprint, "WHOLE", 2**18)
    monkeypatch.setattr(file_fingerprint, "_EVERY", 2**16)
    monkeypatch.setattr(file_fingerprint, "_PIECE", 2**8)
    path = tmp_path / "large.safetensors"
    shapes = {
        "long": (300, 501),
        "small": (64,),
        "one": (1,),
        "wide": (40, 1000),
        "empty": (0,),
        "last": (99,),
    }
    save_file({n: torch.randn(s) for n, s in shapes.items()}, path, {"made by": "x" * 2000})
    return path


def test_of_a_large_file_every_tensor_and_all_of_the_header_is_looked_at(large):
    before = files_fingerprint(large)
    raw = large.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__")
    for place in range(0, 8 + length, 97):
        edited(large, place)
        assert files_fingerprint(large) != before, place
        large.write_bytes(raw)
    for name, entry in header.items():
        first, last = (8 + length + offset for offset in entry["data_offsets"])
        if first < last:
            noise = os.urandom(last - first)
            large.write_bytes(raw[:first] + noise + raw[last:])
            assert files_fingerprint(large) != before, name
    large.write_bytes(raw + b"\0")
    assert files_fingerprint(large) != before


@pytest.mark.parametrize(
    "begin", [b"", b"\xff" * 8, (50).to_bytes(8, "little") + b"[1, 2", b"\x02" + bytes(7) + b"[]"]
)
def test_of_a_large_file_of_any_kind_pieces_from_all_over_are_read(large, begin):
    rest = os.urandom(2**20)
    large.write_bytes(begin + rest)
    before, read = files_fingerprint(large), []
    for start in range(len(begin), len(begin) + 2**20 - 2**16, 2**16):
        large.write_bytes((begin + rest)[:start] + os.urandom(2**16) + (begin + rest)[start + 2**16 :])
        read.append(files_fingerprint(large) != before)
    assert all(read)


def test_a_place_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError):
        files_fingerprint(tmp_path / "nothing")
    assert files_fingerprint(tmp_path) == files_fingerprint(tmp_path)
