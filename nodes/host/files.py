"""Where LoRA files live in the host."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

import folder_paths

from ...dco_core.data.folders import holds_pictures
from ...dco_core.errors import DCOError

STOPPED = "stopped_at_"  # and the step, in the names of LoRAs of training that was stopped


def lora_names() -> list[str]:
    """Names of the LoRA files that the host's own loaders list, those of stopped training last: the first one is what a
    new loader has."""
    return sorted(folder_paths.get_filename_list("loras"), key=lambda name: STOPPED in name)


def lora_path(name: str) -> Path:
    """Full path of a listed LoRA file; DCOError if it is gone."""
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise DCOError(f'The LoRA file "{name}" is not in the loras folders: press R to refresh the list.')
    return Path(path)


def is_lora(name: str) -> bool:
    """Whether named_lora finds a file of this name."""
    return _listed(name) is not None


def named_lora(name: str) -> Path:
    """Full path of a LoRA file that somebody wrote down: as the lists have it, or as nodes tell what they saved,
    `loras/my_dog_00001_.safetensors`. DCOError, with the names that come near it, for anything else; only names of the
    host's lists count, so that none leads out of its folders."""
    listed = _listed(name)
    if listed is not None:
        return lora_path(listed)
    names = lora_names()
    stem = Path(name.replace("\\", "/")).name
    near = difflib.get_close_matches(name, names, 3, 0.5) or difflib.get_close_matches(stem, names, 3, 0.5)
    hint = f"the nearest names are {', '.join(near)}" if near else f"there are {len(names)} LoRA files"
    folders = ", ".join(folder_paths.get_folder_paths("loras"))
    raise DCOError(f'The LoRA file "{name}" is not in the loras folders ({folders}): {hint}.')


def _listed(name: str) -> str | None:
    """The name in the host's list, which has the slashes of the system; None for one that is not there."""
    names = {listed.replace("\\", "/"): listed for listed in lora_names()}
    if name in names.values():
        return name
    shown = name.replace("\\", "/")
    if shown in names:
        return names[shown]
    inside = shown.removeprefix("loras/")
    saved = Path(folder_paths.get_output_directory()) / "loras" / inside
    found = names.get(inside)
    # the file below the output folder, not one of that name in another loras folder
    return found if found and inside != shown and lora_path(found) == saved else None


def new_lora_path(name: str) -> Path:
    """A new file in output/loras for a name such as `my_dog` or `dogs/rex`, counted up as the host does.
    `output/loras` is one of the host's loras folders, so the file shows up in its loaders after a refresh.
    Raises DCOError for a name that leads out of the folder or is none."""
    prefix = _in_loras(name)
    output = Path(folder_paths.get_output_directory()).resolve()
    if not (output / prefix).resolve().is_relative_to((output / "loras").resolve()):
        raise DCOError(f'name "{name}" leads out of output/loras: write something like "my_subject".')
    folder, stem, counter, _, _ = folder_paths.get_save_image_path(prefix, str(output))
    return Path(folder) / f"{stem}_{counter:05}_.safetensors"


def _in_loras(name: str) -> str:
    """The name below the output folder. `loras/` before it, as nodes tell what they have saved, means the same."""
    inside = name.strip().replace("\\", "/").removeprefix("loras/")
    if not re.sub(r"[/\s.]", "", inside) or inside.endswith("/"):
        raise DCOError(f'name "{name}" names no file: write something like "my_subject".')
    return f"loras/{inside}"


def shown_name(path: Path) -> str:
    """The path as users know it: relative to the output folder."""
    return path.relative_to(Path(folder_paths.get_output_directory()).resolve()).as_posix()


def embedding_folders() -> list[str]:
    return folder_paths.get_folder_paths("embeddings")


def new_embedding_path(stem: str) -> Path:
    """A file in the host's embeddings folder that is not there yet: `stem.safetensors`, or `stem_2` and so on."""
    folder = Path(folder_paths.get_folder_paths("embeddings")[0])
    path, number = folder / f"{stem}.safetensors", 2
    while path.exists():
        path, number = folder / f"{stem}_{number}.safetensors", number + 1
    return path


NO_FOLDER = "no folder of pictures in the input folder yet"


def dataset_folders() -> list[str]:
    """Folders in the host's input folder that hold pictures, themselves or in a folder of theirs. The host's own folder
    for 3D models comes along only with pictures in it."""
    root = Path(folder_paths.get_input_directory())
    return [name for name in folder_paths.get_input_subfolders() if holds_pictures(root / name)] or [NO_FOLDER]


def dataset_folder(name: str) -> Path:
    """Full path of a folder in the input folder; DCOError if it is not inside."""
    if name == NO_FOLDER:
        raise DCOError(
            "There is no folder of pictures yet: make one in ComfyUI's input folder, put your pictures into it, press "
            "R and choose it."
        )
    return _in_input(name, f'The folder "{name}" is not inside the input folder: put your pictures in a folder there.')


def input_file(name: str) -> Path:
    """Full path of a file below the input folder; DCOError if it is not inside."""
    return _in_input(name, f'The file "{name}" is not inside the input folder: drop it on the node again.')


def _in_input(name: str, otherwise: str) -> Path:
    root = Path(folder_paths.get_input_directory()).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or path == root:
        raise DCOError(otherwise)
    return path


def state_of(paths: Iterable[Path]) -> str:
    """Changes with the files. Raises OSError for one that is not there."""
    return " ".join(f"{found.st_mtime_ns} {found.st_size}" for found in (path.stat() for path in paths))


def checkpoint_folder(name: str) -> Path:
    """Where the runs of a name keep their checkpoints: a folder of `dco_checkpoints` in the output
    folder, which can be deleted at any time."""
    return _folder_of_runs("dco_checkpoints", name)


def reference_folder() -> Path:
    """Where the base model's errors are kept for all runs, beside their checkpoints. The folder can be deleted at
    any time."""
    return Path(folder_paths.get_output_directory()).resolve() / "dco_reference_cache"


def log_folder(name: str) -> Path:
    """Where the runs of a name write their TensorBoard logs: a folder of `dco_logs` in the output folder."""
    return _folder_of_runs("dco_logs", name)


def _folder_of_runs(kind: str, name: str) -> Path:
    folder = re.sub(r"[^\w-]+", "_", _in_loras(name)).strip("_")
    return Path(folder_paths.get_output_directory()).resolve() / kind / folder
