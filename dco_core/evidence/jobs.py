"""One job of a study: train and score one model, or merge two and score the result. A finished job is not done
again."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..checkpoints import Checkpoints
from ..content import content_key
from ..folder_training import FolderTraining, checkpoint_folder
from ..generation import GenerationConfig
from ..image_model import ImageModel
from ..lora import merge, read_lora, write_lora
from ..metrics import noise_distance
from ..metrics.collateral import collateral_rmse
from .pictures import draw, with_lora
from .setting import Setting
from .side_by_side import possible
from .snapshots import LORA, examples_of, is_of, keep, lora_file, prompt_examples, train_together
from .study import BASE, CEILING, MERGES, OTHERS, PLAIN, STOPPED, Study
from .tables import Row, write_table, write_text
from .zip_merge import zip_merge

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
    def name(self) -> str:
        """Its folder."""
        what = "+".join(re.sub(r"[^\w.-]+", "_", Path(w).name) for w in (self.subject, self.style) if w)
        base = f"{re.sub(r'[^a-z0-9.]+', '-', self.base.lower())}--" if self.base else ""
        return f"{base}{re.sub(r'[^a-z0-9.]+', '-', self.method.lower())}--{what}--seed-{self.seed}"

    @property
    def trains(self) -> bool:
        return self.method not in (BASE, CEILING, *MERGES)


@dataclass(frozen=True)
class Group:
    """Trainings of one method on one base that are done in one call."""

    jobs: tuple[Job, ...]

    @property
    def name(self) -> str:
        return f"{self.jobs[0].name} and {len(self.jobs) - 1} others, side by side"


def jobs_of(study: Study) -> tuple[list[Job], list[Job]]:
    """The jobs that can be done at once, and the merges, which need LoRAs of the first. Unit by unit, so that a study
    that was stopped has whole units."""
    first, merges = [], []
    for place, seed in study.units():
        subject, style = (names[place] if place < len(names) else None for names in (study.subjects, study.styles))
        for base in study.models():
            for what, how in ((subject, None), (None, style)):
                if what or how:
                    floor = (BASE, CEILING) if study.ceiling else (BASE,)
                    methods = study.methods_on(base, style=what is None)
                    first += [Job(method, what, how, seed, base) for method in (*floor, *methods)]
            if study.merges and subject and style:
                floor = (BASE, CEILING) if study.ceiling else (BASE,)
                first += [Job(method, subject, style, seed, base) for method in floor]
                merges += [Job(method, subject, style, seed, base) for method in study.merges]
    return first, merges


def groups_of(study: Study) -> list[Group]:
    """The trainings that are done side by side before the jobs."""
    if study.side_by_side < 2:
        return []
    kinds: dict[tuple, list[Job]] = {}
    for job in jobs_of(study)[0]:
        if job.trains and possible(study.config(job.method, job.seed, job.subject is None)):
            kinds.setdefault((job.base, job.method, job.subject is None), []).append(job)
    size = study.side_by_side
    return [
        Group(tuple(jobs[i : i + size])) for jobs in kinds.values() for i in range(0, len(jobs), size)
    ]


class Bench:
    """Does jobs. folder: of the study, a folder a job in it. device: cuda, cuda:1, cpu; None for the best there
    is."""

    def __init__(self, study: Study, setting: Setting, folder: Path, device: str | None = None):
        self._study, self._setting, self._folder, self._device = study, setting, folder, device
        self._base_others: dict[tuple[str, int], Tensor] = {}  # of the unit at hand: one draw for all checkpoints

    def path(self, job: Job) -> Path:
        return self._folder / "jobs" / job.name

    def done(self, job: Job | Group) -> bool:
        """Whether the job was finished with the settings of this study."""
        if isinstance(job, Group):
            return all(self._trained(one) or self.done(one) for one in job.jobs)
        try:
            return json.loads((self.path(job) / DONE).read_text(encoding="utf-8"))["key"] == self._key(job)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def do(self, job: Job | Group, tick: Callable[[], None] = lambda: None) -> float:
        """Do the job unless it is done; the seconds it took. Raises DCOError where it cannot be done; what it had
        trained until then is gone on from by the next call."""
        if self.done(job):
            return 0.0
        started = time.monotonic()
        if isinstance(job, Group):
            self._train_together([one for one in job.jobs if not self._trained(one)])
            return time.monotonic() - started
        path = self.path(job)
        path.mkdir(parents=True, exist_ok=True)
        if job.method in MERGES:
            self._merge(job, path)
        elif job.trains and not self._trained(job):
            self._train(job, path, tick)
        model = self._setting.model(self._device, job.base)
        self._score(job, path, model, tick)
        seconds = time.monotonic() - started
        write_text(
            path / DONE,
            json.dumps({"key": self._key(job), "job": dataclasses.asdict(job), "seconds": seconds}),
        )
        return seconds

    def _key(self, job: Job) -> str:
        """Tells what the job's results depend on, wherever its files lie."""
        study = self._study
        parts: list[Any] = [
            self._training_key(job), study.w_text, study.sampling_steps, study.pictures,
            self._setting.prompts(job.subject, job.style), self._setting.others(),
            _portable(study.likeness_model), _portable(study.text_model), study.seeds[0] == job.seed,
        ]  # fmt: skip
        if job.method in MERGES:
            of, how, _ = MERGES[job.method]
            parts += [self._training_key(dataclasses.replace(job, method=of, subject=None, style=job.style))]
            parts += [self._training_key(dataclasses.replace(job, method=of, style=None)), study.checkpoint]
            parts += [study.zip_steps] if how == "zip-lora" else []
        if job.method not in (BASE, CEILING):
            swept = not study.w_rg_methods or job.method in study.w_rg_methods
            parts += [study.w_rg, study.w_rg_at] if swept else []
            parts += [study.distance_timesteps, study.distance_draws, study.distance_prompts, study.checkpoint]
        return content_key(*parts)

    def _training_key(self, job: Job) -> str:
        """Tells what the job's LoRAs depend on."""
        study, style = self._study, job.subject is None
        parts: list[Any] = [
            job.method, job.base, [Path(what).name for what in (job.subject, job.style) if what], style, job.seed,
            _portable(study.models()[job.base]), study.resolution, study.precision,
            self._setting.fingerprint(*(what for what in (job.subject, job.style) if what)),
        ]  # fmt: skip
        if job.trains:
            config = study.config(job.method, job.seed, style)
            parts += [_not_default(config), _not_default(study.adapter_config(job.method, job.seed, style))]
            parts += [study.method(job.method).captions, study.checkpoints_of(job.method, job.seed, style)]
            if config.objective == "dreambooth-prior":
                parts += [study.class_images, study.w_text]
        return content_key(*parts)

    def _checkpoints(self, job: Job) -> list[int | str]:
        """Of a training: the steps that are kept, its end last, and where it would have been stopped."""
        style = job.subject is None
        kept: list[int | str] = [*self._study.checkpoints_of(job.method, job.seed, style)]
        scored = self._study.config(job.method, job.seed, style).score_every
        return [STOPPED, *kept] if scored else kept

    def _file(self, job: Job, checkpoint: int | str) -> Path:
        last = self._study.config(job.method, job.seed, job.subject is None).steps
        return lora_file(self.path(job), checkpoint, last)

    def main_lora(self, job: Job) -> Path:
        """The LoRA that merges are made of."""
        return self._file(job, self._main(job))

    def _main(self, job: Job) -> int:
        return self._study.main_checkpoint(job.method, job.seed, job.subject is None)

    def _trained(self, job: Job) -> bool:
        key = self._training_key(job)
        return all(is_of(self._file(job, checkpoint), key) for checkpoint in self._checkpoints(job))

    def _references(self, job: Job) -> Path:
        captions = self._study.method(job.method).captions
        return self._setting.references(job.subject or job.style or "", captions)

    def _train(self, job: Job, path: Path, tick: Callable[[], None]) -> None:
        study, output, style = self._study, path / LORA, job.subject is None
        key, config = self._training_key(job), study.config(job.method, job.seed, style)
        model = self._setting.model(self._device, job.base)
        run = FolderTraining(
            model,
            self._references(job),
            output,
            dataclasses.replace(config, keep="best") if config.score_every else config,
            study.adapter_config(job.method, job.seed, style=style),
            Checkpoints(checkpoint_folder(output), minutes=2),
            study.resolution,
            square=True,
            generation=GenerationConfig(class_images=study.class_images, generation_w_text=study.w_text),
        )
        kept = study.checkpoints_of(job.method, job.seed, style)

        def on_step(report: Any) -> None:
            if report.step in kept:
                keep(self._file(job, report.step), model, run.training.denoiser.lora(), key)
            tick()

        run.training.run(on_step)
        # once more: a run that was stopped after its last step goes on without one
        keep(output, model, run.training.denoiser.lora(), key)
        if config.score_every:
            with run.training.result():
                keep(self._file(job, STOPPED), model, run.training.denoiser.lora(), key)
        config, last = run.training.config, run.training.history[-50:]
        best = run.training.best
        write_table(
            path / TRAINING,
            [{
                **_columns(job), "objective": config.objective, "steps": config.steps,
                "beta": config.beta if config.objective == "dco" else None,
                "loss": _mean(r.loss for r in last), "margin": _mean(r.margin for r in last),
                "gate": _mean(r.gate for r in last), "seconds": sum(r.seconds for r in run.training.history),
                "stopped_at": best.step if best else None,
            }],
        )  # fmt: skip

    def _train_together(self, jobs: list[Job]) -> None:
        study, style = self._study, jobs[0].subject is None
        for job in jobs:
            self.path(job).mkdir(parents=True, exist_ok=True)
        said = train_together(
            self._setting.model(self._device, jobs[0].base),
            [self._references(job) for job in jobs],
            [(self.path(job), self._training_key(job)) for job in jobs],
            [study.config(job.method, job.seed, style) for job in jobs],
            [study.adapter_config(job.method, job.seed, style) for job in jobs],
            study.checkpoints_of(jobs[0].method, jobs[0].seed, style),
            study,
        )
        for job, row in zip(jobs, said, strict=True):
            write_table(self.path(job) / TRAINING, [{**_columns(job), **row}])

    def _merge(self, job: Job, path: Path) -> None:
        of, how, weight = MERGES[job.method]
        parts = [Job(of, job.subject, None, job.seed, job.base), Job(of, None, job.style, job.seed, job.base)]
        loras = [read_lora(self.main_lora(part)) for part in parts]
        if how == "exact":
            merged = merge(loras, [weight, weight])
        else:
            folders = [
                self._setting.references(part.subject or part.style or "", "comprehensive") for part in parts
            ]
            model = self._setting.model(self._device, job.base)
            merged, losses = zip_merge(
                model, loras, folders, self._study.zip_steps, job.seed, self._study.resolution
            )
            write_table(path / TRAINING, [{**_columns(job), **losses}])
        write_lora(path / LORA, merged)

    def _score(self, job: Job, path: Path, model: ImageModel, tick: Callable[[], None]) -> None:
        rows: list[Row] = []
        if job.method == CEILING:
            pictures = self._setting.ceiling(job.subject, job.style, job.seed)
            rows += self._scored(job, pictures, None, CEILING)
        elif job.method == BASE:
            pictures = self._draw(model, model.denoiser(None), self._prompts(job), 0.0, job, tick)
            self._keep_pictures(job, pictures, path, "0.0")
            rows += self._scored(job, pictures, 0, 0.0)
            rows += self._others(job, model, model.denoiser(None), 0, 0.0, tick)
        else:
            points: list[tuple[int | str, Path]] = [("merged", path / LORA)]
            if job.trains:
                points = [(checkpoint, self._file(job, checkpoint)) for checkpoint in self._checkpoints(job)]
            for checkpoint, file in points:
                rows += self._score_checkpoint(job, path, model, checkpoint, file, tick)
        write_table(path / SCORES, rows)

    def _score_checkpoint(
        self, job: Job, path: Path, model: ImageModel, checkpoint: int | str, file: Path, tick: Callable[[], None]
    ) -> list[Row]:
        study, rows = self._study, list[Row]()
        denoiser = with_lora(model, read_lora(file).layers)
        swept = checkpoint in study.w_rg_at if study.w_rg_at else file.name == LORA
        if study.w_rg_methods and job.method not in study.w_rg_methods:
            swept = False
        guidances: list[float | str] = [PLAIN, *(study.w_rg if swept else ())]
        for guidance in guidances:
            pictures = self._draw(model, denoiser, self._prompts(job), guidance, job, tick)
            rows += self._scored(job, pictures, checkpoint, guidance)
            if swept or checkpoint == "merged" or checkpoint == self._main(job):
                self._keep_pictures(job, pictures, path, str(guidance))
        rows += self._others(job, model, denoiser, checkpoint, PLAIN, tick)
        if job.trains and checkpoint == self._main(job):
            self._measure_distances(job, path, model, denoiser, checkpoint)
        return rows

    def _prompts(self, job: Job) -> list[str]:
        return self._setting.prompts(job.subject, job.style)

    def _draw(
        self, model: ImageModel, denoiser: Any, prompts: list[str], guidance: float | str, job: Job,
        tick: Callable[[], None],
    ) -> Tensor:  # fmt: skip
        study = self._study
        return draw(
            model, denoiser, prompts, guidance, w_text=study.w_text, steps=study.sampling_steps,
            pictures=study.pictures, seed=job.seed, resolution=study.resolution, at_once=study.pictures_at_once,
            tick=tick,
        )  # fmt: skip

    def _scored(self, job: Job, pictures: Tensor, checkpoint: int | str | None, guidance: Any) -> list[Row]:
        prompts, kinds = self._prompts(job), self._setting.kinds(job.subject, job.style)
        n = self._study.pictures
        each = [prompt for prompt in prompts for _ in range(n)]
        found = self._setting.scores(pictures, each, job.subject, job.style)
        return [
            {
                **_columns(job), "checkpoint": checkpoint, "guidance": guidance, "prompts": kinds[i // n],
                "prompt": prompt, "picture": i % n, **{name: values[i] for name, values in found.items()},
            }
            for i, prompt in enumerate(each)
        ]  # fmt: skip

    def _others(
        self, job: Job, model: ImageModel, denoiser: Any, checkpoint: int | str, guidance: Any,
        tick: Callable[[], None],
    ) -> list[Row]:  # fmt: skip
        """Collateral damage: pictures without what was learned, with the LoRA on, against the base model's of the same
        noise."""
        prompts, n = self._setting.others(), self._study.pictures
        if not prompts:
            return []
        known = (job.base, job.seed)
        if known not in self._base_others:
            self._base_others = {known: self._draw(model, model.denoiser(None), prompts, 0.0, job, tick)}
        base = self._base_others[known]
        pictures = base if job.method == BASE else self._draw(model, denoiser, prompts, guidance, job, tick)
        each = [prompt for prompt in prompts for _ in range(n)]
        obeyed = self._setting.scores(pictures, each, None, None)["alignment"]
        rmse = collateral_rmse(pictures, base).tolist()
        return [
            {
                **_columns(job), "checkpoint": checkpoint, "guidance": guidance, "prompts": OTHERS, "prompt": prompt,
                "picture": i % n, "alignment": obeyed[i], "rmse": rmse[i],
            }
            for i, prompt in enumerate(each)
        ]  # fmt: skip

    def _measure_distances(self, job: Job, path: Path, model: ImageModel, denoiser: Any, checkpoint: Any) -> None:
        study, style = self._study, job.subject is None
        # the plain objective: what others make beside the references is not looked at
        config = dataclasses.replace(study.config(job.method, job.seed, style), objective="dreambooth")
        sets = {"references": examples_of(model, self._references(job), config, study, denoiser)}
        if study.distance_prompts:
            prompts = self._prompts(job)[-study.distance_prompts :]
            sets["prompts"] = prompt_examples(model, denoiser, prompts, study, job.seed)
        rows: list[Row] = []
        for on, examples in sets.items():
            found = noise_distance(
                denoiser, examples, timesteps=study.distance_timesteps, draws=study.distance_draws, seed=job.seed
            )
            rows += [
                {**_columns(job), "checkpoint": checkpoint, "on": on, **dataclasses.asdict(row)} for row in found
            ]
        write_table(path / DISTANCES, rows)

    def _keep_pictures(self, job: Job, pictures: Tensor, path: Path, name: str) -> None:
        if job.seed == self._study.seeds[0]:  # of one seed: to look at
            _save(pictures[:: self._study.pictures], path / PICTURES, name)


def _portable(name: str) -> str:
    """A model's name without the folder that it lies in on this machine; what is in it is told by its contents."""
    kind, colon, rest = name.rpartition(":")
    return f"{kind}{colon}{Path(rest).name if Path(rest).is_absolute() else rest}"


def _not_default(config: Any) -> Row:
    """The fields that differ from their defaults: an option that comes later does not make old jobs other ones."""
    return {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if getattr(config, f.name) != f.default
    }


def _columns(job: Job) -> Row:
    what = {"method": job.method, "subject": job.subject, "style": job.style, "seed": job.seed}
    return {"base": job.base, **what}


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _save(images: Tensor, folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        pixels = (image.float().cpu() * 255).round().clamp(0, 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{name}_{i}.png")
