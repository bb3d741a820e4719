"""The automatic beta."""

import pytest
import torch

from dco_core.errors import DCOError
from dco_core.network.lora_layers import AdapterConfig
from dco_core.toy_world import model as toy
from dco_core.toy_world.renderer import render
from dco_core.toy_world.world import subject_references
from dco_core.training.calibration import beta_T_for, with_beta
from dco_core.training.config import TrainingConfig
from dco_core.training.draws import random_draws
from dco_core.training.examples import Example
from dco_core.training.objectives import batch_errors
from dco_core.training.trainer import train

SHORT = 40  # steps of a run; up to 80 the calibration tries the 8 that it takes at least


@pytest.fixture(scope="module")
def examples():
    scenes, captions = subject_references()
    texts = toy.encode(toy.load_text_encoder(), captions)
    return [Example(image, text) for image, text in zip(render(scenes), texts, strict=True)]


def test_beta_is_where_the_mean_gate_has_the_wanted_height():
    difference = -torch.rand(100, generator=torch.Generator().manual_seed(0)) * 0.02
    for wanted in (0.1, 0.3, 0.45):
        beta_T = beta_T_for(difference, wanted)
        assert torch.sigmoid(beta_T * difference).mean().item() == pytest.approx(wanted, abs=1e-4)
    assert beta_T_for(difference * 10, 0.3) == pytest.approx(beta_T_for(difference, 0.3) / 10, rel=1e-3)


def test_distances_count_and_no_difference_at_all_gives_the_papers_value():
    difference = torch.tensor([0.01, -0.03, 0.02])
    assert beta_T_for(difference, 0.2) == beta_T_for(-difference, 0.2)
    assert beta_T_for(torch.zeros(3), 0.3) == 1000.0


def test_epsilon_prediction_gets_the_papers_value_and_a_given_beta_stays(examples):
    denoiser = toy.ToyDenoiser(AdapterConfig(rank=2), base="epsilon")
    assert with_beta(TrainingConfig(beta=0.2), denoiser, examples).beta == 0.2
    assert with_beta(TrainingConfig(beta=None), denoiser, examples).beta == 1.0
    images = {"beta": None, "automatic_beta": "images", "steps": SHORT, "batch_size": 4}
    on_images = with_beta(TrainingConfig(**images), denoiser, examples)
    wider = with_beta(TrainingConfig(**images, target_gate=0.4), denoiser, examples)
    assert on_images.beta != 1.0 and wider.beta < on_images.beta
    with pytest.raises(DCOError, match="automatic_beta 'none' is unknown"):
        TrainingConfig(automatic_beta="none").check()
    with pytest.raises(DCOError, match="beta is automatic"):
        _ = TrainingConfig(beta=None).beta_T


def test_a_flow_model_gets_a_beta_that_learns_and_nothing_else_changes(examples):
    config = TrainingConfig(beta=None, weighting="uniform", steps=SHORT, learning_rate=1e-3, batch_size=2)
    denoiser = toy.ToyDenoiser(AdapterConfig(rank=4, layers="all linear"), base="flow")
    before = {name: p.detach().clone() for name, p in denoiser.trainable().items()}
    calls = []
    found = with_beta(config, denoiser, examples, callback=lambda: calls.append(1))
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in denoiser.trainable().items())
    assert 0.01 < found.beta < 1.0
    assert len(calls) > 8
    assert with_beta(config, denoiser, examples).beta == found.beta
    stricter = with_beta(TrainingConfig(**config.as_dict() | {"target_gate": 0.1}), denoiser, examples)
    assert stricter.beta > found.beta

    reports = []
    train(denoiser, examples, config, reports.append)
    late = [r.gate for r in reports[-SHORT // 4 :]]
    assert 0.02 < sum(late) / len(late) < 0.5  # still learning, and held back
    stream = random_draws(examples, 1000, TrainingConfig(seed=99, batch_size=4))
    draws = [next(stream) for _ in range(8)]
    ahead = sum(
        (
            batch_errors(denoiser, examples, d, adapter=False)
            - batch_errors(denoiser, examples, d, adapter=True)
        ).mean()
        for d in draws
    )
    assert ahead > 0


def test_an_interrupt_of_the_calibration_leaves_everything_as_it_was(examples):
    denoiser = toy.ToyDenoiser(AdapterConfig(rank=2), base="flow")

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_beta(TrainingConfig(beta=None, weighting="uniform", learning_rate=0.1), denoiser, examples, callback=stop)
    assert all(p.abs().max() == 0 for name, p in denoiser.trainable().items() if name.endswith("up"))
