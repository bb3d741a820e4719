"""Subjects of DreamBench++ (Peng et al. 2024, arXiv 2406.16855) as folders of references, with its prompts.

Its data has `images/CATEGORY/.../NN.jpg`, one picture a subject, and `captions/CATEGORY/.../NN.txt`: the subject's name
in the first line, then nine prompts.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DCOError, shortened
from ..files.atomic import whole_folder
from .prompts import read_prompts
from .study import BUILT_IN

STUDY = "study.json"
_STYLE = "style"


def prepare(data: Path, names: Sequence[str], model: str, output: Path) -> tuple[Path, list[Path]]:
    """Write a study of subjects of DreamBench++ into the new folder `output`: the study `sdxl` with that model, these
    subjects and their prompts. names: of subjects, as "live_subject/animal/00". Returns the study's file and the
    captions' files, which name the subject alone so far. DCOError for subjects that are not there, for styles, whose
    references have no captions of what they show, and for an `output` that is there."""
    if not (data / "images").is_dir() or not (data / "captions").is_dir():
        raise DCOError(f"{data} has no folders images and captions: give the data folder of DreamBench++.")
    if output.exists():
        raise DCOError(f"{output} is there already: give a new folder.")
    if len(set(names)) != len(names):
        raise DCOError(f"A subject is named twice: {', '.join(names)}.")
    found = [_subject(data, name) for name in names]
    values: dict[str, Any] = json.loads((BUILT_IN / "sdxl.json").read_text(encoding="utf-8"))
    values |= {"model": model, "subjects": [], "categories": {}, "prompt_files": {}}
    values["prompts"] = max(len(prompts) for *_, prompts in found)
    captions = []
    with whole_folder(output) as made:
        for name, picture, word, prompts in found:
            folder = re.sub(r"[^\w.-]+", "_", f"{name.replace('/', '_')}_{word.lower()}")
            (made / "subjects" / folder).mkdir(parents=True)
            (made / "prompts").mkdir(exist_ok=True)
            shutil.copyfile(picture, made / "subjects" / folder / picture.name)
            caption = Path("subjects", folder, picture.stem + ".txt")
            (made / caption).write_text(f"a photo of a <{word}>", encoding="utf-8")
            captions.append(output / caption)
            (made / "prompts" / f"{folder}.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
            subject = str(output / "subjects" / folder)
            values["subjects"].append(subject)
            values["categories"][subject] = "live subject" if name.startswith("live_subject") else "object"
            values["prompt_files"][subject] = str(output / "prompts" / f"{folder}.txt")
        (made / STUDY).write_text(json.dumps(values, indent=1), encoding="utf-8")
    return output / STUDY, captions


def _subject(data: Path, name: str) -> tuple[str, Path, str, list[str]]:
    """(its name, its picture, its word, its prompts)."""
    base = data / "images" / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise DCOError(f"{shortened(name)} is no subject of DreamBench++: give names such as live_subject/animal/00.")
    if Path(name).parts[0] == _STYLE:
        raise DCOError(
            f"{name} is a style of DreamBench++: make its folder by hand, with a caption that says what the picture "
            "shows (docs/real-models.md)."
        )
    pictures = [base.with_name(base.name + ending) for ending in (".jpg", ".jpeg", ".png", ".webp")]
    picture = next((path for path in pictures if path.is_file()), None)
    texts = data / "captions" / f"{name}.txt"
    if picture is None or not texts.is_file():
        files = sorted((data / "captions").rglob("*.txt"))
        known = ", ".join(path.relative_to(data / "captions").with_suffix("").as_posix() for path in files[:5])
        raise DCOError(f"{data} has no subject {shortened(name)}: it has {known or 'none'}, ...")
    word, *prompts = read_prompts(texts)
    if not prompts:
        raise DCOError(f"{texts} has no prompts after the subject's name: download DreamBench++ again.")
    return name, picture, re.sub(r"[<>]", "", word).strip(), prompts
