"""One job of a study: train and score one model, or merge two and score the result. A finished job is not done
again."""

from __future__ import annotations

import dataclasses
import hashlib
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

from ..errors import DCOError
from ..files.content_key import content_key
from ..lora import merge, read_lora, write_lora
from ..metrics import noise_distance
from ..models.image_model import ImageModel
from ..network.denoiser import NetworkDenoiser
from ..pipeline.generation import GenerationConfig
from ..pipeline.pictures import FolderPictures
from ..pipeline.run import FolderTraining, checkpoint_folder
from ..training.checkpoints import Checkpoints
from .pictures import draw, with_lora
from .setting import Setting
from .study import BASE, MERGES, PLAIN, Study
from .tables import Row, write_table, write_text
from .zip_merge import zip_merge

SCORES, DISTANCES, TRAINING, DONE, LORA, PICTURES = (
    "scores.csv", "distances.csv", "training.csv", "done.json", "lora.safetensors", "pictures",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """method: of the study's methods or merges, or BASE. What is shown: a subject, a style, or (merges) both."""

    method: str
    subject: str | None
    style: str | None
    seed: int

    @property
    def name(self) -> str:
        """Its folder, which no other job has (jobs_of sees to it for methods)."""
        what = "+".join(_folder_name(w) for w in (self.subject, self.style) if w)
        return f"{re.sub(r'[^a-z0-9.]+', '-', self.method.lower())}--{what}--seed-{self.seed}"


def jobs_of(study: Study) -> tuple[list[Job], list[Job]]:
    """The jobs that can be done at once, and the merges, which need LoRAs of the first. Seed by seed, so that a study
    that was stopped has whole seeds."""
    first, merges = [], []
    pairs = list(zip(study.subjects, study.styles, strict=False)) if study.merges else []
    for seed in study.seeds:
        for subject in study.subjects:
            first += [Job(method, subject, None, seed) for method in (BASE, *study.methods)]
        for style in study.styles:
            first += [Job(method, None, style, seed) for method in (BASE, *study.style_methods)]
        for subject, style in pairs:
            first.append(Job(BASE, subject, style, seed))
            merges += [Job(method, subject, style, seed) for method in study.merges]
    known: dict[str, Job] = {}
    for job in (*first, *merges):
        other = known.setdefault(job.name.casefold(), job)
        if other != job:
            raise DCOError(
                f'"{other.method}" and "{job.method}" would share the folder {job.name}: rename one of the methods.'
            )
    return first, merges


class Bench:
    """Does jobs. folder: of the study, a folder a job in it. device: cuda, cuda:1, cpu; None for the best there
    is."""

    def __init__(self, study: Study, setting: Setting, folder: Path, device: str | None = None):
        self._study, self._setting, self._folder, self._device = study, setting, folder, device

    def path(self, job: Job) -> Path:
        return self._folder / "jobs" / job.name

    def done(self, job: Job) -> bool:
        """Whether the job was finished with the settings of this study."""
        try:
            return json.loads((self.path(job) / DONE).read_text(encoding="utf-8"))["key"] == self._key(job)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def do(self, job: Job, tick: Callable[[], None] = lambda: None) -> float:
        """Do the job unless it is done; the seconds it took. Raises DCOError where it cannot be done; what it had
        trained until then is gone on from by the next call."""
        if self.done(job):
            return 0.0
        started = time.monotonic()
        path = self.path(job)
        path.mkdir(parents=True, exist_ok=True)
        if job.method in MERGES:
            self._merge(job, path)
        elif job.method != BASE:
            self._train(job, path, tick)
        model = self._setting.model(self._device)
        self._score(job, path, model, tick)
        seconds = time.monotonic() - started
        write_text(
            path / DONE,
            json.dumps({"key": self._key(job), "job": dataclasses.asdict(job), "seconds": seconds}),
        )
        return seconds

    def _key(self, job: Job) -> str:
        """Tells what the job's results depend on."""
        study = self._study
        style = job.subject is None
        parts: list[Any] = [
            dataclasses.asdict(job), study.model, study.w_text, study.sampling_steps, study.pictures,
            self._setting.prompts(job.subject, job.style), study.resolution, study.precision, study.likeness_model,
            study.text_model, study.seeds[0] == job.seed,
            self._setting.fingerprint(*(what for what in (job.subject, job.style) if what)),
        ]  # fmt: skip
        of = MERGES[job.method][0] if job.method in MERGES else job.method
        if of != BASE:
            kinds = (False, True) if job.method in MERGES else (style,)
            for kind in kinds:
                configs = study.config(of, job.seed, kind), study.adapter_config(of, job.seed, kind)
                parts += [_not_default(config) for config in configs]
            parts += [study.method(of).captions, study.w_rg, study.distance_timesteps, study.distance_draws]
            if study.config(of, job.seed).with_prior:
                parts.append(study.class_images)
            if job.method in MERGES and MERGES[job.method][1] == "zip-lora":
                parts.append(study.zip_steps)
        return content_key(*parts)

    def _train(self, job: Job, path: Path, tick: Callable[[], None]) -> None:
        study, output = self._study, path / LORA
        what = job.subject or job.style or ""
        run = FolderTraining(
            self._setting.model(self._device),
            FolderPictures(
                self._setting.references(what, study.method(job.method).captions),
                study.config(job.method, job.seed, style=job.subject is None),
                GenerationConfig(class_images=study.class_images, generation_w_text=study.w_text),
            ),
            output,
            study.adapter_config(job.method, job.seed, style=job.subject is None),
            Checkpoints(checkpoint_folder(output), minutes=2),
            study.resolution,
            square=True,
            overwrite=True,  # of an earlier form of the study
        )
        run.training.run(lambda report: tick())
        run.save()
        mine = _columns(job)
        config, last = run.training.config, run.training.history[-50:]
        write_table(
            path / TRAINING,
            [{
                **mine, "objective": config.objective, "steps": config.steps,
                "beta": config.beta if config.is_dco else None,
                "loss": _mean(r.loss for r in last), "margin": _mean(r.margin for r in last),
                "gate": _mean(r.gate for r in last), "seconds": sum(r.seconds for r in run.training.history),
            }],
        )  # fmt: skip
        with run.training.result():
            found = noise_distance(
                run.training.denoiser, run.training.examples, timesteps=study.distance_timesteps,
                draws=study.distance_draws, seed=job.seed,
            )  # fmt: skip
        write_table(path / DISTANCES, [{**mine, **dataclasses.asdict(row)} for row in found])

    def _merge(self, job: Job, path: Path) -> None:
        of, how = MERGES[job.method]
        parts = [Job(of, job.subject, None, job.seed), Job(of, None, job.style, job.seed)]
        loras = [read_lora(self.path(part) / LORA) for part in parts]
        if how == "exact":
            merged = merge(loras, [1.0, 1.0])
        else:
            folders = [
                self._setting.references(part.subject or part.style or "", "comprehensive") for part in parts
            ]
            model = self._setting.model(self._device)
            merged, losses = zip_merge(
                model, loras, folders, self._study.zip_steps, job.seed, self._study.resolution
            )
            write_table(path / TRAINING, [{**_columns(job), **losses}])
        write_lora(path / LORA, merged)

    def _score(self, job: Job, path: Path, model: ImageModel, tick: Callable[[], None]) -> None:
        study, trained = self._study, job.method != BASE
        layers = read_lora(path / LORA).layers if trained else {}
        denoiser: NetworkDenoiser = with_lora(model, layers) if trained else model.denoiser(None)
        prompts = self._setting.prompts(job.subject, job.style)
        each = [prompt for prompt in prompts for _ in range(study.pictures)]
        rows: list[Row] = []
        guidances: tuple[float | str, ...] = (PLAIN, *study.w_rg) if trained else (0.0,)
        for guidance in guidances:
            images = draw(
                model, denoiser, prompts, guidance, w_text=study.w_text, steps=study.sampling_steps,
                pictures=study.pictures, seed=job.seed, resolution=study.resolution, tick=tick,
            )  # fmt: skip
            found = self._setting.scores(images, each, job.subject, job.style)
            for i, prompt in enumerate(each):
                scores = {name: values[i] for name, values in found.items()}
                rows.append(
                    {
                        **_columns(job),
                        "guidance": guidance,
                        "prompt": prompt,
                        "picture": i % study.pictures,
                        **scores,
                    }
                )
            if job.seed == study.seeds[0]:  # of one seed: to look at
                _save(images[:: study.pictures], path / PICTURES, str(guidance))
        write_table(path / SCORES, rows)


def _folder_name(what: str) -> str:
    """A name of the Toy World as it is; of a folder its last part, and a few letters that tell it from others, also
    where capitals do not."""
    name = re.sub(r"[^\w.-]+", "_", Path(what).name)
    return name if name == what.lower() else f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"


def _not_default(config: Any) -> Row:
    """The fields that differ from their defaults: an option that comes later does not make old jobs other ones."""
    return {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if getattr(config, f.name) != f.default
    }


def _columns(job: Job) -> Row:
    return {"method": job.method, "subject": job.subject, "style": job.style, "seed": job.seed}


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _save(images: Tensor, folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        pixels = (image.float().cpu() * 255).round().clamp(0, 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{name}_{i}.png")
