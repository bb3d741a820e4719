import math

import pytest
import torch

from dco_core.errors import DCOError
from dco_core.losses import (
    dco_loss,
    dco_margin,
    diffusion_loss,
    gate,
    mapo_loss,
    mapo_margin,
    mean_squared_error,
    weights_at,
)
from dco_core.schedules import Schedule

THETA = torch.tensor([0.101, 0.250, 0.0301], dtype=torch.float64)
PHI = torch.tensor([0.100, 0.251, 0.0300], dtype=torch.float64)


def by_hand(theta, phi, beta_T):
    return [math.log1p(math.exp(beta_T * (a - b))) for a, b in zip(theta.tolist(), phi.tolist(), strict=True)]


@pytest.mark.parametrize("beta_T", [1000.0, 30.0])
def test_per_sample_loss_is_the_mean_of_the_log_sigmoids(beta_T):
    expected = sum(by_hand(THETA, PHI, beta_T)) / 3
    assert dco_loss(THETA, PHI, beta_T).item() == pytest.approx(expected, rel=1e-12)


def test_batch_mean_loss_is_the_log_sigmoid_of_the_mean_margin():
    expected = math.log1p(math.exp(1000 * (THETA - PHI).mean().item()))
    assert dco_loss(THETA, PHI, reduction="batch-mean").item() == pytest.approx(expected, rel=1e-12)


def test_reductions_agree_for_one_sample_and_differ_for_more():
    one = (THETA[:1], PHI[:1])
    assert dco_loss(*one).item() == dco_loss(*one, reduction="batch-mean").item()
    assert dco_loss(THETA, PHI).item() != pytest.approx(dco_loss(THETA, PHI, reduction="batch-mean").item())


def test_gradient_is_the_gated_gradient_of_the_diffusion_loss():
    theta = THETA.clone().requires_grad_()
    dco_loss(theta, PHI, 1000.0).backward()
    expected = 1000.0 * gate(dco_margin(THETA, PHI, 1000.0)) / 3  # Eq. (12)
    torch.testing.assert_close(theta.grad, expected)


def test_phi_gets_no_gradient():
    phi = PHI.clone().requires_grad_()
    dco_loss(THETA.clone().requires_grad_(), phi).backward()
    assert phi.grad is None


def test_weight_multiplies_inside_the_sigmoid():
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    expected = sum(by_hand(THETA * weight, PHI * weight, 1000.0)) / 3
    assert dco_loss(THETA, PHI, weight=weight).item() == pytest.approx(expected, rel=1e-10)


def test_large_margins_do_not_overflow():
    assert dco_loss(torch.tensor([10.0]), torch.tensor([0.0])).item() == pytest.approx(10000.0)
    assert dco_loss(torch.tensor([0.0]), torch.tensor([10.0])).item() == 0.0


def test_diffusion_loss_is_the_plain_mean():
    prediction, target = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    expected = torch.nn.functional.mse_loss(prediction, target)
    torch.testing.assert_close(diffusion_loss(mean_squared_error(prediction, target)), expected)


def test_errors_name_the_value():
    with pytest.raises(DCOError, match="'sum'"):
        dco_loss(THETA, PHI, reduction="sum")
    with pytest.raises(DCOError, match=r"\(3,\).*\(2,\)"):
        dco_loss(THETA, PHI[:2])


def test_a_mask_is_a_weighted_mean_that_does_not_depend_on_its_size():
    g = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 3, 4, 4, generator=g), torch.randn(2, 3, 4, 4, generator=g)
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, :, :2], mask[1] = 1.0, 0.5
    found = mean_squared_error(prediction, target, mask)
    assert found[0] == pytest.approx(((prediction - target)[0, :, :2] ** 2).mean().item(), rel=1e-6)
    torch.testing.assert_close(found[1], mean_squared_error(prediction, target)[1])


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_min_snr_is_the_same_weight_on_x0_for_every_prediction(prediction):
    """w(t) |native error|^2 = min(SNR, 5) |x0 error|^2, with the x0 that the prediction implies."""
    schedule = Schedule.flow() if prediction == "flow" else Schedule.stable_diffusion(prediction)
    g = torch.Generator().manual_seed(1)
    x0, noise, wrong = (torch.randn(6, 1, 2, 2, generator=g).double() for _ in range(3))
    t = torch.tensor([5, 100, 300, 500, 800, 998])
    x_t, target = schedule.noised(x0, noise, t), schedule.target(x0, noise, t)
    x0_error = (schedule.denoised(x_t, target + wrong, t) - x0).square().flatten(1).mean(1)
    snr = (schedule.alpha[t].double() / schedule.sigma[t].double()) ** 2
    expected = snr.clamp(max=5.0) * x0_error
    found = weights_at(schedule, t, "min-snr") * wrong.square().flatten(1).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert torch.equal(weights_at(schedule, t), torch.ones(6))


def test_mapo_prefers_the_chosen_image_and_stays_finite_at_zero_error():
    good, bad = torch.tensor([0.1]), torch.tensor([0.3])
    assert mapo_margin(good, bad) > 0 > mapo_margin(bad, good)
    assert mapo_loss(good, bad) < mapo_loss(good, good)
    zero = torch.zeros(1, requires_grad=True)
    loss = mapo_loss(zero, bad)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(zero.grad).all()


@pytest.mark.parametrize("frames", [(), (3,)])
def test_a_mask_weights_its_own_sample_alone(frames):
    """With as many samples as channels, or as frames, a mask without its dimensions would broadcast over others."""
    squared = torch.rand(3, 3, *frames, 4, 5)
    masks = torch.rand(3, 4, 5)
    mask = masks.reshape(3, 1, *[1 for _ in frames], 4, 5)
    expected = [
        float((s * m).sum() / (m.expand_as(s)).sum())
        for s, m in zip(squared.double(), masks.double(), strict=True)
    ]
    error = mean_squared_error(squared.sqrt(), torch.zeros_like(squared), mask)
    assert error.tolist() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(DCOError, match="as many dimensions"):
        mean_squared_error(squared.sqrt(), torch.zeros_like(squared), masks)


def test_a_mask_of_a_picture_is_refused_for_latents_with_frames():
    with pytest.raises(DCOError, match="as many dimensions"):
        mean_squared_error(torch.rand(2, 3, 2, 4, 4), torch.rand(2, 3, 2, 4, 4), torch.ones(2, 1, 4, 4))
