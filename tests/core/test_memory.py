"""The memory estimate against what the allocator really gives."""

import dataclasses

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dco_core.errors import DCOError
from dco_core.network.lora_layers import AdapterConfig
from dco_core.toy_world.model import ToyDenoiser
from dco_core.training.config import TrainingConfig
from dco_core.training.draws import random_draws
from dco_core.training.examples import Example
from dco_core.training.holding import Reference
from dco_core.training.memory import PeakMemory, estimate, megabytes
from dco_core.training.objectives import OBJECTIVES, Batch, references_of
from dco_core.training.trainer import Training


@pytest.fixture
def examples():
    g = torch.Generator().manual_seed(0)
    return [Example(torch.randn(3, 32, 32, generator=g), torch.randn(20, 128, generator=g))]


def really_kept(denoiser, examples, config):
    """Bytes that the allocator has given for one loss and not taken back, while its graph is held."""
    draws = next(random_draws(examples, len(denoiser.schedule), config))
    count = len(references_of(examples, draws))
    ahead = Reference(torch.zeros(count), [None] * count, [None] * count)
    batch = Batch(denoiser, examples, draws, config, ahead)
    OBJECTIVES[config.objective](batch)  # what torch makes once and keeps is not of a step
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        held = OBJECTIVES[config.objective](batch)
    assert held.loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in measured.events())


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_estimate_is_what_the_allocator_keeps(examples, batch_size, checkpointed):
    denoiser = ToyDenoiser(AdapterConfig(rank=4))
    if checkpointed:
        assert denoiser.checkpoint_blocks() > 3
    config = TrainingConfig(batch_size=batch_size)
    expected = really_kept(denoiser, examples, config)
    assert expected > 1e5
    found = estimate(denoiser, examples, config).activations
    assert found == pytest.approx(expected, rel=0.1 if checkpointed else 0.01)


def test_checkpointing_and_smaller_batches_need_less(examples):
    def activations(checkpointed, batch_size):
        denoiser = ToyDenoiser(AdapterConfig(rank=4))
        if checkpointed:
            denoiser.checkpoint_blocks()
        return estimate(denoiser, examples, TrainingConfig(batch_size=batch_size)).activations

    assert activations(True, 2) < 0.4 * activations(False, 2)
    assert activations(False, 4) > 1.8 * activations(False, 2)


def test_the_optimizer_states_are_counted(examples):
    denoiser = ToyDenoiser(AdapterConfig(rank=4))
    weights = 4 * sum(p.numel() for p in denoiser.trainable().values())
    plain = estimate(denoiser, examples, TrainingConfig())
    assert plain.training == 4 * weights  # itself, its gradient, two averages
    assert plain.total == plain.activations + plain.training
    averaged = estimate(denoiser, examples, TrainingConfig(ema_decay=0.9, optimizer="adafactor"))
    assert averaged.training == pytest.approx(3.2 * weights, rel=1e-3)
    assert "beside the model" in str(plain)


def test_an_estimate_changes_nothing(examples):
    def losses(look):
        denoiser = ToyDenoiser(AdapterConfig(rank=4, dropout=0.3))
        training = Training(denoiser, examples, TrainingConfig(steps=3, beta=0.05))
        if look:
            before = torch.get_rng_state()
            estimate(denoiser, examples, training.config)
            assert torch.equal(before, torch.get_rng_state())
        training.run()
        return [dataclasses.replace(r, seconds=0) for r in training.history]

    assert losses(True) == losses(False)


def test_the_peak_is_at_least_what_was_just_used():
    peak = PeakMemory(torch.device("cpu"))
    assert "of the whole process" in str(peak)
    assert (megabytes(2_500_000_000), megabytes(3_000_000)) == ("2.5 GB", "3 MB")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_estimate_is_what_the_allocator_keeps_of_each_objective(examples, objective):
    (example,) = examples
    both = dataclasses.replace(example, rejected=[example.latent], class_conditioning=torch.randn(20, 128))
    config = TrainingConfig(objective=objective)
    data = [both, dataclasses.replace(both, prior=True)][: 1 + config.with_prior]
    denoiser = ToyDenoiser(AdapterConfig(rank=4))
    found = estimate(denoiser, data, config).activations
    assert found == pytest.approx(really_kept(denoiser, data, config), rel=0.05)


def test_preservation_looks_twice_and_the_mask_prior_does_not(examples):
    (example,) = examples
    half = torch.zeros(example.latent.shape[-2:])
    half[:, :3] = 1
    data = [dataclasses.replace(example, preserved=[torch.randn(20, 128)] * 3, mask=half)]
    denoiser = ToyDenoiser(AdapterConfig(rank=4))
    once = estimate(denoiser, data, TrainingConfig()).activations
    rare = TrainingConfig(preservation_prompts="a; b; c", preservation_share=1e-6)
    assert estimate(denoiser, data, rare).activations > 1.7 * once
    calls, predict = [], denoiser.predict
    denoiser.predict = lambda *args, adapter: calls.append(adapter) or predict(*args, adapter=adapter)
    assert once <= estimate(denoiser, data, TrainingConfig(mask_prior=2.0)).activations < 1.1 * once
    assert calls == [True]  # phi keeps nothing, and is not run


def test_the_estimate_refuses_what_training_would(examples):
    with pytest.raises(DCOError, match="class images"):
        estimate(ToyDenoiser(AdapterConfig(rank=4)), examples, TrainingConfig(objective="dreambooth-prior"))
