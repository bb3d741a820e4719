"""Checkpoints of a training run: whole or not there, few, and found again by what the run is made of."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import DCOError
from ..files.atomic import remove_abandoned
from ..files.checksummed import read_about, read_sealed, write_sealed

KEPT = 2  # of a run: the newest, and the one before in case the disk damages it
RUNS = 4  # in one folder: this one, and the latest others
_NAME = re.compile(r"([0-9a-f]{16})-(\d{8})\.safetensors")


@dataclass(frozen=True)
class Saved:
    """A checkpoint as it was read. about: what `save` was told, JSON values."""

    step: int
    tensors: dict[str, Tensor]
    about: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in `folder`, which runs may share: files are named by the run's key.

    every: a checkpoint after this many steps, 0 for none; minutes: also after this many minutes, 0 for none.
    damaged: names of the files that `open` passed over.
    """

    def __init__(self, folder: Path | str, every: int = 0, minutes: float = 0.0):
        if every < 0 or minutes < 0:
            raise DCOError(
                f"Checkpoints every {every} steps or {minutes:g} minutes: neither can be negative."
            )
        self.folder, self.every, self.minutes = Path(folder), every, minutes
        self.key = ""
        self.damaged: list[str] = []
        self._last = time.monotonic()

    def open(self, key: str, steps: int) -> Saved | None:
        """Take the key of a run; its newest complete checkpoint of `steps` steps at most, or None. A damaged one is
        passed over."""
        self.key, self.damaged = key[:16], []
        self._last = time.monotonic()
        for path in reversed(self._of_run()):
            if _step(path) > steps:
                continue
            saved = read_sealed(path)
            if saved is not None:
                tensors, about = saved
                return Saved(about.pop("step"), tensors, about)
            self.damaged.append(path.name)
        return None

    def latest_other(self) -> dict[str, Any] | None:
        """What the newest checkpoint of another run in this folder says `about` itself, None if there is none."""
        others = [path for path in self._all() if not path.name.startswith(self.key)]
        found = (read_about(path) for path in sorted(others, key=_modified, reverse=True))
        return next((about for about in found if about is not None), None)

    def due(self, step: int) -> bool:
        late = self.minutes > 0 and time.monotonic() - self._last >= 60 * self.minutes
        return late or (self.every > 0 and step % self.every == 0)

    def save(self, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
        """Write the checkpoint of a step and drop older ones. Raises DCOError where it cannot be written; the
        earlier ones then are still there."""
        path = self.folder / f"{self.key}-{step:08d}.safetensors"
        write_sealed(path, tensors, {"step": step, **about})
        self._last = time.monotonic()
        so_far = [old for old in self._of_run() if _step(old) <= step]
        for old in so_far[:-KEPT]:
            old.unlink(missing_ok=True)
        runs: dict[str, float] = {}
        for other in self._all():
            run = other.name[:16]
            if run != self.key:
                runs[run] = max(runs.get(run, 0.0), _modified(other))
        for run in sorted(runs, key=runs.__getitem__)[: -(RUNS - 1)]:
            for other in self.folder.glob(f"{run}-*.safetensors"):
                other.unlink(missing_ok=True)
        return path

    def finish(self) -> None:
        """Keep the newest checkpoint of a finished run alone: asked again, it is there at once, or goes on to more
        steps."""
        for path in self._of_run()[:-1]:
            path.unlink(missing_ok=True)

    def _all(self) -> list[Path]:
        """All checkpoints, by run and step; what a killed write left behind is removed."""
        if not self.folder.is_dir():
            return []
        remove_abandoned(self.folder)
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def _of_run(self) -> list[Path]:
        return [path for path in self._all() if path.name.startswith(self.key)]


def _step(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[2])  # type: ignore[index]


def _modified(path: Path) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
