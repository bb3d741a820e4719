"""A folder of pictures with captions, read the way kohya's trainers lay it out."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import DCOError, printable
from .pixels import as_image

MAX_PICTURES = 1000
MAX_REPEATS = 1000
MAX_PIXELS = 2**25  # of a picture in memory, twice 4096 x 4096: what has more is made smaller as it is decoded
MAX_FILE_PIXELS = 178_956_970  # of a picture in a file, Pillow's own limit: what has more is not decoded
MASKS = "masks"  # folder beside the pictures, with a mask of the same stem for some or all of them
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_EXTENSIONS = (".txt", ".caption")

# What a file with one of the extensions may really hold ("JPEG" includes the MPO of phones). Pillow's other
# readers stay shut: one of them starts Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


@dataclass(frozen=True)
class Picture:
    """One picture of the set.

    name: its path relative to the folder, with forward slashes.
    image: [H, W, 3] float32 in 0..1, upright; what was transparent is on white.
    mask: [h, w] float32 in 0..1, 1 where the picture counts, or None: from a file in a folder `masks` beside it, else
        what is not transparent of it.
    caption: one line, or "" where there is none.
    repeats: how often it counts per epoch, 10 in a subfolder `10_dog`.
    full_size: (width, height) in the file of a picture that was made smaller when it was read, else None.
    """

    name: str
    image: Tensor
    mask: Tensor | None
    caption: str
    repeats: int = 1
    full_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Entry:
    path: Path
    name: str
    caption: Path | None
    repeats: int
    mask: Path | None


def load_folder(folder: Path | str, *, require_captions: bool = False) -> list[Picture]:
    """All pictures in `folder` and in its direct subfolders, in natural order of their names (2 before 10).

    A caption is the text file next to the picture with the same stem (CAPTION_EXTENSIONS, in that order), or
    else its entry in captions.json: {"name.jpg": "caption"} or {"captions": {...}}, with the names relative to
    the folder the file is in. A mask is the picture of the same stem in a folder `masks` beside it. Hidden files and
    folders are skipped.

    Raises DCOError for a folder that is missing, unreadable or without pictures; for more than MAX_PICTURES, before
    one of them is opened; for more than MAX_REPEATS; for missing captions if they are required; for masks of no
    picture; and for what read_picture, read_mask and read_caption refuse.
    """
    entries, captions = _scan(folder)
    texts = [
        read_caption(entry.caption) if entry.caption else captions.get(entry.name, "") for entry in entries
    ]
    bare = [entry.name for entry, text in zip(entries, texts, strict=True) if not text]
    if require_captions and bare:
        names = ", ".join(bare[:5]) + (", ..." if len(bare) > 5 else "")
        raise DCOError(
            f"{len(bare)} of {len(entries)} pictures in {folder} have no caption ({names}): "
            f"write each caption into a .txt file with the name of its picture."
        )
    pictures = []
    for entry, text in zip(entries, texts, strict=True):
        image, mask, full_size = read_picture(entry.path)
        if entry.mask is not None:
            mask = read_mask(entry.mask)
        pictures.append(Picture(entry.name, image, mask, text, entry.repeats, full_size))
    return pictures


def holds_pictures(folder: Path | str) -> bool:
    """Whether load_folder would find a picture file: in the folder, or in a direct subfolder."""
    try:
        files, subfolders = _list(Path(folder))
        for place in subfolders:
            files += _list(place)[0]
    except DCOError:  # a folder that cannot be looked into
        return False
    return any(path.suffix.lower() in EXTENSIONS for path in files)


def made_smaller(pictures: Sequence[Picture]) -> list[str]:
    """A sentence for each picture that was made smaller when it was read."""
    return [
        printable(
            f"{p.name} has {p.full_size[0]} x {p.full_size[1]} px and was read at {p.image.shape[1]} x "
            f"{p.image.shape[0]} px."
        )
        for p in pictures
        if p.full_size is not None
    ]


def read_caption(path: Path | str) -> str:
    """The caption in a text file as one stripped line: newlines become single spaces.

    Raises DCOError for a file that cannot be read, or is neither UTF-8 nor UTF-16 with a byte order mark.
    """
    return _one_line(_read_text(Path(path)))


def read_picture(path: Path | str) -> tuple[Tensor, Tensor | None, tuple[int, int] | None]:
    """The first frame of a picture file as (image, alpha, full_size), see Picture. More than MAX_PIXELS are averaged
    down to about as many, by the JPEG decoder itself where it can.

    Raises DCOError for a file that is missing, empty, truncated, no picture, or has more than MAX_FILE_PIXELS (or
    so many that Pillow takes it for a decompression bomb), before it is decoded.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise DCOError(f"{path} is an empty file: remove it or save it again.")
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is another one
                picture = Image.open(file, formats=_FORMATS)
            with picture:
                size = picture.size
                if size[0] * size[1] > MAX_FILE_PIXELS:
                    raise _too_large(path, f"{size[0]} x {size[1]} px")
                upright = ImageOps.exif_transpose(_decoded(picture))
                turned = (upright.width < upright.height) != (size[0] < size[1])
                full_size = None if upright.width * upright.height == size[0] * size[1] else size
                return *_to_tensors(upright), full_size[::-1] if full_size and turned else full_size
    except (DCOError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DCOError(f"There is no picture {path}: check the name.") from error
    except UnidentifiedImageError as error:
        raise DCOError(f"{path} is no picture: remove it or save it again as PNG or JPEG.") from error
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    except Exception as error:  # on broken bytes, Pillow's readers raise nearly anything
        raise DCOError(
            f"{path} is damaged or cannot be read ({error}): remove it or save it again."
        ) from error


def read_mask(path: Path | str) -> Tensor:
    """A mask file [h, w] in 0..1: its brightness, as painted on black; where it is transparent, black. Raises DCOError
    for what read_picture refuses."""
    image, alpha, _ = read_picture(path)
    if alpha is None:
        return image.mean(-1)
    return (image.mean(-1) - (1 - alpha)).clamp(0, 1)  # read_picture has put it on white


def _too_large(path: Path, what: str) -> DCOError:
    return DCOError(
        f"{path} is too large ({what}; {MAX_FILE_PIXELS // 10**6} million pixels are read): remove it or save it "
        "again smaller, such as with edges of 4096 px."
    )


def _decoded(picture: Image.Image) -> Image.Image:
    """The picture in memory, with MAX_PIXELS at most."""
    scale = math.sqrt(MAX_PIXELS / (picture.width * picture.height))
    if scale >= 1:
        picture.load()
        return picture
    size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
    picture.draft(picture.mode, size)  # a JPEG decodes to a half, a quarter or an eighth by itself
    picture.load()
    if _is_deep(picture):
        floats = Image.fromarray(np.asarray(picture).astype(np.float32)).resize(size, reducing_gap=2.0)
        smaller = Image.fromarray(np.asarray(floats).round().clip(0, 65535).astype(np.uint16))
    else:
        mode = "RGBA" if picture.has_transparency_data else "RGB"
        smaller = picture.convert(mode).resize(size, reducing_gap=2.0)
    smaller.getexif().update(picture.getexif())
    return smaller


def _is_deep(picture: Image.Image) -> bool:
    """Whether it has 16 bits a pixel: Pillow's own conversions would clip at 255. Only PNGs come in these modes."""
    return picture.mode == "I" or picture.mode.startswith("I;16")


def _to_tensors(picture: Image.Image) -> tuple[Tensor, Tensor | None]:
    if _is_deep(picture):
        grey = np.asarray(picture).astype(np.float32) / 65535
        return torch.from_numpy(grey)[..., None].repeat(1, 1, 3).clamp(0, 1), None
    if not picture.has_transparency_data:
        return as_image(picture.convert("RGB")), None
    pixels = as_image(picture.convert("RGBA"))
    rgb, alpha = pixels[..., :3], pixels[..., 3]
    if bool((alpha == 1).all()):
        return rgb.contiguous(), None
    return rgb * alpha[..., None] + (1 - alpha[..., None]), alpha.contiguous()


def _scan(folder: Path | str) -> tuple[list[_Entry], dict[str, str]]:
    """What there is to read, sorted, and the captions of every captions.json by the picture's relative name."""
    root = Path(folder)
    if not os.fspath(folder).strip() or not root.exists():
        raise DCOError(f"There is no folder {str(folder)!r}: check the path.")
    if not root.is_dir():
        raise DCOError(f"{root} is a file: choose the folder that holds the pictures.")
    files, subfolders = _list(root)
    places = [("", 1, root, files)]
    places += [
        (f"{path.name}/", _repeats(path.name), path, _list(path)[0])
        for path in subfolders
        if path.name != MASKS
    ]

    entries: list[_Entry] = []
    captions: dict[str, str] = {}
    for prefix, repeats, place, files in places:
        masks = _masks(place / MASKS)
        pictures = [path for path in files if path.suffix.lower() in EXTENSIONS]
        beside = {(path.stem, path.suffix.lower()): path for path in files}
        for path in pictures:
            found = (beside.get((path.stem, suffix)) for suffix in CAPTION_EXTENSIONS)
            caption = next(filter(None, found), None)
            entries.append(_Entry(path, prefix + path.name, caption, repeats, masks.get(path.stem)))
        stray = set(masks) - {path.stem for path in pictures}
        if stray:
            raise DCOError(
                f"The mask {masks[min(stray)]} belongs to no picture: name it like one in {place}, or remove it."
            )
    if not entries:
        raise DCOError(
            f"There are no pictures in {root}: put files that end in {', '.join(EXTENSIONS)} there "
            f"or into its direct subfolders."
        )
    if len(entries) > MAX_PICTURES:
        raise DCOError(
            f"The method is for 1 to 20 pictures; {root} holds {len(entries)} (at most {MAX_PICTURES} are read): "
            f"choose a folder with only the pictures to learn."
        )
    for prefix, _, _, files in places:
        for path in files:
            if path.name == "captions.json":
                captions |= {prefix + name: text for name, text in _read_captions_json(path).items()}
    return sorted(entries, key=lambda entry: _natural(entry.name)), captions


def _masks(folder: Path) -> dict[str, Path]:
    """The masks of a folder's pictures by stem."""
    if not folder.is_dir():
        return {}
    found = [path for path in _list(folder)[0] if path.suffix.lower() in EXTENSIONS]
    return {path.stem: path for path in found}


def _list(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files and the subfolders of a folder that are not hidden. A dangling link is a file, so that reading
    it says what is wrong."""
    files, subfolders = [], []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    subfolders.append(folder / entry.name)
                elif entry.is_file() or entry.is_symlink():
                    files.append(folder / entry.name)
    except OSError as error:
        raise DCOError(f"Cannot look into the folder {folder} ({error}): check its permissions.") from error
    return files, subfolders


def _repeats(name: str) -> int:
    match = re.fullmatch(r"([0-9]+)_.+", name)
    if match and (len(match[1]) > 9 or int(match[1]) > MAX_REPEATS):
        raise DCOError(
            f"The folder {name} repeats its pictures {match[1]} times: use at most {MAX_REPEATS}, or rename it."
        )
    return max(1, int(match[1])) if match else 1


def _natural(name: str) -> tuple[list[str | int], str]:
    # the split puts text at even and digits at odd places, so like always meets like
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DCOError(f"Cannot read the captions in {path} ({error}): check the file.") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    # UTF-16 without its mark, and UTF-32, decode without complaint into text full of these
    if "\0" in text:
        raise DCOError(f"The captions in {path} are in an unknown encoding: save the file as UTF-8.")
    return text


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _read_captions_json(path: Path) -> dict[str, str]:
    try:
        content = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DCOError(f"{path} is no JSON ({error}): correct it or remove it.") from error
    if isinstance(content, dict) and isinstance(content.get("captions"), dict):
        content = content["captions"]
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        raise DCOError(
            f'{path} does not hold captions by file name: write it as {{"name.jpg": "caption"}} or remove it.'
        )
    return {name: _one_line(text) for name, text in content.items()}
