"""The sampler with a conditioning for each sample; what it computes is tested in test_preview.py."""

import pytest
import torch

from dco_core.errors import DCOError
from dco_core.network.lora_layers import AdapterConfig
from dco_core.sampling import sample
from dco_core.toy_world.model import ToyDenoiser, encode, load_text_encoder
from tests.core.test_preview import SCALES, moved, noise, small, texts
from tests.toy_sampler import toy_sample

SCALE = {"w_rg": 3.0, "w_text": 7.5, "steps": 4}


@pytest.mark.parametrize("w_rg, w_text", SCALES)
def test_samples_with_texts_of_their_own_are_those_sampled_alone(w_rg, w_text):
    denoiser, (one, two, empty, other) = small(), texts(4)
    scales = {"w_rg": w_rg, "w_text": w_text, "steps": 4}
    start = noise(3)
    together = sample(denoiser, [one, two, one], [two, one, other], [empty, other, empty], start, **scales)
    for i, (own, base, nothing) in enumerate(((one, two, empty), (two, one, other), (one, other, empty))):
        alone = sample(denoiser, [own], [base], [nothing], start[i : i + 1], **scales)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_phi_reads_what_theta_reads_where_it_has_nothing_of_its_own():
    denoiser, (own, base, empty) = small(), texts()
    assert torch.equal(
        sample(denoiser, [own, base], None, [empty] * 2, noise(), **SCALE),
        sample(denoiser, [own, base], [own, base], [empty] * 2, noise(), **SCALE),
    )


def test_a_conditioning_that_is_a_list_itself_is_one_samples():
    """As the host's are: [[tensor, options]]."""
    denoiser, (own, base, empty) = small(), texts()
    expected = sample(denoiser, [own] * 3, [base] * 3, [empty] * 3, noise(3), **SCALE)
    predict = denoiser.predict
    denoiser.predict = lambda x, t, rows, *, adapter: predict(x, t, [row[0][0] for row in rows], adapter=adapter)
    as_list = ([[[one, {}]]] * 3 for one in (own, base, empty))
    assert torch.equal(sample(denoiser, *as_list, noise(3), **SCALE), expected)


def test_a_function_of_several_samples_is_called_once():
    denoiser, (own, base, empty) = small(), texts()
    called = []

    def tokens():
        called.append(1)
        return own

    made = sample(denoiser, [tokens, base, tokens], None, [empty] * 3, noise(3), **(SCALE | {"w_rg": 7.5}))
    assert called == [1]
    assert torch.equal(made, sample(denoiser, [own, base, own], None, [empty] * 3, noise(3), **(SCALE | {"w_rg": 7.5})))


@pytest.mark.parametrize("w_rg, w_text, steps", [(0.0, 2.0, 20), (2.0, 2.0, 8), (1.4, 2.0, 10), (1.0, 1.0, 4)])
def test_a_batch_of_toy_world_prompts_is_what_its_own_sampler_draws(w_rg, w_text, steps):
    denoiser = moved(ToyDenoiser(AdapterConfig(rank=2)))
    for p in denoiser.trainable().values():
        p.data *= 0.3
    *prompts, empty = encode(load_text_encoder(), ["a photo of a <dog> on grass", "a red toy in snow", "x", ""])
    start = noise(3, (3, 32, 32))
    made = sample(denoiser, prompts, None, [empty] * 3, start, w_rg=w_rg, w_text=w_text, steps=steps)
    expected = toy_sample(denoiser.network, torch.stack(prompts), empty[None], start, w_rg, w_text, steps=steps)
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "own, message",
    [
        (lambda one: [one], "2 samples have 1 conditionings"),
        (lambda one: [one] * 3, "2 samples have 3 conditionings"),
        (lambda one: [], "2 samples have 0 conditionings"),
        (lambda one: [one, None], "1 of 2 samples have no conditioning"),
        (lambda one: [None, None], "theta_cond"),
    ],
)
def test_conditionings_that_do_not_fit_are_told(own, message):
    denoiser, (one, base, empty) = small(), texts()
    with pytest.raises(DCOError, match=message):
        sample(denoiser, own(one), [base] * 2, [empty] * 2, noise(), **SCALE)
