"""Where a study takes place: the Toy World with its own scorers, or a user's model with DINOv2 and SigLIP."""

from __future__ import annotations

import functools
import hashlib
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..captions.markers import markers
from ..data.folders import MASKS, load_folder
from ..errors import DCOError
from ..files.atomic import whole_folder
from ..files.content_key import content_key
from ..files.file_fingerprint import files_fingerprint
from ..metrics import (
    ImageEncoder,
    Judge,
    SiglipScorer,
    image_similarity,
    load_image_encoder,
    load_judge,
    load_siglip,
)
from ..models.image_model import ImageModel
from ..models.loading import load_model
from ..toy_world import scorer
from ..toy_world.references import to_cells, toy_references, write_toy_references
from ..toy_world.renderer import SIZE
from .prompts import NEAR, evaluation_prompts, fill, read_prompts
from .study import Study
from .toy_prompts import merge_prompts, other_prompts, style_prompts, subject_prompts, true_renders

TOY_FILES = Path(scorer.__file__).parent  # its weights and its scorers


class Setting(Protocol):
    """A style is a thing that is taught like a subject; `what` names either."""

    def model(self, device: str | None, base: str = "") -> ImageModel:
        """The base model of that name in the study, loaded anew."""
        ...

    def contents_key(self, *shown: str) -> str:
        """Tells what results are made from besides the study's own fields: the contents of the base model, of the
        scorers, and of the references of what is shown."""
        ...

    def references(self, what: str, captions: str, masks: bool = False) -> Path:
        """The folder of pictures with captions ("comprehensive" or "compact") to train on. masks: with masks of what is
        taught, which the Toy World can make."""
        ...

    def prompts(self, subject: str | None, style: str | None) -> list[str]:
        """The prompts that show a subject, a style, or the subject in the style."""
        ...

    def prompt_distances(self, subject: str | None, style: str | None) -> list[str]:
        """Of each of these prompts: FAR where it changes all that the references have in common, else NEAR."""
        ...

    def others(self) -> list[str]:
        """The study's prompts without anything that is taught."""
        ...

    def ceiling(self, subject: str | None, style: str | None, seed: int) -> Tensor:
        """Pictures [B, H, W, 3] in 0..1 that show exactly what the prompts ask for. DCOError where there are none."""
        ...

    def scores(
        self, pictures: Tensor, prompts: Sequence[str], subject: str | None, style: str | None
    ) -> dict[str, list[float]]:
        """Pictures [B, H, W, 3] in 0..1 and their prompts -> {score: [B]}: `alignment`, and `likeness` and
        `style_likeness` for what is named; where it can be told, `factors`: the share of the prompt that is obeyed, and
        `style_form`: how much of the style is there whatever its colours."""
        ...


def setting_for(study: Study, folder: Path, device: str | None) -> Setting:
    """The setting of a study. folder: where it may write references of its own."""
    return ToySetting(study, folder) if study.on_toy_world else FolderSetting(study, folder, device)


class ToySetting:
    """alignment is 1 for a picture that obeys all of its prompt and 0 otherwise: one thing out of six that is wrong
    spoils a picture, and a text-image model's score falls as sharply. Likeness is measured against true attributes."""

    def __init__(self, study: Study, folder: Path):
        self._study, self._folder = study, folder
        for what in (*study.subjects, *study.styles):
            toy_references(what)

    def model(self, device: str | None, base: str = "") -> ImageModel:
        return load_model(self._study.models()[base], device, self._study.precision)

    def contents_key(self, *shown: str) -> str:
        return files_fingerprint(*sorted(TOY_FILES.glob("*.safetensors")))

    def references(self, what: str, captions: str, masks: bool = False) -> Path:
        name = f"{what}-{captions}" + "-masks" * masks
        return write_toy_references(self._folder / name, what, captions, masks)

    def prompts(self, subject: str | None, style: str | None) -> list[str]:
        if subject and style:
            return merge_prompts(self._study.prompts, style)
        if style:
            return style_prompts(self._study.prompts, style)
        return [text for _, text in subject_prompts(self._study.prompts)]

    def prompt_distances(self, subject: str | None, style: str | None) -> list[str]:
        if style:
            return [NEAR] * self._study.prompts
        return [kind for kind, _ in subject_prompts(self._study.prompts)]

    def others(self) -> list[str]:
        return other_prompts(self._study.others) if self._study.others else []

    def ceiling(self, subject: str | None, style: str | None, seed: int) -> Tensor:
        prompts = [text for text in self.prompts(subject, style) for _ in range(self._study.pictures)]
        return (true_renders(prompts, subject, style, seed).movedim(1, -1) + 1) / 2

    def scores(
        self, pictures: Tensor, prompts: Sequence[str], subject: str | None, style: str | None
    ) -> dict[str, list[float]]:
        # true renders are as small as the canvas already
        cells = pictures.movedim(-1, 1) * 2 - 1 if pictures.shape[1] == SIZE else to_cells(pictures)
        found = {
            "alignment": scorer.prompt_alignment(cells, prompts),
            "factors": scorer.factors_obeyed(cells, prompts),
        }
        if subject:
            found["likeness"] = scorer.subject_likeness(cells, subject, style)
        if style:
            in_style = scorer.style_scores(cells, style)
            found |= {"style_likeness": in_style["colour"], "style_form": in_style["form"]}
        return {name: values.tolist() for name, values in found.items()}


class FolderSetting:
    """Folders of the user's own, with markers in their captions. Likeness of a subject is the mean DINOv2 cosine
    similarity to its references, of a style SigLIP's; alignment is SigLIP's image-text score (App. D.4). Where the
    study names a judge, its points too (metrics/judge.py)."""

    def __init__(self, study: Study, folder: Path, device: str | None):
        self._study, self._folder = study, folder
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._words = {what: self._marker(what) for what in (*study.subjects, *study.styles)}

    @staticmethod
    def _marker(what: str) -> str:
        names = [name for picture in load_folder(what) for name in markers(picture.caption)]
        if not names:
            raise DCOError(f"No caption in {what} has a marker: write the subject or style as <dog>.")
        return names[0]

    def model(self, device: str | None, base: str = "") -> ImageModel:
        return load_model(self._study.models()[base], device, self._study.precision)

    def contents_key(self, *shown: str) -> str:
        study = self._study
        models = (model.partition(":")[2] for model in study.models().values())
        names = (*models, study.likeness_model, study.text_model, study.judge_model)
        # a model of the hub has no files here: its name, which the study has, must do
        files = (Path(name) for name in names if name and Path(name).exists())
        return files_fingerprint(*files, *map(Path, shown))

    def references(self, what: str, captions: str, masks: bool = False) -> Path:
        if captions != "compact":
            return Path(what)
        style = what in self._study.styles
        text = f"in <{self._words[what]}> style" if style else f"a photo of a <{self._words[what]}>"
        names = [picture.name for picture in load_folder(what)]
        # the name tells this copy from those of other folders, and of this one before it was edited
        mask_files = sorted(
            str(path.relative_to(what))
            for place in {(Path(what) / name).parent for name in names}
            for path in (place / MASKS).glob("*")
        )
        contents = [
            hashlib.sha256((Path(what) / name).read_bytes()).hexdigest() for name in (*names, *mask_files)
        ]
        key = content_key(str(Path(what).resolve()), text, names, mask_files, contents)
        compact = self._folder / f"{Path(what).name}-compact-{key[:12]}"
        with whole_folder(compact) as made:
            for name in (*names, *mask_files):
                copy = made / name  # subfolders too: their names say how often a picture counts
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(what) / name, copy)
            for name in names:
                (made / name).with_suffix(".txt").write_text(text, encoding="utf-8")
        return compact

    def prompts(self, subject: str | None, style: str | None) -> list[str]:
        alone = "" if subject and style else subject or style or ""
        if alone in self._study.prompt_files:
            return read_prompts(Path(self._study.prompt_files[alone]))[: self._study.prompts]
        category = self._study.categories.get(subject, "object") if subject else "object"
        subject_word = subject and self._words[subject]
        return _prompts(self._study.prompts, category, subject_word, style and self._words[style])

    def prompt_distances(self, subject: str | None, style: str | None) -> list[str]:
        return [NEAR] * len(self.prompts(subject, style))

    def others(self) -> list[str]:
        """Evaluation prompts of styles, without the style."""
        known = evaluation_prompts("style", "object") + evaluation_prompts("style", "live subject")
        plain = [text.replace(" in {} style", "") for text in known]
        if self._study.others > len(plain):
            raise DCOError(f"others is {self._study.others}, but there are {len(plain)} such prompts: ask for fewer.")
        return sorted(random.Random(1).sample(plain, self._study.others), key=plain.index)

    def ceiling(self, subject: str | None, style: str | None, seed: int) -> Tensor:
        raise DCOError("Only the Toy World can draw what a perfect model would: leave ceiling out of the study.")

    def scores(
        self, pictures: Tensor, prompts: Sequence[str], subject: str | None, style: str | None
    ) -> dict[str, list[float]]:
        images = list(pictures)
        siglip = _siglip(self._study.text_model, self._device)
        found = {"alignment": siglip.score(images, prompts)}
        if subject:
            encoder = _image_encoder(self._study.likeness_model, self._device)
            found["likeness"] = image_similarity(encoder, images, _images(subject))
        if style:
            found["style_likeness"] = image_similarity(siglip, images, _images(style))
        if self._study.judge_model:
            judge = _judge(self._study.judge_model, self._device)
            found["judged_alignment"] = judge.follows(images, prompts)
            for what, kind in ((subject, "subject"), (style, "style")):
                if what:
                    found[f"judged_{kind}"] = judge.resemblance(images, _images(what), kind)
        return {name: values.tolist() for name, values in found.items()}


@functools.cache
def _siglip(source: str, device: str) -> SiglipScorer:
    return load_siglip(source, device)


@functools.cache
def _image_encoder(source: str, device: str) -> ImageEncoder:
    return load_image_encoder(source, device)


@functools.cache
def _judge(source: str, device: str) -> Judge:
    return load_judge(source, device)


@functools.cache
def _images(folder: str) -> list[Tensor]:
    return [picture.image for picture in load_folder(folder)]


def _prompts(at_most: int, category: str, subject: str | None, style: str | None) -> list[str]:
    """Up to `at_most` prompts of each kind; a subject alone is asked for in new places and in other styles."""
    if subject and style:
        groups = [fill(evaluation_prompts("merge", category), subject, style)]
    elif style:
        groups = [fill(evaluation_prompts("style", category), style)]
    else:
        groups = [
            fill(evaluation_prompts(kind, category), subject or "")
            for kind in ("customization", "stylization")
        ]
    each = -(-at_most // len(groups))
    # a fixed choice that does not favour how the list begins
    return [
        text
        for group in groups
        for text in sorted(random.Random(0).sample(group, min(each, len(group))), key=group.index)
    ]
