"""Writing safetensors files whole or not at all, tensor by tensor."""

from __future__ import annotations

import glob
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from ..errors import DCOError
from .safetensors_file import TensorWriter, entries_of, header_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ABANDONED = 3600  # seconds after which nobody writes any more


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file: one that is already there stays intact until the new one is complete on disk. Equal
    contents are equal bytes.
    Raises DCOError for a folder that cannot be written."""
    with whole_file(Path(path)) as temporary:
        save_file(tensors, temporary, metadata)


def stream_tensors(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, Tensor]],
    wide: Mapping[str, Tensor],
    numbers: Iterable[str],
    room: int,
    metadata: Callable[[], Mapping[str, str]],
) -> None:
    """save_tensors for tensors that come one by one and need not fit into memory together; wide types come first.

    wide: further tensors, of types wider than fp32. numbers: names of those among `tensors` that are one fp32 number
    and may come at any time. room: bytes for the header (header_room); metadata: asked for when all tensors are
    written."""
    with whole_file(Path(path)) as temporary, temporary.open("wb") as file:
        writer = TensorWriter(file, room)
        for name, tensor in wide.items():
            writer.add(name, tensor)
        for name in numbers:
            writer.reserve(name, torch.tensor(0.0))
        for name, tensor in tensors:
            writer.add(name, tensor)
        writer.finish(metadata())


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write `path`, wide types first."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    ordered = {name: tensors[name] for name in names}
    with path.open("wb") as file:
        writer = TensorWriter(file, len(header_text(entries_of(ordered), metadata)))
        for name, tensor in ordered.items():
            writer.add(name, tensor)
        writer.finish(metadata)


def remove_abandoned(folder: Path, name: str = "*.safetensors") -> None:
    """Remove the temporary files that killed writers of `name` (a pattern) left in a folder, and no others: a writer
    that lives holds a lock on its own. Where there are no locks, those that are an hour old."""
    for stray in folder.glob(f".{name}.*.tmp"):
        with suppress(OSError), stray.open("rb") as file:
            if _locked(file) or time.time() - stray.stat().st_mtime > _ABANDONED:
                stray.unlink()


def _locked(file: IO[bytes]) -> bool:
    """Take the lock of a temporary file; whether there was one to take. BlockingIOError while its writer lives."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return False
    return True


@contextmanager
def _held(temporary: Path) -> Iterator[None]:
    """The lock of a temporary file, which the system lets go of with the process however that ends."""
    if fcntl is None:
        yield
        return
    while True:
        with temporary.open("ab") as file:
            with suppress(BlockingIOError):
                _locked(file)
            # somebody who clears up may have found it in the moment it had no lock: then it is made anew
            found = temporary.exists()
            if found:
                yield
                return


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and is gone otherwise."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, glob.escape(path.name))
        try:
            with _held(temporary):
                yield temporary
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DCOError(
            f"Cannot write {path} ({error}): check free space and permissions of the folder."
        ) from error


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well. One that another process has filled meanwhile,
    or that was there before, is taken as it is: nobody ever sees half of it."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if not (folder.is_dir() and any(folder.iterdir())):
            with suppress(OSError):  # the other process was faster
                os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power loss; Windows has no such call and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
