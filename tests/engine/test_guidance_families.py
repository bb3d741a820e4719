"""Reward guidance on every family of the host, a LoRA on all of its layers, against two separately patched models."""

import pytest
from small_models import FAMILIES, latent, lora_for, small_model, text
from two_models import cfg, difference, formula, merged, oracle, sample

from benchmarks import host


def guided(model, lora, w_rg, personalized=None, **options):
    inputs = host.pack("nodes.guidance_inputs")
    return inputs.patched(model, [(lora, 1.0)], "reward", w_rg, personalized, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_matches_two_models(family):
    model = small_model(family)
    lora = lora_for(model)
    positive, negative = text(family, 7, 1), text(family, 5, 2)
    start = latent(family, batch=2)
    ours = sample(cfg(guided(model, lora, 2.0), positive, negative, 4.0), start)
    theta = merged(small_model(family), lora)
    expected = sample(oracle(model, theta, positive, negative, formula(2.0, 4.0)), start)
    plain = sample(cfg(model, positive, negative, 4.0), start)
    assert difference(expected, plain) > 1e-3
    assert difference(ours, expected) < 1e-5
