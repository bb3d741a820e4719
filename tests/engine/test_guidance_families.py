"""Reward guidance on every family of the host, a LoRA on all of its layers, against two separately patched models."""

import pytest
from guiding import Case
from small_models import FAMILIES, text


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_matches_two_models(family):
    Case(family, batch=2).check()


@pytest.mark.parametrize("family", ["sdxl", "flux", "qwen-image", "wan"])
def test_a_prompt_of_its_own_for_theta(family):
    Case(family).check(personalized=text(family, 9, 8))
