"""Folders and files that are no pictures to train on are refused by name."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from dco_core.data import folders
from dco_core.data.folders import (
    MAX_PICTURES,
    load_folder,
    read_picture,
)
from dco_core.errors import DCOError
from tests.picture_files import save


@pytest.mark.parametrize("folder", ["", "gone"])
def test_a_missing_folder_is_refused(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png")
    with pytest.raises(DCOError, match=f"no folder '{folder}'"):
        load_folder(folder)


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    path = save(tmp_path / "a.png")
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
    save(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    with pytest.raises(DCOError, match=r"b\.png is an empty file: remove it or save it again"):
        load_folder(tmp_path)


@pytest.mark.parametrize("name", ["b.png", "b.jpg", "b.webp", "b.bmp"])
@pytest.mark.parametrize("keep", [0.5, 0.1])
def test_a_truncated_file_is_refused_by_name(tmp_path, name, keep):
    save(tmp_path / "a.png")
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
    save(tmp_path / "a.png", size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DCOError, match=r"a\.png is too large .*10000 pixels.*smaller"):
        load_folder(tmp_path)


def test_a_picture_that_is_gone_is_refused_by_name(tmp_path):
    with pytest.raises(DCOError, match=r"gone\.png"):
        read_picture(tmp_path / "gone.png")


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_dangling_link_is_not_passed_over(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DCOError, match=r"b\.png"):
        load_folder(tmp_path)
