"""Files that the merge node takes by name, beside LORA_MODELs or alone."""

from __future__ import annotations

import json
import os

import pytest
import torch
from host_graph import Graph, saved_file

from dco_core.lora import LoraLayer, LoraWeights, merge, read_lora, write_lora
from devtools.api import HostError

KEY = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
NAMES = ("subject.safetensors", "below/style.safetensors", "a=2.safetensors")


def random_lora(seed, rank=2):
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, 8, generator=generator), torch.randn(6, rank, generator=generator)
    return LoraWeights({KEY: LoraLayer(down, up, 1.0)}, {}, {"modelspec.title": f"title {seed}"})


@pytest.fixture(scope="module")
def folder(host):
    """A folder of its own in output/loras with three LoRA files."""
    folder = host.base_dir / "output" / "loras" / "named"
    (folder / "below").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        write_lora(folder / name, random_lora(seed, rank=2 + seed))
    return folder


def run(host, files, connected=(), **changes):
    """The node's text, and the file that it saved."""
    g = Graph()
    loaded = [g.add("DCOLoadLoRA", lora_name=f"named/{name}") for name in connected]
    values = {"weights": "1, 1", "name": "named/merged"} | changes
    node = g.merge([[node, 0] for node in loaded], files=files, **values)
    outputs = host.client.run(g.prompt)
    return outputs[node]["text"][0], host.base_dir / "output" / saved_file(outputs, node)


def assert_sum(path, folder, weights):
    expected = merge([read_lora(folder / name) for name in weights], list(weights.values()))
    found = read_lora(path)
    target = expected.layers[KEY].delta()
    assert (found.layers[KEY].delta() - target).norm() <= 1e-6 * target.norm()
    given = [(entry["title"], entry["weight"]) for entry in json.loads(found.metadata["dco.merge"])]
    assert given == [(f"title {NAMES.index(name)}", weight) for name, weight in weights.items()]


def test_files_alone_with_weights_as_on_the_command_line(host, folder):
    lines = "\nnamed/subject.safetensors\n\n  named/below/style.safetensors = -0.5  \nnamed/a=2.safetensors=2e-1\n"
    text, path = run(host, lines)
    assert_sum(path, folder, {NAMES[0]: 1.0, NAMES[1]: -0.5, NAMES[2]: 0.2})
    assert "Merged 3 LoRAs with weights 1, -0.5, 0.2" in text
    # a name that holds "=" and no weight; a name as the trainer tells it
    _, path = run(host, "named/a=2.safetensors\nloras/named/subject.safetensors=3")
    assert_sum(path, folder, {NAMES[2]: 1.0, NAMES[0]: 3.0})


def test_files_come_after_the_connected_loras(host, folder):
    text, path = run(
        host, "named/subject.safetensors=-0.25", connected=[NAMES[1]], weights="0.8", size="by rank", size__rank=5,
        block_weights="2: down 4 = 2", method="NP-LoRA", method__projection=0.0,
    )  # fmt: skip
    target = merge([read_lora(folder / name) for name in NAMES[1::-1]], [0.8, -0.5]).layers[KEY].delta()
    assert (read_lora(path).layers[KEY].delta() - target).norm() <= 1e-5 * target.norm()
    assert "0.8, -0.25" in text


def test_a_file_that_changed_is_merged_anew(host, folder):
    write_lora(folder / "changing.safetensors", random_lora(7))
    _, first = run(host, "named/changing.safetensors", name="named/changed")
    write_lora(folder / "changing.safetensors", random_lora(8, rank=3))
    _, second = run(host, "named/changing.safetensors", name="named/changed")
    assert first != second
    target = read_lora(folder / "changing.safetensors").layers[KEY].delta()
    torch.testing.assert_close(read_lora(second).layers[KEY].delta(), target)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "\nnamed/subjekt.safetensors=0.5",
            ["files, line 2", "subjekt.safetensors", "named/subject.safetensors"],
        ),
        ("style.safetensors", ["line 1", "nearest", "named/below/style.safetensors", "{output}/loras"]),
        ("named/subject.safetensors=lots", ["line 1", '"lots" is no weight']),
        ("named/subject.safetensors=nan", ["line 1", "finite number"]),
        ("named/subject.safetensors=0", ["all 0"]),
        ("named/subjet.safetensors=x", ["line 1", "named/subject.safetensors", "{output}/loras"]),
        ("../loras/named/subject.safetensors", ["line 1", "not in the loras folders"]),
        ("named/../named/subject.safetensors", ["not in the loras folders"]),
        ("{output}/loras/named/subject.safetensors", ["not in the loras folders"]),
        ("../outside.safetensors", ["not in the loras folders"]),
        ("loras/../outside.safetensors", ["not in the loras folders"]),
        ("named", ["not in the loras folders"]),
        ("named/damaged.safetensors", ["line 1", "no complete safetensors file"]),
        ("  \n ", ["connect one to loras, or name one in files"]),
    ],
)
def test_what_cannot_be_is_refused_by_line(host, folder, lines, words):
    output = os.fspath(host.base_dir / "output")
    write_lora(host.base_dir / "output" / "outside.safetensors", random_lora(5))
    (folder / "damaged.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all")
    before = sorted(folder.rglob("*"))
    with pytest.raises(HostError) as error:
        run(host, lines.format(output=output), name="named/never")
    for word in words:
        assert word.format(output=output) in str(error.value)
    assert sorted(folder.rglob("*")) == before


def test_connected_loras_still_need_their_weights(host, folder):
    with pytest.raises(HostError, match="1 LoRAs are connected"):
        run(host, "named/subject.safetensors", connected=[NAMES[1]])
