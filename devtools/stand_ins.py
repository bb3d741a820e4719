"""Files that the templates name, as far as the frontend looks at them: so that it has nothing to complain about."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from .layouts import WORKFLOWS

LORAS = ("my_subject_00001_.safetensors",)


def put_template_files(base: Path) -> None:
    """Below a host's base directory. Only the names matter: model files are empty."""
    models = [model for make in WORKFLOWS.values() for files in make().models.values() for model in files]
    models += [{"name": name, "directory": "loras"} for name in LORAS]
    for model in models:
        folder = base / "models" / model["directory"]
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"empty": torch.zeros(1)}, folder / model["name"])
    subject = base / "input" / "my_subject"
    subject.mkdir(parents=True, exist_ok=True)
    for picture in (base / "input" / "example.png", subject / "01.png"):  # a folder for the loader of folders, too
        Image.new("RGB", (64, 64), "teal").save(picture)
    (subject / "01.txt").write_text("a photo of a <dog> on a teal wall", encoding="utf-8")
