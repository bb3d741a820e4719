"""Does the jobs of a study: trains and scores one model, or merges two and scores the result. A finished job is not
done again."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..files.content_key import content_key
from ..lora import merge, read_lora, write_lora
from ..pipeline.generation import GenerationConfig
from ..pipeline.output_files import checkpoint_folder
from ..pipeline.pictures import FolderPictures
from ..pipeline.run import FolderTraining
from ..training.checkpoints import Checkpoints
from . import jobs as of_study
from .job_scores import Scorer
from .jobs import DONE, TRAINING, Group, Job
from .setting import Setting
from .snapshots import LORA, is_of, keep, train_together
from .study import BASE, CEILING, MERGES, STOPPED, Study
from .tables import Row, write_table, write_text
from .zip_merge import zip_merge


class Workspace:
    """Does jobs. folder: of the study, a folder a job in it. device: cuda, cuda:1, cpu; None for the best there
    is."""

    def __init__(self, study: Study, setting: Setting, folder: Path, device: str | None = None):
        self._study, self._setting, self._folder, self._device = study, setting, folder, device
        self._names, self._scorer = of_study.folder_names(study), Scorer(study, setting)

    def path(self, job: Job) -> Path:
        """Its folder, which no other job of the study has (jobs_of sees to it)."""
        return self._folder / "jobs" / of_study.folder_name(job, self._names)

    def name(self, job: Job | Group) -> str:
        """To tell the user."""
        if isinstance(job, Group):
            return f"{self.name(job.jobs[0])} and {len(job.jobs) - 1} others, side by side"
        return self.path(job).name

    def main_lora(self, job: Job) -> Path:
        """The LoRA that merges are made of."""
        return self._file(job, of_study.main_checkpoint(self._study, job))

    def done(self, job: Job | Group) -> bool:
        """Whether the job was finished with the settings of this study."""
        if isinstance(job, Group):
            return all(self._trained(one) or self.done(one) for one in job.jobs)
        try:
            return json.loads((self.path(job) / DONE).read_text(encoding="utf-8"))["key"] == self._key(job)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def do(self, job: Job | Group, callback: Callable[[], None] = lambda: None) -> float:
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
            self._train(job, path, callback)
            if not self._trained(job):  # an earlier form of the study kept other steps of the same run: once more
                shutil.rmtree(checkpoint_folder(path / LORA), ignore_errors=True)
                self._train(job, path, callback)
        self._scorer.score(job, path, self._setting.model(self._device, job.base), callback)
        seconds = time.monotonic() - started
        about = {"key": self._key(job), "job": dataclasses.asdict(job), "seconds": seconds}
        write_text(path / DONE, json.dumps(about))
        return seconds

    # --- what results depend on

    def _key(self, job: Job) -> str:
        """Tells what the job's results depend on, wherever its files lie."""
        study = self._study
        parts: list[Any] = [
            self._training_key(job), study.w_text, study.sampling_steps, study.pictures,
            self._setting.prompts(job.subject, job.style), self._setting.others(),
            _portable(study.likeness_model), _portable(study.text_model), study.seeds[0] == job.seed,
        ]  # fmt: skip
        parts += [_portable(study.judge_model)] if study.judge_model else []
        if job.method in MERGES:
            subject, style = job.parts
            parts += [self._training_key(style), self._training_key(subject), study.checkpoint]
            parts += [study.zip_steps] if MERGES[job.method][1] == "zip-lora" else []
        if job.method not in (BASE, CEILING):
            swept = not study.w_rg_methods or job.method in study.w_rg_methods
            parts += [study.w_rg, study.w_rg_at] if swept else []
            parts += [study.distance_timesteps, study.distance_draws, study.distance_prompts, study.checkpoint]
        return content_key(*parts)

    def _training_key(self, job: Job) -> str:
        """Tells what the job's LoRAs depend on."""
        study = self._study
        parts: list[Any] = [
            job.method, job.base, [Path(what).name for what in job.shown], job.subject is None, job.seed,
            _portable(study.models()[job.base]), study.resolution, study.precision,
            self._setting.contents_key(*job.shown),
        ]  # fmt: skip
        if job.trains:
            config = study.config(*job.training)
            parts += [_not_default(config), _not_default(study.adapter_config(*job.training))]
            parts += [study.method(job.method).captions, study.checkpoints_of(*job.training)]
            parts += ["learned tokens"] if study.tokens(job.subject is None).on else []
            parts += ["masks"] if study.method(job.method).masks else []
            if config.with_prior or config.objective == "mapo":  # the base model makes pictures of its own
                parts += [study.class_images, study.w_text]
        return content_key(*parts)

    # --- training and merging

    def _file(self, job: Job, checkpoint: int | str) -> Path:
        return of_study.checkpoint_file(self._study, job, self.path(job), checkpoint)

    def _trained(self, job: Job) -> bool:
        key = self._training_key(job)
        return all(is_of(self._file(job, checkpoint), key) for checkpoint in of_study.checkpoints_of(self._study, job))

    def _references(self, job: Job) -> Path:
        method = self._study.method(job.method)
        return self._setting.references(job.shown[0], method.captions, method.masks)

    def _train(self, job: Job, path: Path, callback: Callable[[], None]) -> None:
        study, output = self._study, path / LORA
        key, config = self._training_key(job), study.config(*job.training)
        model = self._setting.model(self._device, job.base)
        run = FolderTraining(
            model,
            FolderPictures(
                self._references(job),
                dataclasses.replace(config, keep="best") if config.validation_steps else config,
                GenerationConfig(class_images=study.class_images, generation_w_text=study.w_text),
            ),
            output,
            study.adapter_config(*job.training),
            Checkpoints(checkpoint_folder(output), minutes=2),
            study.resolution,
            square=True,
            tokens=study.tokens(job.subject is None),
            overwrite=True,  # of an earlier form of the study
        )
        training, kept = run.training, study.checkpoints_of(*job.training)

        def keep_step(step: int) -> None:
            with training.averaged():
                keep(self._file(job, step), model, training.denoiser.lora(), key, run.words)

        def on_step(report: Any) -> None:
            if report.step in kept:
                keep_step(report.step)
            callback()

        training.run(on_step)
        # once more: a run that was stopped after its last step goes on without one
        keep_step(training.step)
        if config.validation_steps:
            with training.result():
                keep(self._file(job, STOPPED), model, training.denoiser.lora(), key, run.words)
        config, last, best = training.config, training.history[-50:], training.best
        write_table(
            path / TRAINING,
            [{
                **job.columns, "objective": config.objective, "steps": config.steps,
                "beta": config.beta if config.is_dco else None,
                "loss": _mean(r.loss for r in last), "margin": _mean(r.margin for r in last),
                "gate": _mean(r.gate for r in last), "seconds": sum(r.seconds for r in training.history),
                "stopped_at": best.step if best else None,
            }],
        )  # fmt: skip

    def _train_together(self, jobs: list[Job]) -> None:
        study = self._study
        for job in jobs:
            self.path(job).mkdir(parents=True, exist_ok=True)
        rows = train_together(
            self._setting.model(self._device, jobs[0].base),
            [self._references(job) for job in jobs],
            [(self.path(job), self._training_key(job)) for job in jobs],
            [study.config(*job.training) for job in jobs],
            [study.adapter_config(*job.training) for job in jobs],
            study.checkpoints_of(*jobs[0].training),
            study,
        )
        for job, row in zip(jobs, rows, strict=True):
            write_table(self.path(job) / TRAINING, [{**job.columns, **row}])

    def _merge(self, job: Job, path: Path) -> None:
        _, how, weight = MERGES[job.method]
        loras = [read_lora(self.main_lora(part)) for part in job.parts]
        if how == "exact":
            merged = merge(loras, [weight, weight])
        else:
            folders = [self._setting.references(part.shown[0], "comprehensive") for part in job.parts]
            model = self._setting.model(self._device, job.base)
            merged, losses = zip_merge(
                model, loras, folders, self._study.zip_steps, job.seed, self._study.resolution
            )
            write_table(path / TRAINING, [{**job.columns, **losses}])
        write_lora(path / LORA, merged)


def _portable(name: str) -> str:
    """A model's name without the folder that it lies in on this machine; what is in it is told by its contents."""
    kind = "diffusers:" if name.startswith("diffusers:") else ""
    place = Path(name.removeprefix(kind))
    return f"{kind}{place.name}" if place.is_absolute() else name


def _not_default(config: Any) -> Row:
    """The fields that differ from their defaults: an option that comes later does not make old jobs other ones."""
    return {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if getattr(config, f.name) != f.default
    }


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
