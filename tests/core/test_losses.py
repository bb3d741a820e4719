import math

import pytest
import torch

from dco_core.errors import DCOError
from dco_core.losses import dco_loss, dco_margin, diffusion_loss, gate, mean_squared_error

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
