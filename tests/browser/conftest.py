"""A host with the files that the templates name, and the real frontend on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from devtools import browser
from devtools.host_server import HostServer
from devtools.layouts import SDXL


def put_template_files(base: Path) -> None:
    """The files that the templates name. Only their names matter to the frontend: the checkpoint is a stand-in."""
    for folder in ("models/checkpoints", "models/loras", "input/my_subject"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    save_file({"empty": torch.zeros(1)}, base / "models" / "checkpoints" / SDXL["name"])
    save_file({"empty": torch.zeros(1)}, base / "models" / "loras" / "my_subject_00001_.safetensors")
    Image.new("RGB", (64, 64), "teal").save(base / "input" / "example.png")
    Image.new("RGB", (64, 64), "teal").save(base / "input" / "my_subject" / "01.png")
    (base / "input" / "my_subject" / "01.txt").write_text(
        "a photo of a <dog> on a teal wall", encoding="utf-8"
    )


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    base = tmp_path_factory.mktemp("browser_host")
    put_template_files(base)
    with HostServer(base) as server:
        yield server


@pytest.fixture(scope="session")
def page(host: HostServer) -> Iterator[Any]:
    if browser.find_chromium() is None:
        pytest.skip(browser.MISSING)
    with browser.open_frontend(f"http://{host.address}") as page:
        yield page
