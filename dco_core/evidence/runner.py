"""Runs the jobs of a study side by side, one process or one GPU a job, through joblib."""

from __future__ import annotations

import gc
import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Manager
from pathlib import Path
from typing import Any

import torch

from ..errors import DCOError
from ..models.loading import usable_device
from .jobs import Group, Job, groups_of, jobs_of
from .setting import setting_for
from .study import Study
from .workspace import Workspace

_SCHEDULER_ANSWERS_IN = 10  # seconds
_WORKSPACES: dict[tuple[str, Path, str | None], Workspace] = {}  # one, that of the last job


def devices(asked: str | None, workers: int | None) -> Sequence[str | None]:
    """A device for each worker: every GPU, or as many CPU processes as there are cores. asked: "cuda", "cuda:1",
    "cpu" or None; workers: how many, None for all; more than there are GPUs share them. Raises DCOError for a device
    that is not there and for no workers."""
    if workers is not None and workers < 1:
        raise DCOError(f"--workers is {workers}: use at least 1, or leave it out.")
    asked = usable_device(asked)
    if asked == "cuda":
        count = torch.cuda.device_count()
        return [f"cuda:{i % count}" for i in range(workers or count)]
    if asked and asked.startswith("cuda:"):
        return [asked] * (workers or 1)
    return [asked] * (workers or _cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    study: Study,
    folder: Path,
    found: Sequence[str | None],
    on_message: Callable[[str], None] = print,
    scheduler: str | None = None,
) -> list[str]:
    """Do all jobs of the study that are not done, merges last. found: the device of each worker. scheduler: address of
    a Dask scheduler whose workers do the jobs, each on its own machine's found[0]; they all see `folder` under this
    name. A job that cannot be done does not end the others; returns a sentence for each of those. Stopped, the same
    call goes on."""
    failed: list[str] = []
    workspace = Workspace(study, setting_for(study, folder / "references", found[0]), folder)
    for jobs in (groups_of(study), *jobs_of(study)):
        if not jobs:
            continue
        open_jobs = [job for job in jobs if not workspace.done(job)]
        on_message(f"{len(jobs) - len(open_jobs)} of {len(jobs)} jobs are done, {len(open_jobs)} to do.")
        started = time.monotonic()
        done = (
            _side_by_side(study, folder, open_jobs, found)
            if scheduler is None
            else _on_machines(study, folder, open_jobs, found[0], scheduler)
        )
        for n, (job, seconds, error) in enumerate(done, 1):
            left = (time.monotonic() - started) / n * (len(open_jobs) - n)
            name = workspace.name(job)
            if error and isinstance(job, Job):  # the jobs of a group are done alone afterwards
                failed.append(f"{name}: {error}")
            message = f"failed: {error}" if error else f"{seconds:.0f} s"
            on_message(f"{n}/{len(open_jobs)}  {name}  {message}  ({left / 60:.0f} min left)")
    return failed


def _side_by_side(study: Study, folder: Path, jobs: Sequence[Job | Group], found: Sequence[str | None]) -> Any:
    if len(found) == 1:
        return (_one(study, folder, job, found[0]) for job in jobs)
    try:
        from joblib import Parallel, delayed
    except ImportError as error:
        raise DCOError(
            f"Jobs side by side need the package joblib ({error}): run `pip install joblib`, or use --workers 1."
        ) from None
    return _parallel(study, folder, jobs, found, Parallel, delayed)


def _parallel(
    study: Study, folder: Path, jobs: Sequence[Job | Group], found: Sequence[str | None], parallel, delayed
) -> Any:
    with Manager() as manager:
        free = manager.Queue()  # of devices: a job takes one and gives it back
        for device in found:
            free.put(device)
        work = parallel(
            n_jobs=len(found), return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs"
        )
        yield from work(delayed(_with_free_device)(study, folder, job, free, len(found)) for job in jobs)


def _on_machines(
    study: Study, folder: Path, jobs: Sequence[Job | Group], device: str | None, scheduler: str
) -> Iterator[tuple[Job | Group, float, str]]:
    try:
        from distributed import Client
        from joblib import Parallel, delayed, parallel_config
    except ImportError as error:
        raise DCOError(
            f"--scheduler needs Dask and joblib ({error}): run `pip install distributed joblib`, here and on every "
            "worker."
        ) from None
    try:
        client = Client(scheduler, timeout=_SCHEDULER_ANSWERS_IN)
    except (OSError, ValueError) as error:
        raise DCOError(
            f"--scheduler {scheduler} does not answer ({error}): start one with `dask scheduler`, and workers with "
            "`dask worker ADDRESS --nthreads 1`."
        ) from None
    with client, parallel_config(backend="dask"):
        yield from Parallel(return_as="generator_unordered", batch_size=1)(
            delayed(_one)(study, folder, job, device) for job in jobs
        )


def _with_free_device(
    study: Study, folder: Path, job: Job | Group, free: queue.Queue, workers: int
) -> tuple[Job | Group, float, str]:
    torch.set_num_threads(max(1, _cores() // workers))
    device = free.get()
    try:
        return _one(study, folder, job, device)
    finally:
        free.put(device)


def _one(study: Study, folder: Path, job: Job | Group, device: str | None) -> tuple[Job | Group, float, str]:
    """(the job, its seconds, what went wrong)."""
    try:
        return job, _workspace(study, folder, device).do(job), ""
    except DCOError as error:
        return job, 0.0, str(error)
    except (torch.OutOfMemoryError, MemoryError):
        message = (
            "the memory ran out: lower resolution, batch_size, rank or side_by_side in the study, or use a device with "
            "more. What was trained is kept; the same command tries again."
        )
    _free_memory()  # here the failed job's tensors are gone
    return job, 0.0, message


def _workspace(study: Study, folder: Path, device: str | None) -> Workspace:
    """The Workspace of this process, which keeps what jobs of one unit share."""
    key = (repr(study), folder, device)
    if key not in _WORKSPACES:
        _WORKSPACES.clear()
        _WORKSPACES[key] = Workspace(study, setting_for(study, folder / "references", device), folder, device)
    return _WORKSPACES[key]


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
