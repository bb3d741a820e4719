"""The jobs of a study, and the folder and the files that each has."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import DCOError
from .side_by_side import possible
from .snapshots import lora_file
from .study import BASE, CEILING, MERGES, STOPPED, Study
from .tables import Row

SCORES, DISTANCES, TRAINING, DONE, PICTURES = (
    "scores.csv", "distances.csv", "training.csv", "done.json", "pictures",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """method: of the study's methods or merges, BASE, or CEILING. What is shown: a subject, a style, or (merges) both.
    base: of the study's, "" where it has none."""

    method: str
    subject: str | None
    style: str | None
    seed: int
    base: str = ""

    @property
    def trains(self) -> bool:
        return self.method not in (BASE, CEILING, *MERGES)

    @property
    def shown(self) -> list[str]:
        return [what for what in (self.subject, self.style) if what]

    @property
    def parts(self) -> tuple[Job, Job]:
        """Of a merge: the trainings of the subject and of the style."""
        of = MERGES[self.method][0]
        return Job(of, self.subject, None, self.seed, self.base), Job(of, None, self.style, self.seed, self.base)

    @property
    def training(self) -> tuple[str, int, bool]:
        """Of a training: method, seed and whether it is of a style, as Study.config and its like take them."""
        return self.method, self.seed, self.subject is None

    @property
    def columns(self) -> Row:
        """What every row of its tables begins with."""
        what = {"method": self.method, "subject": self.subject, "style": self.style, "seed": self.seed}
        return {"base": self.base, **what}


@dataclass(frozen=True)
class Group:
    """Trainings of one method on one base that are done in one call."""

    jobs: tuple[Job, ...]


def jobs_of(study: Study) -> tuple[list[Job], list[Job]]:
    """The jobs that can be done at once, and the merges, which need LoRAs of the first. Unit by unit, so that a study
    that was stopped has whole units. Raises DCOError where two of them would share a folder."""
    first, merges = [], []
    for place, seed in study.units():
        subject, style = (
            names[place] if place < len(names) else None for names in (study.subjects, study.styles)
        )
        for base in study.models():
            floor = (BASE, CEILING) if study.ceiling else (BASE,)
            for what, how in ((subject, None), (None, style)):
                if what or how:
                    methods = study.methods_on(base, style=what is None)
                    first += [Job(method, what, how, seed, base) for method in (*floor, *methods)]
            if study.merges and subject and style:
                first += [Job(method, subject, style, seed, base) for method in floor]
                merges += [Job(method, subject, style, seed, base) for method in study.merges]
    _check_folders(study, [*first, *merges])
    return first, merges


def groups_of(study: Study) -> list[Group]:
    """The trainings that are done side by side before the jobs."""
    if study.side_by_side < 2:
        return []
    trainings: dict[tuple, list[Job]] = {}
    for job in jobs_of(study)[0]:
        alone = not job.trains or study.tokens(job.subject is None).on
        if not alone and possible(study.config(*job.training), study.adapter_config(*job.training)):
            trainings.setdefault((job.base, job.method, job.subject is None), []).append(job)
    size = study.side_by_side
    return [Group(tuple(jobs[i : i + size])) for jobs in trainings.values() for i in range(0, len(jobs), size)]


def checkpoints_of(study: Study, job: Job) -> list[int | str]:
    """Of a training: the steps that are kept, its end last, and where it would have been stopped."""
    kept: list[int | str] = [*study.checkpoints_of(*job.training)]
    return [STOPPED, *kept] if study.config(*job.training).validation_steps else kept


def main_checkpoint(study: Study, job: Job) -> int:
    """Of a training: the one that merges are made of and that distances are taken at."""
    return study.main_checkpoint(*job.training)


def checkpoint_file(study: Study, job: Job, folder: Path, checkpoint: int | str) -> Path:
    """The LoRA of a training's checkpoint in the job's folder."""
    return lora_file(folder, checkpoint, study.config(*job.training).steps)


# --- folders


def folder_name(job: Job, names: Mapping[str, str]) -> str:
    """names: folder_names of the study."""
    what = "+".join(names.get(one) or _plain(Path(one).name) for one in job.shown)
    parts = [_words(job.base)] if job.base else []
    return "--".join([*parts, _words(job.method), what, f"seed-{job.seed}"])


def folder_names(study: Study) -> dict[str, str]:
    """{subject or style: its part of the names of folders}. A name of the Toy World as it is; of a folder its last
    part, wherever it lies, so that a study is found again on another machine; of those with the same last part, also
    where capitals do not count, a few letters that tell them from each other."""
    alike: dict[str, list[str]] = {}
    for what in dict.fromkeys((*study.subjects, *study.styles)):
        alike.setdefault(_plain(Path(what).name).casefold(), []).append(what)
    names = {}
    for group in alike.values():
        tails = [Path(what).parts for what in group]
        length = 1
        while len({parts[-length:] for parts in tails}) < len(tails) and length < max(map(len, tails)):
            length += 1
        for what, parts in zip(group, tails, strict=True):
            names[what] = _plain(Path(what).name)
            if len(group) > 1:
                names[what] += "-" + hashlib.sha256("/".join(parts[-length:]).encode()).hexdigest()[:8]
    return names


def _check_folders(study: Study, jobs: list[Job]) -> None:
    names = folder_names(study)
    known: dict[str, Job] = {}
    for job in jobs:
        name = folder_name(job, names)
        other = known.setdefault(name.casefold(), job)
        if other != job:
            one, two = (" of ".join([f'"{j.method}"', " and ".join(j.shown)]) for j in (other, job))
            raise DCOError(
                f"{one} and {two} would share the folder {name}: rename one of the methods, bases or folders."
            )


def _words(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower())


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)
