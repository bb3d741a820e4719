"""Folders of pictures: real files, written with Pillow."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from dco_core.data import folders
from dco_core.data.folders import (
    MAX_PICTURES,
    holds_pictures,
    load_folder,
    made_smaller,
    read_caption,
    read_picture,
)
from dco_core.errors import DCOError


def _save(path: Path, color=(255, 0, 0), size=(20, 16), mode="RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)
    return path


def test_which_folders_hold_pictures(tmp_path):
    _save(tmp_path / "photos" / "10_dog" / "a.JPG")
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
        _save(tmp_path / name)
    _save(tmp_path / "f.gif")
    (tmp_path / "notes.md").write_text("not a picture")
    pictures = load_folder(tmp_path)
    assert [picture.name for picture in pictures] == ["a.png", "b.JPG", "c.jpeg", "d.WebP", "e.bmp"]
    for picture in pictures:
        assert picture.image.shape == (16, 20, 3) and picture.image.dtype == torch.float32
        torch.testing.assert_close(picture.image[8, 10], torch.tensor([1.0, 0, 0]), atol=0.02, rtol=0)
        assert (picture.mask, picture.caption, picture.repeats) == (None, "", 1)


def test_pictures_come_in_natural_order(tmp_path):
    for name in ("dog10.png", "dog2.png", "Dog1.png", "12.png", "3.png"):
        _save(tmp_path / name)
    assert _names(tmp_path) == ["3.png", "12.png", "Dog1.png", "dog2.png", "dog10.png"]


def test_a_subfolder_with_a_number_repeats_its_pictures(tmp_path):
    for name in ("a.png", "10_dog/b.png", "0_dog/c.png", "dog/d.png", "x10_dog/e.png", "10dog/f.png"):
        _save(tmp_path / name)
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
    _save(tmp_path / "1000_dog" / "a.png")
    assert load_folder(tmp_path)[0].repeats == 1000
    with pytest.raises(DCOError, match=f"folder {name} repeats"):
        folders._repeats(name)


def test_only_one_level_of_subfolders_is_read(tmp_path):
    _save(tmp_path / "a" / "one.png")
    _save(tmp_path / "a" / "b" / "two.png")
    assert _names(tmp_path) == ["a/one.png"]


def test_hidden_files_and_folders_are_skipped(tmp_path):
    _save(tmp_path / "seen.png")
    (tmp_path / "._seen.png").write_bytes(b"finder's own notes")
    (tmp_path / ".thumbs").mkdir()
    (tmp_path / ".thumbs" / "x.png").write_bytes(b"not read")
    assert _names(tmp_path) == ["seen.png"]


# --- captions


def test_a_caption_is_the_text_file_with_the_same_stem(tmp_path):
    for name in ("a.png", "b.png", "c.png", "5_dog/a.png"):
        _save(tmp_path / name)
    (tmp_path / "a.txt").write_text("  a dog\n")
    (tmp_path / "a.caption").write_text("not this one")
    (tmp_path / "b.caption").write_text("a cat")
    (tmp_path / "5_dog" / "a.TXT").write_text("another dog")
    captions = {picture.name: picture.caption for picture in load_folder(tmp_path)}
    assert captions == {"a.png": "a dog", "b.png": "a cat", "c.png": "", "5_dog/a.png": "another dog"}


@pytest.mark.parametrize("wrap", [False, True])
def test_captions_json_fills_in_where_there_is_no_text_file(tmp_path, wrap):
    for name in ("a.png", "b.jpg", "c.png", "sub/a.png", "sub/d.png"):
        _save(tmp_path / name)
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
    _save(tmp_path / "a.png")
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
    _save(tmp_path / "a.png")
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
        _save(tmp_path / f"{number}.png")
    (tmp_path / "0.txt").write_text("a dog")
    (tmp_path / "1.txt").write_text(" \n")
    assert len(load_folder(tmp_path)) == 8
    monkeypatch.setattr(folders, "read_picture", lambda path: pytest.fail("a picture was read"))
    with pytest.raises(DCOError) as caught:
        load_folder(tmp_path, require_captions=True)
    assert "7 of 8" in str(caught.value)
    assert "(1.png, 2.png, 3.png, 4.png, 5.png, ...)" in str(caught.value)


def test_complete_captions_satisfy_the_requirement(tmp_path):
    _save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a dog")
    assert load_folder(tmp_path, require_captions=True)[0].caption == "a dog"


# --- pixels


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_a_picture_is_turned_upright_by_its_exif_orientation(tmp_path, name):
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees clockwise: left becomes top
    Image.fromarray(pixels).save(tmp_path / name, exif=exif, quality=95)
    image, *_ = read_picture(tmp_path / name)
    assert image.shape == (64, 32, 3)
    assert image[:28].min() > 0.9 and image[36:].max() < 0.1


def test_the_alpha_turns_with_the_picture(tmp_path):
    pixels = np.zeros((8, 16, 4), np.uint8)
    pixels[:, :8, 3] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image, alpha, _ = read_picture(tmp_path / "a.png")
    assert alpha is not None and alpha.shape == (16, 8) and image.shape == (16, 8, 3)
    assert (alpha[:8] == 1).all() and (alpha[8:] == 0).all()
    assert (image[:8] == 0).all() and (image[8:] == 1).all()


def test_a_half_transparent_picture_is_put_on_white(tmp_path):
    _save(tmp_path / "a.png", (255, 0, 0, 51), mode="RGBA")
    image, alpha, _ = read_picture(tmp_path / "a.png")
    assert alpha is not None and alpha.shape == (16, 20) and alpha.dtype == torch.float32
    torch.testing.assert_close(alpha[0, 0].item(), 0.2, atol=1e-6, rtol=0)
    torch.testing.assert_close(image[0, 0], torch.tensor([1.0, 0.8, 0.8]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (10, 20, 30, 255)), ("LA", (10, 255))])
def test_an_opaque_alpha_channel_is_no_alpha(tmp_path, mode, color):
    _save(tmp_path / "a.png", color, mode=mode)
    image, alpha, _ = read_picture(tmp_path / "a.png")
    assert alpha is None
    torch.testing.assert_close(image[0, 0, 0].item(), 10 / 255, atol=1e-6, rtol=0)


def test_grey_with_alpha_is_put_on_white(tmp_path):
    _save(tmp_path / "a.png", (0, 102), mode="LA")
    image, alpha, _ = read_picture(tmp_path / "a.png")
    assert alpha is not None
    torch.testing.assert_close(alpha[0, 0].item(), 0.4, atol=1e-6, rtol=0)
    torch.testing.assert_close(image[0, 0], torch.full((3,), 0.6), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("mode", "clear"), [("P", 1), ("L", 1), ("RGB", (1, 1, 1))])
def test_a_transparent_color_is_alpha(tmp_path, mode, clear):
    picture = Image.new(mode, (4, 2), 0)
    if mode == "P":
        picture.putpalette([0, 0, 0, 0, 0, 255])
    picture.putpixel((3, 1), clear)
    picture.save(tmp_path / "a.png", transparency=clear)
    image, alpha, _ = read_picture(tmp_path / "a.png")
    assert alpha is not None and alpha[1, 3] == 0 and alpha.sum() == 7
    assert (image[1, 3] == 1).all() and image.sum() == 3


def test_a_palette_without_transparency_gives_its_colors(tmp_path):
    picture = Image.new("P", (4, 2), 1)
    picture.putpalette([0, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png")
    image, alpha, _ = read_picture(tmp_path / "a.png")
    assert alpha is None and image[0, 0].tolist() == [0, 0, 1]


def test_16_bit_grey_is_scaled_to_the_whole_range(tmp_path):
    Image.fromarray(np.array([[0, 255, 32768, 65535]] * 2, np.uint16)).save(tmp_path / "a.png")
    image, alpha, _ = read_picture(tmp_path / "a.png")
    assert alpha is None and image.shape == (2, 4, 3)
    expected = torch.tensor([0, 255, 32768, 65535]) / 65535
    torch.testing.assert_close(image[0], expected[:, None].repeat(1, 3), atol=1e-6, rtol=0)


def test_16_bit_grey_turns_upright_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array([[65535, 0, 0, 0]], np.uint16)).save(tmp_path / "a.png", exif=exif)
    image, *_ = read_picture(tmp_path / "a.png")
    assert image[:, 0, 0].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_every_16_bit_mode_is_scaled_alike(mode):
    data = np.array([[0, 65535]], {"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2"))
    picture = Image.frombytes(mode, (2, 1), data.tobytes())
    image, _ = folders._to_tensors(picture)
    assert image[0].tolist() == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize(
    ("name", "mode", "color", "rgb"),
    [
        ("a.jpg", "CMYK", (0, 255, 255, 0), (1, 0, 0)),
        ("a.png", "L", 51, (0.2, 0.2, 0.2)),
        ("a.png", "1", 1, (1, 1, 1)),
    ],
)
def test_other_color_modes_become_rgb(tmp_path, name, mode, color, rgb):
    _save(tmp_path / name, color, mode=mode)
    image, alpha, _ = read_picture(tmp_path / name)
    assert alpha is None
    torch.testing.assert_close(image[4, 4], torch.tensor(rgb, dtype=torch.float32), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, name):
    frames = [Image.new("RGB", (20, 16), color) for color in ("red", "blue", "lime")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    image, *_ = read_picture(tmp_path / name)
    torch.testing.assert_close(image[8, 8], torch.tensor([1.0, 0, 0]), atol=0.02, rtol=0)


def test_a_phone_jpeg_with_a_second_picture_inside_is_read(tmp_path):
    frames = [Image.new("RGB", (20, 16), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    image, *_ = read_picture(tmp_path / "a.jpg")
    torch.testing.assert_close(image[8, 8], torch.tensor([1.0, 0, 0]), atol=0.02, rtol=0)


# --- what is refused


@pytest.mark.parametrize("folder", ["", "gone"])
def test_a_missing_folder_is_refused(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    _save(tmp_path / "a.png")
    with pytest.raises(DCOError, match=f"no folder '{folder}'"):
        load_folder(folder)


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    path = _save(tmp_path / "a.png")
    with pytest.raises(DCOError, match=r"a\.png is a file"):
        load_folder(path)


def test_a_folder_without_pictures_is_refused_with_the_extensions(tmp_path):
    (tmp_path / "a.txt").write_text("a dog")
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(DCOError, match=r"no pictures.*\.png, \.jpg, \.jpeg, \.webp, \.bmp"):
        load_folder(tmp_path)


def test_a_huge_folder_is_refused_before_a_picture_is_read(tmp_path, monkeypatch):
    (tmp_path / "3_more").mkdir()
    for number in range(10_000):
        (tmp_path / f"{number}.png").touch()
        (tmp_path / "3_more" / f"{number}.png").touch()
    monkeypatch.setattr(folders, "read_picture", lambda path: pytest.fail("a picture was read"))
    start = time.perf_counter()
    with pytest.raises(DCOError, match=r"1 to 20 pictures; .*20000.*1000") as caught:
        load_folder(tmp_path)
    assert time.perf_counter() - start < 5
    assert str(tmp_path) in str(caught.value)


def test_the_largest_allowed_folder_is_read_and_one_more_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "read_picture", lambda path: (torch.zeros(1, 1, 3), None, None))
    for number in range(MAX_PICTURES):
        (tmp_path / f"{number}.png").touch()
    assert len(load_folder(tmp_path)) == MAX_PICTURES
    (tmp_path / "one_more.png").touch()
    with pytest.raises(DCOError, match=str(MAX_PICTURES + 1)):
        load_folder(tmp_path)


def test_a_zero_byte_file_is_refused_by_name(tmp_path):
    _save(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    with pytest.raises(DCOError, match=r"b\.png is an empty file: remove it or save it again"):
        load_folder(tmp_path)


@pytest.mark.parametrize("name", ["b.png", "b.jpg", "b.webp", "b.bmp"])
@pytest.mark.parametrize("keep", [0.5, 0.1])
def test_a_truncated_file_is_refused_by_name(tmp_path, name, keep):
    _save(tmp_path / "a.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DCOError, match=rf"b\.{name[2:]} is .*remove it or save it again"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    "data", [b"<html>404</html>", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 64]
)
def test_a_file_that_is_no_picture_is_refused_by_name(tmp_path, data):
    (tmp_path / "b.jpg").write_bytes(data)
    with pytest.raises(DCOError, match=r"b\.jpg is .*remove it or save it again"):
        load_folder(tmp_path)


def test_postscript_under_a_picture_name_is_not_interpreted(tmp_path):
    Image.new("RGB", (20, 16)).save(tmp_path / "a.png", format="EPS")
    with pytest.raises(DCOError, match=r"a\.png is no picture"):
        read_picture(tmp_path / "a.png")


def test_a_decompression_bomb_is_refused_by_name(tmp_path, monkeypatch):
    _save(tmp_path / "a.png", size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DCOError, match=r"a\.png is too large .*10000 pixels.*smaller"):
        load_folder(tmp_path)


def test_a_picture_that_is_gone_is_refused_by_name(tmp_path):
    with pytest.raises(DCOError, match=r"gone\.png"):
        read_picture(tmp_path / "gone.png")


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_dangling_link_is_not_passed_over(tmp_path):
    _save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DCOError, match=r"b\.png"):
        load_folder(tmp_path)


def _scene(width: int, height: int) -> Image.Image:
    """Red above, blue below, green at the right edge: upright or not can be told at any size."""
    picture = Image.new("RGB", (width, height), (255, 0, 0))
    picture.paste((0, 0, 255), (0, height // 2, width, height))
    picture.paste((0, 255, 0), (width - width // 8, 0, width, height))
    return picture


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_picture_is_made_smaller_as_it_is_read_upright_and_reported(tmp_path, monkeypatch, name, orientation):
    monkeypatch.setattr(folders, "MAX_PIXELS", 120 * 90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    shown = _scene(480, 320)
    stored = shown if orientation == 1 else shown.rotate(90, expand=True)
    stored.save(tmp_path / name, exif=exif)
    (picture,) = load_folder(tmp_path)
    height, width = picture.image.shape[:2]
    assert 120 * 90 * 0.9 < width * height <= 120 * 90
    assert width / height == pytest.approx(1.5, rel=0.03)
    assert picture.full_size == (480, 320)
    for place, colour in [((10, 10), (1, 0, 0)), ((height - 10, 10), (0, 0, 1)), ((10, width - 4), (0, 1, 0))]:
        assert picture.image[place].tolist() == pytest.approx(colour, abs=0.1)
    assert made_smaller([picture]) == [f"{name} has 480 x 320 px and was read at {width} x {height} px."]


@pytest.mark.parametrize("kind", ["half transparent", "palette", "grey16"])
def test_a_large_picture_keeps_its_kind(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(folders, "MAX_PIXELS", 5000)
    if kind == "half transparent":
        Image.new("RGBA", (200, 100), (0, 0, 255, 128)).save(tmp_path / "a.png")
        colour, alpha = (127 / 255, 127 / 255, 1), 128 / 255
    elif kind == "palette":
        picture = Image.new("P", (200, 100), 1)
        picture.putpalette([0, 0, 0, 0, 255, 0])
        picture.save(tmp_path / "a.png", transparency=1)
        colour, alpha = (1, 1, 1), 0
    else:
        Image.fromarray(np.full((100, 200), 40000, np.uint16)).save(tmp_path / "a.png")
        colour, alpha = (40000 / 65535,) * 3, None
    image, found, full_size = read_picture(tmp_path / "a.png")
    assert image.shape == (50, 100, 3) and full_size == (200, 100)
    assert image[25, 50].tolist() == pytest.approx(colour, abs=0.01)
    assert (found is None) if alpha is None else found[25, 50].item() == pytest.approx(alpha, abs=0.01)


def test_a_picture_of_the_largest_size_is_read_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MAX_PIXELS", 48 * 32)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, _, full_size = read_picture(tmp_path / "a.png")
    assert full_size is None
    assert np.array_equal((image.numpy() * 255).round(), pixels)


def test_a_picture_beyond_all_use_is_refused_before_it_is_decoded_with_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MAX_FILE_PIXELS", 4000)
    _save(tmp_path / "a.png", size=(100, 50))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(DCOError, match=r"a\.png is too large \(100 x 50 px; .*smaller"):
        load_folder(tmp_path)


def test_a_picture_of_12000_px_is_read_in_bounded_memory_without_a_warning(tmp_path, recwarn):
    Image.new("RGB", (12000, 8000), (200, 30, 60)).save(tmp_path / "a.png", compress_level=1)
    image, _, full_size = read_picture(tmp_path / "a.png")
    assert image.shape[0] * image.shape[1] <= folders.MAX_PIXELS and full_size == (12000, 8000)
    assert not recwarn.list


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
