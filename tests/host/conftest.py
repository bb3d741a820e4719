"""One real ComfyUI for all host tests of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from host_graph import Graph
from PIL import Image

from devtools.host_server import HostServer

EXTRA_NODES = Path(__file__).parent / "custom_nodes"
CHECKPOINTS = ("sd15", "sdxl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Within a file, tests of the same checkpoint one after the other: the host keeps what it has loaded and trained
    for one prompt until the next has done without it."""
    files = {path: i for i, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(key=lambda item: (files[item.path], checkpoint(item) if item.path.parent == EXTRA_NODES.parent else 0))


def checkpoint(item: pytest.Item) -> int:
    """Which one a test loads: 0 for none, else its place among CHECKPOINTS, from 1."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    names = {*getattr(item, "fixturenames", ()), *(value for value in parameters if isinstance(value, str))}
    return max((i for i, name in enumerate(CHECKPOINTS, 1) if name in names), default=0)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    """The running host: .client, .base_dir, .address, .log(). tests/host/custom_nodes comes along."""
    extra = [path for path in sorted(EXTRA_NODES.glob("*")) if path.name != "__pycache__"]
    base = tmp_path_factory.mktemp("host")
    (base / "models" / "checkpoints").mkdir(parents=True)
    with HostServer(base, extra_nodes=extra) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def imported_at_start(host: HostServer) -> list[str]:
    """Which heavy modules a host has imported before any node of the pack ran."""
    graph = Graph()
    node = graph.add("DCOTestModules", names="peft diffusers")
    return json.loads(host.client.run(graph.prompt)[node]["text"][0])


@pytest.fixture(scope="session")
def sd15(host: HostServer) -> str:
    """A small SD1.5 checkpoint is there for CheckpointLoaderSimple."""
    folder = host.base_dir / "models" / "checkpoints"
    checkpoints.write_sd15(folder / "tiny_sd15.ckpt", text_layers=checkpoints.HOST_TEXT_LAYERS)
    return "sd15"


@pytest.fixture(scope="session")
def sdxl(host: HostServer) -> str:
    """A small SDXL checkpoint is there for CheckpointLoaderSimple."""
    folder = host.base_dir / "models" / "checkpoints"
    checkpoints.write_sdxl(folder / "tiny_sdxl.ckpt", text_layers=checkpoints.HOST_TEXT_LAYERS)
    return "sdxl"


@pytest.fixture(params=["sd15", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    """Each of the two families."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def photos(host: HostServer) -> str:
    """A dataset folder in the host's input: two pictures of different size and their captions."""
    folder = host.base_dir / "input" / "photos"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate(((96, 64), (64, 80))):
        ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
        noisy = np.clip(ramp + rng.normal(0, 40, (height, width, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:02}.jpg")
        (folder / f"{i:02}.txt").write_text(f"a photo of a <dog> in front of wall {i}", encoding="utf-8")
    return "photos"
