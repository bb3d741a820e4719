"""Which files the pack carries, and what it asks for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from devtools.environment import ROOT
from devtools.pack_files import copy_pack, pack_files


def write_tree(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)

def test_copy_honours_both_ignore_files_and_never_takes_git_or_dev(tmp_path: Path) -> None:
    root = tmp_path / "pack"
    write_tree(
        root,
        "__init__.py",
        "nodes/train.py",
        "nodes/__pycache__/train.pyc",
        "web/docs/A.md",
        "tests/a.py",
        "dco_core/tests/kept.py",
        "docs/big.png",
        ".git/HEAD",
        ".dev/venv/pyvenv.cfg",
        "out/x.bin",
        "dev.py",
    )
    (root / ".gitignore").write_text("out/\n")
    (root / ".comfyignore").write_text(
        "# development only\n/tests/\n/docs/\n/dev.py\n.gitignore\n.comfyignore\n"
    )
    copy_pack(tmp_path / "copy", root)
    copied = sorted(
        p.relative_to(tmp_path / "copy").as_posix() for p in (tmp_path / "copy").rglob("*") if p.is_file()
    )
    assert copied == ["__init__.py", "dco_core/tests/kept.py", "nodes/train.py", "web/docs/A.md"]


def test_a_second_copy_leaves_no_file_of_the_first(tmp_path: Path) -> None:
    root = tmp_path / "pack"
    write_tree(root, "old.py")
    copy_pack(tmp_path / "copy", root)
    (root / "old.py").rename(root / "new.py")
    copy_pack(tmp_path / "copy", root)
    assert [p.name for p in (tmp_path / "copy").iterdir()] == ["new.py"]


@pytest.mark.parametrize(
    ("pattern", "path", "is_folder", "ignored"),
    [
        ("*.pyc", "a/b/c.pyc", False, True),
        ("/top.py", "sub/top.py", False, False),
        ("build/", "x/build", True, True),
        ("build/", "x/build", False, False),
        ("a/*.txt", "a/b/c.txt", False, False),
        ("a/**/c.txt", "a/b/d/c.txt", False, True),
        ("a/**/c.txt", "a/c.txt", False, True),
        ("*.py[cod]", "m.pyd", False, True),
        ("*.jpg\n!keep.jpg", "w/keep.jpg", False, False),
        ("/logs/*\n!/logs/kept", "logs/kept", False, False),
        ("/logs/\n!/logs/kept", "logs/kept", False, True),  # nothing comes back out of a folder
        ("\\#notes", "#notes", False, True),
        ("\\!notes", "!notes", False, True),
        ("logs/**", "logs/deep/a.txt", False, True),
        ("part[!0-9].txt", "partA.txt", False, True),
        ("space\\ ", "space ", False, True),
    ],
)
def test_ignore_rules_read_as_git_reads_them(
    tmp_path: Path, pattern: str, path: str, is_folder: bool, ignored: bool
) -> None:
    name = f"{path}/inside" if is_folder else path
    write_tree(tmp_path, name)
    (tmp_path / ".gitignore").write_text(pattern + "\n")
    assert (Path(name) not in pack_files(tmp_path)) is ignored
    # git itself is the oracle
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    git = subprocess.run(["git", "-C", str(tmp_path), "check-ignore", "-q", name])
    assert (git.returncode == 0) is ignored


def test_this_repository_ships_no_development_file() -> None:
    tops = {path.parts[0] for path in pack_files()}
    assert not tops & {"tests", "devtools", "tools", "benchmarks", ".ci", ".dev", ".git", "dev.py"}
    assert {"dco_core", "requirements.txt"} <= tops


def test_the_pack_never_asks_for_torch_or_an_exact_version() -> None:
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert not line.startswith("torch") and "==" not in line, line
