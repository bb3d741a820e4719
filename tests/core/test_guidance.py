import pytest
import torch

from dco_core.errors import DCOError
from dco_core.guidance import regional_guidance, reward_guidance
from dco_core.schedules import Schedule

THETA, PHI, NULL = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("w_rg", [0.0, 0.5, 2.0, 3.0, 7.5])
@pytest.mark.parametrize("w_text", [1.0, 2.0, 7.5])
def test_matches_the_formula_of_the_paper(w_rg, w_text):
    expected = w_rg * (THETA - PHI) + w_text * (PHI - NULL) + NULL
    torch.testing.assert_close(reward_guidance(THETA, PHI, NULL, w_rg, w_text), expected)


def test_unit_weights_are_the_lora_model_alone():
    assert torch.equal(reward_guidance(THETA, None, None, 1.0, 1.0), THETA)


def test_w_rg_zero_never_looks_at_the_lora():
    broken = torch.full_like(PHI, torch.nan)
    result = reward_guidance(broken, PHI, NULL, 0.0, 7.5)
    torch.testing.assert_close(result, NULL + 7.5 * (PHI - NULL))


def test_equal_weights_never_look_at_the_base_conditional():
    broken = torch.full_like(PHI, torch.inf)
    torch.testing.assert_close(reward_guidance(THETA, broken, NULL, 7.5, 7.5), NULL + 7.5 * (THETA - NULL))


def test_the_same_image_in_every_prediction_space():
    """Coefficients sum to 1, so guiding in the network's space or on denoised images is the same."""
    schedule = Schedule.stable_diffusion("v")
    x_t, t = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([100, 700])
    inside = schedule.denoised(x_t, reward_guidance(THETA, PHI, NULL, 3.0, 7.5), t)
    outside = reward_guidance(*(schedule.denoised(x_t, p, t) for p in (THETA, PHI, NULL)), 3.0, 7.5)
    torch.testing.assert_close(inside, outside)


def test_a_missing_prediction_that_counts_is_named():
    with pytest.raises(DCOError, match="theta_cond"):
        reward_guidance(None, PHI, NULL, 3.0, 7.5)


MASK = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(2, 4, 8, 8, dtype=torch.float64)


def test_regions_match_their_formula():
    expected = PHI + 0.4 * MASK * (THETA - PHI) + 1.7 * (OTHER - PHI)
    torch.testing.assert_close(regional_guidance([THETA, OTHER], PHI, [MASK, None], [0.4, 1.7]), expected)
    torch.testing.assert_close(regional_guidance([OTHER, THETA], PHI, [None, MASK], [1.7, 0.4]), expected)


@pytest.mark.parametrize("ratio", [0.1, 0.4, 1 / 3, 0.7, 1.0, 1.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_regions_are_exact_where_masks_are_one_or_zero(ratio, dtype):
    """One mask is 1 on the left, the other on the right, and none of them in the middle."""
    one, two = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 1, 8)
    one[..., :3], two[..., 5:] = 1, 1
    theta, other, phi = THETA.to(dtype), OTHER.to(dtype), PHI.to(dtype)
    result = regional_guidance([theta, other], phi, [one, two], [ratio, ratio])
    assert torch.equal(result[..., :3], reward_guidance(theta, phi, None, ratio, 1.0)[..., :3])
    assert torch.equal(result[..., 3:5], phi[..., 3:5])
    assert torch.equal(result[..., 5:], reward_guidance(other, phi, None, ratio, 1.0)[..., 5:])


def test_one_region_everywhere_is_reward_guidance():
    assert torch.equal(
        regional_guidance([THETA], PHI, [None], [0.4]), reward_guidance(THETA, PHI, None, 0.4, 1.0)
    )
