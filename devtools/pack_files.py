"""Which files the published pack carries: what neither `.gitignore` nor `.comfyignore` leaves out."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from .environment import ROOT

ALWAYS_LEFT_OUT = (".git", ".dev", "__pycache__")


class IgnoreRules:
    """The usual subset of gitignore syntax: `*`, `?`, `**`, `/anchored`, `folder/`, `!keep`, `# comment`."""

    def __init__(self, text: str):
        self.rules: list[tuple[re.Pattern[str], bool, bool]] = []
        for line in text.splitlines():
            pattern = line.strip()
            if not pattern or pattern.startswith("#"):
                continue
            ignored = not pattern.startswith("!")
            pattern = pattern.removeprefix("!")
            only_folders = pattern.endswith("/")
            pattern = pattern.rstrip("/")
            anchored = "/" in pattern
            prefix = "" if anchored else "(?:.*/)?"
            self.rules.append((re.compile(prefix + _to_regex(pattern.lstrip("/"))), ignored, only_folders))

    def ignores(self, relative: str, is_folder: bool) -> bool:
        """True when the last rule that matches `relative` (with forward slashes) leaves it out."""
        verdict = False
        for regex, ignored, only_folders in self.rules:
            if (is_folder or not only_folders) and regex.fullmatch(relative):
                verdict = ignored
        return verdict


def _to_regex(pattern: str) -> str:
    tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        known.get(token) or (token.replace("[!", "[^") if token.startswith("[") else re.escape(token))
        for token in tokens
    )


def pack_files(root: Path = ROOT) -> list[Path]:
    """Paths, relative to `root`, of the files that belong to the published pack, sorted."""
    rules = [
        IgnoreRules((root / name).read_text(encoding="utf-8"))
        for name in (".gitignore", ".comfyignore")
        if (root / name).is_file()
    ]

    def left_out(path: Path, is_folder: bool) -> bool:
        relative = path.relative_to(root).as_posix()
        return path.name in ALWAYS_LEFT_OUT or any(rule.ignores(relative, is_folder) for rule in rules)

    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        here = Path(folder)
        subfolders[:] = [name for name in subfolders if not left_out(here / name, True)]
        found += [(here / name).relative_to(root) for name in names if not left_out(here / name, False)]
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
