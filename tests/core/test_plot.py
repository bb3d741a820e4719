import numpy as np
import pytest

from dco_core.drawing.training_plot import loss_plot, smoothed
from dco_core.training.trainer import StepReport


def report(step, value):
    return StepReport(step, 100, value, -value, 0.5, 1e-4, 1.0, 0.1, 0.1)


def test_smoothing_is_a_trailing_mean():
    assert smoothed([1.0, 2.0, 3.0, 4.0], 2) == pytest.approx([1.0, 1.5, 2.5, 3.5])


@pytest.mark.parametrize("steps", [1, 2, 300])
def test_the_plot_shows_its_curves_for_any_length(steps):
    picture = loss_plot([report(i + 1, float(np.sin(i / 20))) for i in range(steps)])
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    blue = (picture[..., 2] > 150) & (picture[..., 0] < 60)
    assert blue.sum() > (0 if steps == 1 else 300)


def test_a_constant_curve_does_not_divide_by_zero():
    assert loss_plot([report(i + 1, 0.0) for i in range(10)]).size
