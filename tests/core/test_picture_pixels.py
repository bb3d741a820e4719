"""Pictures of every kind as pixels: orientation, transparency, colour modes, and what is too large."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from dco_core.data import folders
from dco_core.data.folders import (
    load_folder,
    made_smaller,
    read_picture,
)
from dco_core.errors import DCOError
from tests.picture_files import save


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
    save(tmp_path / "a.png", (255, 0, 0, 51), mode="RGBA")
    image, alpha, _ = read_picture(tmp_path / "a.png")
    assert alpha is not None and alpha.shape == (16, 20) and alpha.dtype == torch.float32
    torch.testing.assert_close(alpha[0, 0].item(), 0.2, atol=1e-6, rtol=0)
    torch.testing.assert_close(image[0, 0], torch.tensor([1.0, 0.8, 0.8]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (10, 20, 30, 255)), ("LA", (10, 255))])
def test_an_opaque_alpha_channel_is_no_alpha(tmp_path, mode, color):
    save(tmp_path / "a.png", color, mode=mode)
    image, alpha, _ = read_picture(tmp_path / "a.png")
    assert alpha is None
    torch.testing.assert_close(image[0, 0, 0].item(), 10 / 255, atol=1e-6, rtol=0)


def test_grey_with_alpha_is_put_on_white(tmp_path):
    save(tmp_path / "a.png", (0, 102), mode="LA")
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
    save(tmp_path / name, color, mode=mode)
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


# --- large pictures


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
    save(tmp_path / "a.png", size=(100, 50))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(DCOError, match=r"a\.png is too large \(100 x 50 px; .*smaller"):
        load_folder(tmp_path)


def test_a_picture_of_12000_px_is_read_in_bounded_memory_without_a_warning(tmp_path, recwarn):
    Image.new("RGB", (12000, 8000), (200, 30, 60)).save(tmp_path / "a.png", compress_level=1)
    image, _, full_size = read_picture(tmp_path / "a.png")
    assert image.shape[0] * image.shape[1] <= folders.MAX_PIXELS and full_size == (12000, 8000)
    assert not recwarn.list
