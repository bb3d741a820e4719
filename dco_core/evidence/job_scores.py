"""What is measured of a job: its pictures' scores at every checkpoint, collateral damage, and noise distances."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.pixels import as_uint8
from ..lora import LoraWeights, read_lora
from ..metrics import collateral_rmse, noise_distance
from ..models.image_model import ImageModel
from .jobs import DISTANCES, PICTURES, SCORES, Job, checkpoint_file, checkpoints_of, main_checkpoint
from .pictures import draw, with_lora
from .prompts import OTHERS
from .setting import Setting
from .side_by_side import convolve_faster
from .snapshots import LORA, base_latents, examples_of, prompt_examples
from .study import BASE, CEILING, PLAIN, Study
from .tables import Row, write_table


class Scorer:
    """Writes the tables and pictures of jobs whose LoRAs are there."""

    def __init__(self, study: Study, setting: Setting):
        self._study, self._setting = study, setting
        # of the unit at hand: one draw for all methods and checkpoints
        self._base_others: dict[tuple[str, int], Tensor] = {}
        self._base_latents: dict[tuple[str, int, tuple[str, ...]], list[Tensor]] = {}

    def score(self, job: Job, folder: Path, model: ImageModel, callback: Callable[[], None]) -> None:
        """Score a job. folder: its own; model: its base; callback: called before every step of the sampler."""
        rows: list[Row] = []
        if job.method == CEILING:
            pictures = self._setting.ceiling(job.subject, job.style, job.seed)
            rows += self._scored(job, pictures, None, CEILING)
        else:
            convolve_faster(model.denoiser(None).network)
            if job.method == BASE:
                pictures = self._draw(model, model.denoiser(None), self._prompts(job), 0.0, job, callback)
                self._keep_pictures(job, pictures, folder, "0.0")
                rows += self._scored(job, pictures, 0, 0.0)
                rows += self._others(job, model, model.denoiser(None), 0, 0.0, callback)
            for checkpoint, file in self._files(job, folder):
                rows += self._checkpoint(job, folder, model, checkpoint, file, callback)
        write_table(folder / SCORES, rows)

    def _files(self, job: Job, folder: Path) -> list[tuple[int | str, Path]]:
        """The LoRAs of a job and what they are called in its tables."""
        if job.method == BASE:
            return []
        if not job.trains:
            return [("merged", folder / LORA)]
        checkpoints = checkpoints_of(self._study, job)
        return [(checkpoint, checkpoint_file(self._study, job, folder, checkpoint)) for checkpoint in checkpoints]

    def _checkpoint(
        self, job: Job, folder: Path, model: ImageModel, checkpoint: int | str, file: Path,
        callback: Callable[[], None],
    ) -> list[Row]:  # fmt: skip
        study, rows = self._study, list[Row]()
        self._base_pictures(job, model, callback)  # a model may have one denoiser at a time
        lora = read_lora(file)
        denoiser = with_lora(model, lora.layers)
        swept = checkpoint in study.w_rg_at if study.w_rg_at else file.name == LORA
        swept &= not study.w_rg_methods or job.method in study.w_rg_methods
        main = "merged" if not job.trains else main_checkpoint(study, job)
        guidances: list[float | str] = [PLAIN, *(study.w_rg if swept else ())]
        for guidance in guidances:
            pictures = self._draw(model, denoiser, self._prompts(job), guidance, job, callback, lora)
            rows += self._scored(job, pictures, checkpoint, guidance)
            if checkpoint == main:
                self._keep_pictures(job, pictures, folder, str(guidance))
        rows += self._others(job, model, denoiser, checkpoint, PLAIN, callback)
        if job.trains and checkpoint == main:
            self._measure_distances(job, folder, model, denoiser, checkpoint, lora)
        return rows

    def _prompts(self, job: Job) -> list[str]:
        return self._setting.prompts(job.subject, job.style)

    def _draw(
        self, model: ImageModel, denoiser: Any, prompts: list[str], guidance: float | str, job: Job,
        callback: Callable[[], None], lora: LoraWeights | None = None,
    ) -> Tensor:  # fmt: skip
        study = self._study
        return draw(
            model, denoiser, prompts, guidance, w_text=study.w_text, steps=study.sampling_steps,
            pictures=study.pictures, seed=job.seed, resolution=study.resolution, at_once=study.pictures_at_once,
            lora=lora, callback=callback,
        )  # fmt: skip

    def _scored(self, job: Job, pictures: Tensor, checkpoint: int | str | None, guidance: Any) -> list[Row]:
        prompts, prompt_distances = self._prompts(job), self._setting.prompt_distances(job.subject, job.style)
        n = self._study.pictures
        each = [prompt for prompt in prompts for _ in range(n)]
        found = self._setting.scores(pictures, each, job.subject, job.style)
        return [
            {
                **job.columns, "checkpoint": checkpoint, "guidance": guidance, "prompts": prompt_distances[i // n],
                "prompt": prompt, "picture": i % n, **{name: values[i] for name, values in found.items()},
            }
            for i, prompt in enumerate(each)
        ]  # fmt: skip

    def _others(
        self, job: Job, model: ImageModel, denoiser: Any, checkpoint: int | str, guidance: Any,
        callback: Callable[[], None],
    ) -> list[Row]:  # fmt: skip
        """Collateral damage: pictures without what was learned, with the LoRA on, against the base model's of the same
        noise."""
        prompts, n = self._setting.others(), self._study.pictures
        if not prompts:
            return []
        base = self._base_pictures(job, model, callback)
        pictures = base if job.method == BASE else self._draw(model, denoiser, prompts, guidance, job, callback)
        each = [prompt for prompt in prompts for _ in range(n)]
        obeyed = self._setting.scores(pictures, each, None, None)["alignment"]
        rmse = collateral_rmse(pictures, base).tolist()
        return [
            {
                **job.columns, "checkpoint": checkpoint, "guidance": guidance, "prompts": OTHERS, "prompt": prompt,
                "picture": i % n, "alignment": obeyed[i], "rmse": rmse[i],
            }
            for i, prompt in enumerate(each)
        ]  # fmt: skip

    def _base_pictures(self, job: Job, model: ImageModel, callback: Callable[[], None]) -> Tensor:
        """The base model's pictures without what is learned, of the unit at hand."""
        known = (job.base, job.seed)
        if known not in self._base_others:
            prompts = self._setting.others()
            pictures = torch.empty(0)
            if prompts:
                pictures = self._draw(model, model.denoiser(None), prompts, 0.0, job, callback)
            self._base_others = {known: pictures}
        return self._base_others[known]

    def _measure_distances(
        self, job: Job, folder: Path, model: ImageModel, denoiser: Any, checkpoint: Any, lora: LoraWeights
    ) -> None:
        study = self._study
        # the plain objective on whole pictures: what others make or hold beside the references is not looked at
        config = dataclasses.replace(
            study.config(*job.training), objective="dreambooth", mask_prior=0.0, preservation_prompts=""
        )
        references = self._setting.references(job.shown[0], study.method(job.method).captions)
        sets = {"references": examples_of(model, references, config, study, denoiser, lora)}
        if study.distance_prompts:
            prompts = self._prompts(job)[-study.distance_prompts :]
            known = (job.base, job.seed, tuple(prompts))
            if known not in self._base_latents:
                self._base_latents = {known: base_latents(model, denoiser, prompts, study, job.seed)}
            sets["prompts"] = prompt_examples(model, prompts, self._base_latents[known], study, lora)
        rows: list[Row] = []
        for on, examples in sets.items():
            found = noise_distance(
                denoiser, examples, timesteps=study.distance_timesteps, draws=study.distance_draws, seed=job.seed
            )
            about = {**job.columns, "checkpoint": checkpoint, "on": on}
            rows += [about | dataclasses.asdict(row) for row in found]
        write_table(folder / DISTANCES, rows)

    def _keep_pictures(self, job: Job, pictures: Tensor, folder: Path, name: str) -> None:
        if job.seed == self._study.seeds[0]:  # of one seed: to look at
            _save(pictures[:: self._study.pictures], folder / PICTURES, name)


def _save(images: Tensor, folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(as_uint8(image)).save(folder / f"{name}_{i}.png")
