"""Folders of pictures: which files are read, their captions and masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dco_core.data import folders
from dco_core.data.folders import (
    holds_pictures,
    load_folder,
    read_caption,
)
from dco_core.errors import DCOError
from tests.picture_files import save


def test_which_folders_hold_pictures(tmp_path):
    save(tmp_path / "photos" / "10_dog" / "a.JPG")
    (tmp_path / "3d").mkdir()
    (tmp_path / "3d" / "model.glb").write_bytes(b"glTF")
    assert holds_pictures(tmp_path / "photos") and holds_pictures(tmp_path / "photos" / "10_dog")
    assert not holds_pictures(tmp_path / "3d") and not holds_pictures(tmp_path / "missing")
    assert not holds_pictures(tmp_path)  # two folders down is another folder's


def _names(folder: Path) -> list[str]:
    return [picture.name for picture in load_folder(folder)]


# --- which files


def test_every_extension_is_read_in_any_case_and_nothing_else(tmp_path):
    for name in ("a.png", "b.JPG", "c.jpeg", "d.WebP", "e.bmp"):
        save(tmp_path / name)
    save(tmp_path / "f.gif")
    (tmp_path / "notes.md").write_text("not a picture")
    pictures = load_folder(tmp_path)
    assert [picture.name for picture in pictures] == ["a.png", "b.JPG", "c.jpeg", "d.WebP", "e.bmp"]
    for picture in pictures:
        assert picture.image.shape == (16, 20, 3) and picture.image.dtype == torch.float32
        torch.testing.assert_close(picture.image[8, 10], torch.tensor([1.0, 0, 0]), atol=0.02, rtol=0)
        assert (picture.mask, picture.caption, picture.repeats) == (None, "", 1)


def test_pictures_come_in_natural_order(tmp_path):
    for name in ("dog10.png", "dog2.png", "Dog1.png", "12.png", "3.png"):
        save(tmp_path / name)
    assert _names(tmp_path) == ["3.png", "12.png", "Dog1.png", "dog2.png", "dog10.png"]


def test_a_subfolder_with_a_number_repeats_its_pictures(tmp_path):
    for name in ("a.png", "10_dog/b.png", "0_dog/c.png", "dog/d.png", "x10_dog/e.png", "10dog/f.png"):
        save(tmp_path / name)
    repeats = {picture.name: picture.repeats for picture in load_folder(str(tmp_path))}
    assert repeats == {
        "a.png": 1,
        "10_dog/b.png": 10,
        "0_dog/c.png": 1,
        "dog/d.png": 1,
        "x10_dog/e.png": 1,
        "10dog/f.png": 1,
    }


@pytest.mark.parametrize("name", ["1001_dog", "20260101_holiday", "9" * 5000 + "_dog"])
def test_a_folder_that_repeats_endlessly_is_refused_by_name(tmp_path, name):
    save(tmp_path / "1000_dog" / "a.png")
    assert load_folder(tmp_path)[0].repeats == 1000
    with pytest.raises(DCOError, match=f"folder {name} repeats"):
        folders._repeats(name)


def test_only_one_level_of_subfolders_is_read(tmp_path):
    save(tmp_path / "a" / "one.png")
    save(tmp_path / "a" / "b" / "two.png")
    assert _names(tmp_path) == ["a/one.png"]


def test_hidden_files_and_folders_are_skipped(tmp_path):
    save(tmp_path / "seen.png")
    (tmp_path / "._seen.png").write_bytes(b"finder's own notes")
    (tmp_path / ".thumbs").mkdir()
    (tmp_path / ".thumbs" / "x.png").write_bytes(b"not read")
    assert _names(tmp_path) == ["seen.png"]


# --- captions


def test_a_caption_is_the_text_file_with_the_same_stem(tmp_path):
    for name in ("a.png", "b.png", "c.png", "5_dog/a.png"):
        save(tmp_path / name)
    (tmp_path / "a.txt").write_text("  a dog\n")
    (tmp_path / "a.caption").write_text("not this one")
    (tmp_path / "b.caption").write_text("a cat")
    (tmp_path / "5_dog" / "a.TXT").write_text("another dog")
    captions = {picture.name: picture.caption for picture in load_folder(tmp_path)}
    assert captions == {"a.png": "a dog", "b.png": "a cat", "c.png": "", "5_dog/a.png": "another dog"}


@pytest.mark.parametrize("wrap", [False, True])
def test_captions_json_fills_in_where_there_is_no_text_file(tmp_path, wrap):
    for name in ("a.png", "b.jpg", "c.png", "sub/a.png", "sub/d.png"):
        save(tmp_path / name)
    (tmp_path / "a.txt").write_text("from the text file")
    content = {"a.png": "from json", "b.jpg": " a\ncat ", "sub/a.png": "deeper", "gone.png": "unused"}
    (tmp_path / "captions.json").write_text(json.dumps({"captions": content} if wrap else content))
    (tmp_path / "sub" / "captions.json").write_text('{"d.png": "its own"}')
    captions = {picture.name: picture.caption for picture in load_folder(tmp_path)}
    assert captions == {
        "a.png": "from the text file",
        "b.jpg": "a cat",
        "c.png": "",
        "sub/a.png": "deeper",
        "sub/d.png": "its own",
    }


@pytest.mark.parametrize(
    "content", ["{", "[]", '"text"', "[" * 100_000, '{"a.png": 1}', '{"captions": ["a"]}']
)
def test_a_captions_json_of_another_form_is_refused(tmp_path, content):
    save(tmp_path / "a.png")
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(DCOError, match=r"captions\.json .*remove it"):
        load_folder(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_caption_is_read_in_unicode(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("sch\u00f6ner Hund \U0001f436".encode(encoding))
    assert read_caption(path) == "sch\u00f6ner Hund \U0001f436"


def test_a_big_endian_caption_is_read_by_its_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xfe\xff" + "a d\u00f6g".encode("utf-16-be"))
    assert read_caption(path) == "a d\u00f6g"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_caption_in_another_encoding_is_refused_by_name(tmp_path, encoding):
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("sch\u00f6n".encode(encoding))
    with pytest.raises(DCOError, match=r"a\.txt .*save the file as UTF-8"):
        load_folder(tmp_path)


def test_half_a_utf16_character_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfea\0b")
    with pytest.raises(DCOError, match="UTF-8"):
        read_caption(tmp_path / "a.txt")


def test_newlines_in_a_caption_become_single_spaces(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n a dog \r\n\r\n on\n grass\r\n")
    assert read_caption(path) == "a dog on grass"


def test_a_caption_file_that_is_gone_is_refused_by_name(tmp_path):
    with pytest.raises(DCOError, match=r"gone\.txt"):
        read_caption(tmp_path / "gone.txt")


def test_missing_captions_are_listed_where_they_are_required(tmp_path, monkeypatch):
    for number in range(8):
        save(tmp_path / f"{number}.png")
    (tmp_path / "0.txt").write_text("a dog")
    (tmp_path / "1.txt").write_text(" \n")
    assert len(load_folder(tmp_path)) == 8
    monkeypatch.setattr(folders, "read_picture", lambda path: pytest.fail("a picture was read"))
    with pytest.raises(DCOError) as caught:
        load_folder(tmp_path, require_captions=True)
    assert "7 of 8" in str(caught.value)
    assert "(1.png, 2.png, 3.png, 4.png, 5.png, ...)" in str(caught.value)


def test_complete_captions_satisfy_the_requirement(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a dog")
    assert load_folder(tmp_path, require_captions=True)[0].caption == "a dog"


# --- masks


def painted(path, *size, left):
    """A mask file of (height, width), white on the left."""
    path.parent.mkdir(exist_ok=True, parents=True)
    mask = np.zeros(size, np.uint8)
    mask[:, :left] = 255
    Image.fromarray(mask).save(path)


def test_masks_lie_in_a_folder_beside_the_pictures_and_win_over_transparency(tmp_path):
    (tmp_path / "3_dog").mkdir()
    for name, channels in (("a.png", 4), ("b.png", 3), ("3_dog/a.jpg", 3)):
        pixels = np.full((20, 30, channels), 128, np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    painted(tmp_path / "masks" / "a.jpg", 20, 30, left=10)
    painted(tmp_path / "3_dog" / "masks" / "a.png", 40, 60, left=50)
    deep, one, two = load_folder(tmp_path)
    assert [deep.name, one.name, two.name] == ["3_dog/a.jpg", "a.png", "b.png"]
    assert two.mask is None and deep.repeats == 3
    assert deep.mask.shape == (40, 60) and deep.mask.sum() == 40 * 50
    assert one.mask.shape == (20, 30)
    torch.testing.assert_close(one.mask[:, :8].mean().item(), 1.0, atol=0.02, rtol=0)
    torch.testing.assert_close(one.mask[:, 12:].mean().item(), 0.0, atol=0.02, rtol=0)
    Image.fromarray(np.array([[[255, 255, 255, 255], [255, 255, 255, 0]]], np.uint8).repeat(16, 0)).save(
        tmp_path / "masks" / "b.png"
    )
    assert load_folder(tmp_path)[2].mask[0].tolist() == [1, 0]


def test_a_mask_of_no_picture_is_refused(tmp_path):
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.png")
    painted(tmp_path / "masks" / "b.png", 20, 20, left=3)
    with pytest.raises(DCOError, match=r"masks.b\.png belongs to no picture"):
        load_folder(tmp_path)
