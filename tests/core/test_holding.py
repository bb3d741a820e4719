"""What theta is held to beside the objective: outside of masks, and on preservation prompts."""

import dataclasses
import itertools

import pytest
import torch

from dco_core.captions.preservation import PROMPTS, preservation_lines, preservation_prompts
from dco_core.errors import DCOError
from dco_core.losses import mean_squared_error, outside_drift
from dco_core.training.config import TrainingConfig
from dco_core.training.draws import random_draws
from dco_core.training.trainer import Training
from tests.small_network import small_examples
from tests.small_runs import STEPS, Run, assert_same, held_examples

HELD = {
    "held": True,
    "mask_prior": 3.0,
    "preservation_prompts": "one; two; three",
    "preservation_weight": 5.0,
}


# --- the terms


def test_the_drift_outside_is_the_mean_of_what_the_mask_leaves():
    g = torch.Generator().manual_seed(0)
    theta, phi = torch.randn(3, 4, 2, 5, generator=g), torch.randn(3, 4, 2, 5, generator=g)
    mask = torch.rand(3, 1, 2, 5, generator=g)
    mask[1] = 1  # nothing outside
    mask[2] = 0  # everything
    found = outside_drift(theta, phi, mask)
    by_hand = sum(
        float((theta[0, c, y, x] - phi[0, c, y, x]) ** 2 * (1 - mask[0, 0, y, x]))
        for c, y, x in itertools.product(range(4), range(2), range(5))
    ) / (4 * float((1 - mask[0]).sum()))
    assert found[0].item() == pytest.approx(by_hand, rel=1e-5)
    assert found[1] == 0
    torch.testing.assert_close(found[2], mean_squared_error(theta, phi)[2])


def test_phi_gets_no_gradient_and_theta_none_inside():
    theta, phi = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, ..., :2] = 1
    mask[1] = 1  # nothing outside
    (1e6 * outside_drift(theta, phi, mask)).sum().backward()
    assert phi.grad is None
    assert not theta.grad[0, ..., :2].any() and theta.grad[0, ..., 2:].all() and not theta.grad[1].any()


# --- the run


@pytest.mark.parametrize("objective", ["dco", "dreambooth"])
@pytest.mark.parametrize("option", ["mask_prior", "preservation_prompts"])
def test_an_option_that_is_off_changes_nothing_to_the_bit(objective, option):
    """Masks and prompts are there; what trains is as if they were not, and the run keeps its name."""
    with_them = Run(held=True, objective=objective)
    without = Run(held=True, objective=objective)
    without.training.examples = [dataclasses.replace(e, preserved=()) for e in without.training.examples]
    assert_same(with_them.run(), without.run())
    assert option not in TrainingConfig().as_dict()
    on = Run(**(HELD | {"objective": objective}))
    with pytest.raises(AssertionError):
        assert_same(on.run(), with_them)


@pytest.mark.parametrize("window", [2, 5, 16])
@pytest.mark.parametrize("objective", ["dco", "dreambooth"])
def test_looking_ahead_changes_nothing_but_the_number_of_calls(window, objective):
    options = HELD | {"objective": objective, "batch_size": 2, "preservation_share": 0.6}
    naive, ahead = Run(look_ahead=1, **options), Run(look_ahead=window, **options)
    calls = []
    predict = ahead.denoiser.predict
    ahead.denoiser.predict = lambda *args, adapter: calls.append(adapter) or predict(*args, adapter=adapter)
    naive.run()
    ahead.run()
    assert calls.count(False) <= 2 * -(-STEPS // window)  # captions and preservation prompts
    assert STEPS < calls.count(True) < 2 * STEPS  # preservation in some of the steps
    for a, b in zip(naive.training.history, ahead.training.history, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-4, abs=1e-5)
    for (name, a), b in zip(naive.made()[0].items(), ahead.made()[0].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def test_predictions_are_not_taken_from_a_cache_of_errors(tmp_path):
    """Errors on disk are numbers; what theta is held to are predictions, had anew in every run."""
    free = {"held": True, "look_ahead": 3}
    Run(cache=tmp_path, **free).run()
    again = Run(cache=tmp_path, **free)
    assert any("are there from an earlier run" in note for note in again.training.notes)
    held = Run(cache=tmp_path, look_ahead=3, **HELD)
    assert any("mask_prior and preservation compare its predictions" in note for note in held.training.notes)
    assert_same(held.run(), Run(look_ahead=3, **HELD).run())


def drifts(run):
    """(outside of the masks, inside, on the preservation prompts): mean |theta - phi|^2 of the trained network."""
    g, found = torch.Generator().manual_seed(8), []
    with torch.no_grad():
        for e in held_examples():
            x, t = torch.randn(16, 6, 2, 2, generator=g), torch.arange(16) * 60
            both = [run.denoiser.predict(x, t, [e.conditioning] * 16, adapter=on) for on in (True, False)]
            inside = torch.ones(2, 2) if e.mask is None else e.mask
            weights = inside.expand(16, 1, 2, 2)
            outside = outside_drift(*both, weights).mean() if e.mask is not None else torch.tensor(0.0)
            on_prompts = [
                [run.denoiser.predict(x, t, [c] * 16, adapter=on) for on in (True, False)]
                for c in e.preserved
            ]
            found.append(
                [outside, mean_squared_error(*both, weights).mean(),
                 torch.stack([mean_squared_error(*pair).mean() for pair in on_prompts]).mean()]
            )  # fmt: skip
    return torch.tensor(found).mean(0).tolist()


@pytest.mark.parametrize("objective", ["dco", "dreambooth"])
def test_each_option_holds_what_it_is_for(objective):
    options = {"held": True, "objective": objective, "steps": 150, "batch_size": 3, "beta": 0.05}
    free = drifts(Run(**options).run())
    masked = drifts(Run(mask_prior=300.0, **options).run())
    preserved = drifts(
        Run(preservation_prompts="one; two; three", preservation_weight=300.0, **options).run()
    )
    assert masked[0] < 0.5 * free[0]
    assert masked[0] / masked[1] < 0.6 * free[0] / free[1]  # and not because nothing is learned
    assert preserved[2] < 0.5 * free[2]


# --- draws


def preserved_of(config, n_batches=200, start=0):
    stream = random_draws(held_examples(), 1000, config, start)
    return [[d.preserved for d in batch] for batch in itertools.islice(stream, n_batches)]


def test_draws_of_prompts_are_a_function_of_seed_and_number_and_of_nothing_else():
    config = TrainingConfig(preservation_prompts="a; b; c", preservation_share=0.3, batch_size=2, seed=5)
    found = preserved_of(config)
    assert preserved_of(config, 150, start=50) == found[50:]
    assert preserved_of(dataclasses.replace(config, seed=6)) != found
    on = [batch for batch in found if batch[0] >= 0]
    assert 40 < len(on) < 80  # three in ten, of whole batches
    assert all((a >= 0) == (b >= 0) for a, b in found)
    assert {p for batch in on for p in batch} == {0, 1, 2}
    plain = dataclasses.replace(config, preservation_prompts="")
    for a, b in zip(
        random_draws(held_examples(), 1000, config), random_draws(held_examples(), 1000, plain), strict=False
    ):
        for one, other in zip(a, b, strict=True):
            assert torch.equal(one.noise, other.noise) and (one.t, one.image) == (other.t, other.image)
        if a[0].image and b[0].t % 7 == 0:
            break


# --- prompts


def test_the_entries_of_preservation_prompts():
    text = " blank ;a red car\n\n class; bundled ;a red car"
    assert preservation_lines(text) == ["blank", "a red car", "class", "bundled"]
    assert preservation_prompts(text, "a photo of a dog")[:3] == ["", "a red car", "a photo of a dog"]
    assert preservation_prompts(text, "a photo of a dog")[3:] == [
        p for p in PROMPTS if p != "a photo of a dog"
    ]
    assert preservation_prompts("") == preservation_lines("  \n") == []
    assert len(set(PROMPTS)) == len(PROMPTS) == 40


# --- bad input


@pytest.mark.parametrize(
    "change, words",
    [
        ({"mask_prior": -1.0}, "mask_prior is -1: it cannot be negative"),
        ({"preservation_prompts": " ; ;"}, 'preservation_prompts "; ;" has no prompt: write blank'),
        ({"preservation_share": 0.0}, "preservation_share is 0: it must be above 0 and at most 1"),
        ({"preservation_share": 1.5}, "preservation_share is 1.5"),
        ({"preservation_share": float("nan")}, "preservation_share is nan"),
        ({"preservation_prompts": "a cat", "preservation_weight": 0.0}, "preservation_weight is 0, so that"),
    ],
)
def test_values_that_cannot_be_are_refused(change, words):
    with pytest.raises(DCOError, match=words):
        TrainingConfig(**change).check()


def test_a_mask_prior_without_anything_outside_of_a_mask_is_refused():
    whole = [dataclasses.replace(e, mask=torch.ones(2, 2)) for e in small_examples()]
    for examples in (small_examples(), whole):
        with pytest.raises(
            DCOError, match="mask_prior is 2, but no picture has anything outside of a mask: give masks"
        ):
            Training(Run().denoiser, examples, TrainingConfig(mask_prior=2.0))


def test_preservation_without_its_prompts_or_a_lora_is_refused():
    config = TrainingConfig(preservation_prompts="a cat")
    with pytest.raises(DCOError, match="Image 1: preservation needs its prompts"):
        Training(Run().denoiser, small_examples(), config)
    run = Run(tokens=True, held=True)
    run.denoiser.trainable = dict
    with pytest.raises(
        DCOError, match="preservation_prompts hold a LoRA to the base model, and only learned tokens"
    ):
        Training(run.denoiser, run.examples, config, run.tokens)
