"""How much a LoRA changes pictures of other things."""

import pytest
import torch

from dco_core.errors import DCOError
from dco_core.metrics import collateral_rmse


def test_collateral_damage_is_the_rmse_of_each_picture():
    pictures = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(4))
    moved = pictures.clone()
    moved[1] += 0.1
    moved[2, :16] -= 0.2  # half of the picture
    expected = torch.tensor([0.0, 0.1, 0.2 / 2**0.5])
    torch.testing.assert_close(collateral_rmse(moved, pictures), expected, atol=1e-6, rtol=1e-5)
    for base in (pictures[:2], pictures.movedim(-1, 1)):
        with pytest.raises(DCOError, match="cannot be compared"):
            collateral_rmse(pictures, base)
    with pytest.raises(DCOError, match="give as many"):
        collateral_rmse(pictures[:0], pictures[:0])
