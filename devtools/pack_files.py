"""Which files the published pack carries: what neither `.gitignore` nor `.comfyignore` leaves out.

    python -m devtools.pack_files FOLDER [SUFFIX]

copies them into a fresh folder, only those with the suffix if one is given.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from pathspec import GitIgnoreSpec

from .environment import ROOT

ALWAYS_LEFT_OUT = (".git", ".dev", "__pycache__")


def pack_files(root: Path = ROOT) -> list[Path]:
    """Paths, relative to `root`, of the files that belong to the published pack, sorted."""
    rules = [
        GitIgnoreSpec.from_lines((root / name).read_text(encoding="utf-8").splitlines())
        for name in (".gitignore", ".comfyignore")
        if (root / name).is_file()
    ]

    def left_out(path: Path, end: str = "") -> bool:
        relative = path.relative_to(root).as_posix() + end
        return path.name in ALWAYS_LEFT_OUT or any(rule.match_file(relative) for rule in rules)

    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        here = Path(folder)
        subfolders[:] = [name for name in subfolders if not left_out(here / name, "/")]
        found += [(here / name).relative_to(root) for name in names if not left_out(here / name)]
    return sorted(found)


def copy_pack(destination: Path, root: Path = ROOT, only_suffix: str = "") -> None:
    """Copy the pack's files (only those ending in `only_suffix`, if given) into a fresh folder."""
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir(parents=True)
    for relative in pack_files(root):
        if relative.name.endswith(only_suffix):
            target = destination / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / relative, target)


if __name__ == "__main__":
    copy_pack(Path(sys.argv[1]), only_suffix="".join(sys.argv[2:3]))
