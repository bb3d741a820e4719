"""The developer tools against the real host."""

from __future__ import annotations

from pathlib import Path

import pytest

from devtools.api import HostError
from devtools.host_server import PACK_FOLDER, HostServer

PIXEL = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0x123456}}


def save(node: str, prefix: str) -> dict:
    return {"class_type": "SaveImage", "inputs": {"images": [node, 0], "filename_prefix": prefix}}


def test_the_host_keeps_all_its_files_in_the_scratch_tree(host: HostServer) -> None:
    assert (host.base_dir / "user" / "comfyui.db").is_file()
    assert not (host.base_dir / "custom_nodes" / PACK_FOLDER / "devtools").exists()


def test_a_prompt_runs_reports_itself_and_its_image_comes_back(host: HostServer, tmp_path: Path) -> None:
    events: list[str] = []
    outputs = host.client.run({"1": PIXEL, "2": save("1", "pixel")}, lambda kind, data: events.append(kind))
    assert {"execution_start", "progress_state", "executed", "execution_success"} <= set(events)
    image = host.client.download(**outputs["2"]["images"][0])
    assert image.startswith(b"\x89PNG")
    (tmp_path / "up.png").write_bytes(image)
    value = host.client.upload_image(tmp_path / "up.png", "uploaded")
    assert value == "uploaded/up.png" and (host.base_dir / "input" / value).read_bytes() == image
    load = {"class_type": "LoadImage", "inputs": {"image": value}}
    assert host.client.run({"1": load, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})


def test_one_bad_branch_fails_the_whole_prompt(host: HostServer) -> None:
    lost = {"class_type": "LoadImage", "inputs": {"image": "not_there.png"}}
    with pytest.raises(HostError, match=r"node 3 \(LoadImage\).*not_there.png"):
        host.client.queue({"1": PIXEL, "2": save("1", "good"), "3": lost, "4": save("3", "bad")})


def test_a_failing_node_is_named_with_its_message(host: HostServer) -> None:
    (host.base_dir / "input" / "broken.png").write_bytes(b"no picture")
    load = {"class_type": "LoadImage", "inputs": {"image": "broken.png"}}
    with pytest.raises(HostError, match=r"node 1 \(LoadImage\): cannot identify image file") as caught:
        host.client.run({"1": load, "2": save("1", "broken")})
    assert caught.value.node_id == "1" and "UnidentifiedImageError" in caught.value.exception_type
