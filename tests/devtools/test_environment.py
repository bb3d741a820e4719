"""The bootstrap's own rules, against small archives and trees."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from devtools import environment
from devtools.environment import ROOT, SetupError


def write_tree(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)

def make_archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("top/vendor/Host/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)


def test_a_download_with_another_hash_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "host.tar.gz"
    archive.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(SetupError, match=found):
        environment.verify_sha256(archive, environment.HOST_SDIST_SHA256)
    environment.verify_sha256(archive, found)


def test_extraction_takes_only_the_subtree_and_no_links(tmp_path: Path) -> None:
    make_archive(
        tmp_path / "a.tar.gz", {"top/vendor/Host/main.py": b"1", "top/vendor/Hostile/x": b"2", "top/y": b"3"}
    )
    write_tree(tmp_path / "Host", "left_from_before.py")
    environment.extract_subtree(tmp_path / "a.tar.gz", "vendor/Host", tmp_path / "Host")
    assert [p.name for p in (tmp_path / "Host").iterdir()] == ["main.py"]


@pytest.mark.parametrize(
    "name", ["top/vendor/Host/../../../evil.py", "top/vendor/Host/C:/evil.py", "top/vendor/Host/a\\b"]
)
def test_a_path_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    make_archive(tmp_path / "a.tar.gz", {name: b"1"})
    with pytest.raises(SetupError, match="unsafe path"):
        environment.extract_subtree(tmp_path / "a.tar.gz", "vendor/Host", tmp_path / "x" / "Host")
    assert not (tmp_path / "x" / "Host").exists() and not (tmp_path / "evil.py").exists()


def test_host_requirements_lose_the_torch_family_and_split_at_the_hosts_own_mark() -> None:
    text = (
        "torch\ntorchsde\ntorchvision==1 # pinned\n--extra-index-url x\nnumpy>=1.25\n\n"
        "#non essential dependencies:\nkornia>=0.7.1\ntorchaudio\n"
    )
    assert environment.split_host_requirements(text) == (["torchsde", "numpy>=1.25"], ["kornia>=0.7.1"])


@pytest.mark.parametrize(
    ("gpu", "platform", "first"),
    [
        (True, "linux", ["torch", "torchvision", "torchaudio"]),
        (False, "linux", ["torch==2.13.0"]),
        (False, "darwin", ["torch==2.13.0", "torchvision", "torchaudio"]),
    ],
)
def test_torch_is_chosen_by_gpu_and_system(gpu: bool, platform: str, first: list[str]) -> None:
    assert environment.torch_commands(gpu, platform)[0] == first


def test_comfyui_path_without_a_host_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match="no main.py"):
        environment.comfyui_path()


def test_a_finished_step_runs_once_until_its_request_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "STAMPS", tmp_path / "stamps.json")
    steps, done = environment._Steps(total=1), []
    for asked in ("a", "a", "b", "b"):
        steps.run(1, "pack", asked, "step", lambda asked=asked: done.append(asked))
    assert done == ["a", "b"]

    def fail() -> None:
        raise SetupError("no network")

    with pytest.raises(SetupError):
        steps.run(1, "pack", "c", "step", fail)
    steps.run(1, "pack", "c", "step", lambda: done.append("c"))
    assert done == ["a", "b", "c"]


def test_dev_py_needs_only_the_standard_library_to_show_its_help() -> None:
    shown = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "dev.py"), "--help"], capture_output=True, text=True
    )
    assert shown.returncode == 0 and "demo" in shown.stdout, shown.stderr
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import devtools.tasks"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
