"""Where a study takes place: the Toy World with its own scorers, or a user's model with DINOv2 and SigLIP."""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..captions import markers
from ..content import files_fingerprint
from ..dataset import load_folder
from ..errors import DCOError
from ..image_model import ImageModel
from ..image_models import load_model
from ..lora.atomic import whole_folder
from ..metrics import ImageEncoder, SiglipScorer, image_similarity, load_image_encoder, load_siglip
from ..prompts import evaluation_prompts, fill
from ..toy_world import scorer, scorer_network
from ..toy_world.model import DEFAULT_BASE, weights_file
from ..toy_world.references import to_cells, toy_references, write_toy_references
from .study import Study


class Setting(Protocol):
    """A style is a thing that is taught like a subject; `what` names either."""

    def model(self, device: str | None) -> ImageModel:
        """The base model, loaded anew."""
        ...

    def fingerprint(self, *shown: str) -> str:
        """Tells what results are made from besides the study's own fields: the contents of the base model, of the
        scorers, and of the references of what is shown."""
        ...

    def references(self, what: str, captions: str) -> Path:
        """The folder of pictures with captions ("comprehensive" or "compact") to train on."""
        ...

    def prompts(self, subject: str | None, style: str | None) -> list[str]:
        """The prompts that show a subject, a style, or the subject in the style."""
        ...

    def scores(
        self, pictures: Tensor, prompts: Sequence[str], subject: str | None, style: str | None
    ) -> dict[str, list[float]]:
        """Pictures [B, H, W, 3] in 0..1 and their prompts -> {score: [B]}: `alignment`, and `likeness` and
        `style_likeness` for what is named; where it can be told, `factors`: the share of the prompt that is obeyed."""
        ...


def setting_for(study: Study, folder: Path, device: str | None) -> Setting:
    """The setting of a study. folder: where it may write references of its own."""
    toy = study.model.partition(":")[0] == "toy-world"
    return ToySetting(study, folder) if toy else FolderSetting(study, folder, device)


class ToySetting:
    """alignment is 1 for a picture that obeys all of its prompt and 0 otherwise: one thing out of six that is wrong
    spoils a picture, and a text-image model's score falls as sharply. Likeness is measured against true attributes."""

    def __init__(self, study: Study, folder: Path):
        self._study, self._folder = study, folder
        for what in (*study.subjects, *study.styles):
            toy_references(what)

    def model(self, device: str | None) -> ImageModel:
        return load_model(self._study.model)

    def fingerprint(self, *shown: str) -> str:
        base = self._study.model.partition(":")[2] or DEFAULT_BASE
        return files_fingerprint(weights_file(base), scorer_network.WEIGHTS)

    def references(self, what: str, captions: str) -> Path:
        return write_toy_references(self._folder / f"{what}-{captions}", what, captions)

    def prompts(self, subject: str | None, style: str | None) -> list[str]:
        return _prompts(self._study.prompts, "toy world", subject and "toy", style and "print")

    def scores(
        self, pictures: Tensor, prompts: Sequence[str], subject: str | None, style: str | None
    ) -> dict[str, list[float]]:
        cells = to_cells(pictures)
        found = {
            "alignment": scorer.prompt_alignment(cells, prompts),
            "factors": scorer.factors_obeyed(cells, prompts),
        }
        if subject:
            found["likeness"] = scorer.subject_likeness(cells, subject)
        if style:
            found["style_likeness"] = scorer.style_likeness(cells, style)
            scores = scorer.style_scores(cells, style)
            found |= {"style_colour": scores["colour"], "style_form": scores["form"]}
        return {name: values.tolist() for name, values in found.items()}


class FolderSetting:
    """Folders of the user's own, with markers in their captions. Likeness of a subject is the mean DINOv2 cosine
    similarity to its references, of a style SigLIP's; alignment is SigLIP's image-text score (App. D.4)."""

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

    def model(self, device: str | None) -> ImageModel:
        return load_model(self._study.model, device, self._study.precision)

    def fingerprint(self, *shown: str) -> str:
        study = self._study
        names = (study.model.partition(":")[2], study.likeness_model, study.text_model)
        # a model of the hub has no files here: its name, which the study has, must do
        files = (Path(name) for name in names if name and Path(name).exists())
        return files_fingerprint(*files, *map(Path, shown))

    def references(self, what: str, captions: str) -> Path:
        if captions != "compact":
            return Path(what)
        compact = self._folder / f"{Path(what).name}-compact"
        style = what in self._study.styles
        text = f"in <{self._words[what]}> style" if style else f"a photo of a <{self._words[what]}>"
        with whole_folder(compact) as made:
            for picture in load_folder(what):
                copy = made / picture.name.replace("/", "_")
                shutil.copyfile(Path(what) / picture.name, copy)
                copy.with_suffix(".txt").write_text(text, encoding="utf-8")
        return compact

    def prompts(self, subject: str | None, style: str | None) -> list[str]:
        category = self._study.categories.get(subject, "object") if subject else "object"
        subject_word = subject and self._words[subject]
        return _prompts(self._study.prompts, category, subject_word, style and self._words[style])

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
        return {name: values.tolist() for name, values in found.items()}


@functools.cache
def _siglip(source: str, device: str) -> SiglipScorer:
    return load_siglip(source, device)


@functools.cache
def _image_encoder(source: str, device: str) -> ImageEncoder:
    return load_image_encoder(source, device)


@functools.cache
def _images(folder: str) -> list[Tensor]:
    return [picture.image for picture in load_folder(folder)]


def _prompts(at_most: int, category: str, subject: str | None, style: str | None) -> list[str]:
    """Up to `at_most` prompts of each kind; a subject alone is asked for in new places and in other styles."""
    if subject and style:
        kinds = [fill(evaluation_prompts("merge", category), subject, style)]
    elif style:
        kinds = [fill(evaluation_prompts("style", category), style)]
    else:
        kinds = [
            fill(evaluation_prompts(kind, category), subject or "")
            for kind in ("customization", "stylization")
        ]
    each = -(-at_most // len(kinds))
    # a fixed choice that does not favour how the list begins
    return [
        text
        for kind in kinds
        for text in sorted(random.Random(0).sample(kind, min(each, len(kind))), key=kind.index)
    ]
