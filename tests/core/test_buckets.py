"""Buckets: the size for a picture, and the picture at that size."""

from __future__ import annotations

import math
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dco_core.data.buckets import MIN_SIDE, bucket_size, bucket_step, fit
from dco_core.errors import DCOError


def _noise(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(height, width, channels, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("resolution", "step"),
    [(2048, 64), (512, 64), (511, 56), (256, 32), (128, 16), (100, 8), (64, 8), (16, 8)],
)
def test_the_step_is_64_from_512_up_and_about_an_eighth_below(resolution, step):
    assert bucket_step(resolution) == step


@pytest.mark.parametrize(
    ("resolution", "edge"), [(1024, 1024), (512, 512), (64, 64), (1000, 960), (100, 96), (8, 8)]
)
def test_a_square_picture_gets_the_largest_square_of_whole_steps(resolution, edge):
    assert bucket_size(777, 777, resolution) == (edge, edge)


@pytest.mark.parametrize(
    ("picture", "bucket"),
    [
        ((3000, 2000), (1216, 832)),
        ((2000, 3000), (832, 1216)),
        ((1920, 1080), (1344, 768)),
        ((4000, 3000), (1152, 896)),
        ((400, 100), (2048, 512)),
        ((4000, 100), (2048, 512)),
        ((100, 4000), (512, 2048)),
        ((2000, 1000), (1408, 704)),
    ],
)
def test_buckets_are_those_of_sdxl(picture, bucket):
    assert bucket_size(*picture, 1024) == bucket


def test_the_largest_ratio_bounds_the_bucket_itself():
    assert bucket_size(3000, 100, 1024) == (2048, 512)
    # 1984 x 448 would be nearer to 30 at 960, but is beyond 4
    # 2048 x 448 would be nearer at 960, but is beyond 4
    assert bucket_size(3000, 100, 960) == (1792, 512)


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    resolution=st.integers(8, 127) | st.integers(500, 800),
)
def test_no_size_within_the_rules_is_nearer_than_the_bucket(width, height, resolution):
    step, max_ratio = bucket_step(resolution), 4.0
    w, h = bucket_size(width, height, resolution)

    assert w % step == h % step == 0
    assert step * step <= w * h <= resolution**2
    assert bucket_size(height, width, resolution) == (h, w)
    wanted = max(-math.log(max_ratio), min(math.log(max_ratio), math.log(width / height)))
    distance = abs(math.log(w / h) - wanted)
    area = resolution**2 // step**2
    for columns in range(1, area + 1):
        for rows in range(1, area // columns + 1):  # all sizes but those that could grow on either edge
            long, short = max(columns, rows), min(columns, rows)
            both_grow = (long + 1) * short <= area and long * (short + 1) <= area
            square = columns == rows == math.isqrt(area)
            if long > max_ratio * short or (both_grow and not square):
                continue
            other = abs(math.log(columns / rows) - wanted)
            assert other > distance - 1e-9
            if other < distance + 1e-9:
                assert columns * rows * step * step <= w * h


def test_large_resolutions_look_at_few_shapes():
    tracemalloc.start()
    try:
        assert bucket_size(3000, 1999, 4096) == (4992, 3328)
        bucket_size(3000, 1999, 16384)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


@settings(max_examples=100, deadline=None)
@given(width=st.integers(100, 5000), height=st.integers(100, 5000))
def test_at_1024_the_ratio_is_within_eight_percent(width, height):
    w, h = bucket_size(width, height, 1024)
    wanted = max(0.25, min(4.0, width / height))
    assert abs(math.log(w / h / wanted)) < 0.08


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, 10, 512), "0 x 10"),
        ((10, -1, 512), "10 x -1"),
        ((10, 10, 4), "resolution 4"),
    ],
)
def test_sizes_that_make_no_bucket_are_refused_by_value(arguments, text):
    with pytest.raises(DCOError, match=text):
        bucket_size(*arguments)


def test_a_picture_of_the_right_size_comes_back_bit_for_bit():
    image, mask = _noise(64, 96), _noise(64, 96, 1)[..., 0]
    image[0, 0, 0] = 1.25  # brighter than white, which only resampling would cut
    bucketed = fit(image, (96, 64), mask)
    assert torch.equal(bucketed.image, image)
    assert bucketed.mask is not None and torch.equal(bucketed.mask, mask)
    assert (bucketed.original_size, bucketed.crop, bucketed.target_size) == ((64, 96), (0, 0), (64, 96))


def test_a_picture_that_only_needs_cropping_is_not_resampled():
    image = _noise(64, 101)
    bucketed = fit(image, (64, 64))
    assert torch.equal(bucketed.image, image[:, 18:82])
    assert bucketed.crop == (0, 18)


@pytest.mark.parametrize(
    ("height", "width", "size", "crop"),
    [
        (200, 400, (64, 64), (0, 32)),
        (400, 200, (64, 64), (32, 0)),
        (30, 40, (128, 64), (16, 0)),
        (1333, 1000, (768, 1024), (0, 0)),
        (999, 1501, (1152, 768), (0, 1)),
    ],
)
def test_the_picture_covers_the_size_and_only_one_direction_is_cut(height, width, size, crop):
    bucketed = fit(_noise(height, width), size)
    assert bucketed.target_size == (size[1], size[0])
    assert bucketed.image.shape == (size[1], size[0], 3)
    assert bucketed.crop == crop
    assert bucketed.original_size == (height, width)


def test_the_centre_stays_where_it_is():
    image = torch.zeros(100, 300, 3)
    image[40:60, 140:160] = 1
    bucketed = fit(image, (64, 64))
    rows, columns = torch.nonzero(bucketed.image[..., 0] > 0.5, as_tuple=True)
    assert abs(float(rows.float().mean()) - 31.5) < 0.6
    assert abs(float(columns.float().mean()) - 31.5) < 0.6


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = torch.zeros(96, 96, 3)
    stripes[:, ::2] = 1
    assert fit(stripes, (32, 32)).image[4:-4, 4:-4].sub(0.5).abs().max() < 0.1


def test_resized_pixels_stay_between_0_and_1():
    checks = torch.ones(64, 64, 3) * 1.001
    checks[::2] = -0.001
    for size in ((160, 160), (48, 48)):
        image = fit(checks, size).image
        assert image.min() >= 0 and image.max() <= 1


def test_grey_becomes_three_equal_channels():
    image = _noise(32, 32, 1)
    bucketed = fit(image, (32, 32))
    assert torch.equal(bucketed.image, image.repeat(1, 1, 3))


def test_a_transparent_picture_is_put_on_white_and_makes_no_mask():
    image = torch.zeros(32, 32, 4)
    image[:, 16:, 3] = 1
    image[0, 0, 3] = 0.25
    bucketed = fit(image, (32, 32))
    assert bucketed.mask is None
    assert (bucketed.image[:, 16:] == 0).all()
    assert (bucketed.image[1:, :16] == 1).all()
    assert (bucketed.image[0, 0] == 0.75).all()


def test_the_mask_follows_the_picture_through_resize_and_crop():
    mask = torch.zeros(100, 300)
    mask[20:70, 120:200] = 1
    bucketed = fit(mask[..., None], (64, 64), mask)
    assert bucketed.mask is not None and bucketed.mask.shape == (64, 64)
    torch.testing.assert_close(bucketed.mask, bucketed.image[..., 0])


def test_a_mask_of_another_resolution_is_stretched_over_the_whole_picture():
    mask = torch.zeros(10, 10)
    mask[:, 5:] = 1
    bucketed = fit(_noise(200, 400), (64, 64), mask)
    assert bucketed.mask is not None and bucketed.mask.shape == (64, 64)
    assert bucketed.mask[:, :24].max() < 0.01 and bucketed.mask[:, 40:].min() > 0.99
    assert bucketed.mask.min() >= 0 and bucketed.mask.max() <= 1

    # in two steps, so that it has the same softness as a mask drawn at the picture's own size
    drawn = torch.nn.functional.interpolate(mask[None, None], (200, 400), mode="bilinear", antialias=True)[
        0, 0
    ]
    same = fit(_noise(200, 400), (64, 64), drawn).mask
    torch.testing.assert_close(bucketed.mask, same, atol=1e-5, rtol=0)


def test_a_mask_is_cut_to_0_and_1_even_where_nothing_is_resized():
    mask = torch.full((32, 32), 2.0)
    mask[0] = -1
    bucketed = fit(_noise(32, 32), (32, 32), mask).mask
    assert bucketed is not None and (bucketed[0] == 0).all() and (bucketed[1:] == 1).all()


def test_a_yes_or_no_mask_is_taken():
    bucketed = fit(_noise(32, 32), (32, 32), torch.ones(32, 32, dtype=torch.bool))
    assert bucketed.mask is not None and bucketed.mask.dtype == torch.float32 and bucketed.mask.min() == 1


def test_a_picture_below_the_smallest_edge_is_refused_with_its_size():
    fit(_noise(MIN_SIDE, 40), (16, 16))
    with pytest.raises(DCOError, match=r"40 x 15 px.*16 px"):
        fit(_noise(MIN_SIDE - 1, 40), (16, 16))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_in_picture_and_mask(value):
    bad = _noise(32, 32)
    bad[3, 4, 1] = value
    with pytest.raises(DCOError, match="A picture of 32 x 32 px has NaN"):
        fit(bad, (32, 32))
    with pytest.raises(DCOError, match="A mask of 32 x 32 px has NaN"):
        fit(_noise(32, 32), (32, 32), bad[..., 1])


@pytest.mark.parametrize("shape", [(32, 32, 2), (32, 32, 5), (32, 32), (1, 32, 32, 3), (3, 32, 32)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(DCOError, match="1, 3 or 4 channels"):
        fit(torch.rand(shape), (32, 32))


@pytest.mark.parametrize("shape", [(1, 32, 32), (32,), (0, 32)])
def test_masks_of_other_shapes_are_refused(shape):
    with pytest.raises(DCOError, match="one mask per picture"):
        fit(_noise(32, 32), (32, 32), torch.rand(shape))


def test_integer_pixels_and_sizes_of_zero_are_refused():
    with pytest.raises(DCOError, match="uint8"):
        fit(torch.zeros(32, 32, 3, dtype=torch.uint8), (32, 32))
    with pytest.raises(DCOError, match="0 x 32"):
        fit(_noise(32, 32), (0, 32))
