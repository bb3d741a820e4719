import pytest
import torch

from dco_core.errors import DCOError
from dco_core.schedules import PREDICTIONS, Schedule

SCHEDULES = {
    "epsilon": Schedule.stable_diffusion("epsilon"),
    "v": Schedule.stable_diffusion("v"),
    "flow": Schedule.flow(shift=3.0),
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_prediction_denoises_to_x0(prediction):
    schedule = SCHEDULES[prediction]
    x0, noise = torch.randn(5, 4, 8, 8, dtype=torch.float64), torch.randn(5, 4, 8, 8, dtype=torch.float64)
    t = torch.tensor([0, 10, 500, 900, 999])
    x_t = schedule.noised(x0, noise, t)
    torch.testing.assert_close(
        schedule.denoised(x_t, schedule.target(x0, noise, t), t), x0, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_variance_preserving_schedules_keep_variance(prediction):
    schedule = SCHEDULES[prediction]
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(1000))


def test_stable_diffusion_ends_of_the_schedule():
    """Known values of SD: sqrt of the cumulative product is 0.99957 at t = 0 and 0.068 at t = 999."""
    alpha = Schedule.stable_diffusion().alpha
    assert alpha[0].item() == pytest.approx(0.99957, abs=1e-5)
    assert alpha[999].item() == pytest.approx(0.0683, abs=1e-4)


def test_flow_shift_moves_times_towards_noise():
    plain, shifted = Schedule.flow(), Schedule.flow(shift=3.0)
    assert plain.sigma[499].item() == pytest.approx(0.5)
    assert shifted.sigma[499].item() == pytest.approx(0.75)
    torch.testing.assert_close(shifted.alpha, 1 - shifted.sigma)


def test_epsilon_and_v_describe_the_same_noise():
    sigmas = torch.tensor([0.03, 1.0, 14.6])
    a, b = Schedule.from_sigmas("epsilon", sigmas), Schedule.from_sigmas("v", sigmas)
    x0, noise, t = torch.randn(3, 2), torch.randn(3, 2), torch.arange(3)
    torch.testing.assert_close(a.noised(x0, noise, t), b.noised(x0, noise, t))
    x_t = a.noised(x0, noise, t)
    torch.testing.assert_close(
        a.denoised(x_t, a.target(x0, noise, t), t),
        b.denoised(x_t, b.target(x0, noise, t), t),
        rtol=1e-3,
        atol=1e-4,
    )


def test_unknown_prediction_is_named():
    with pytest.raises(DCOError, match="'x0'"):
        Schedule.from_sigmas("x0", torch.ones(3))
