"""The memory estimate against what autograd really keeps."""

import dataclasses

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from dco_core.errors import DCOError
from dco_core.network.lora_layers import AdapterConfig
from dco_core.toy_world.model import ToyDenoiser
from dco_core.training.config import TrainingConfig
from dco_core.training.draws import random_draws
from dco_core.training.examples import Example
from dco_core.training.memory import PeakMemory, estimate, megabytes
from dco_core.training.objectives import batch_errors
from dco_core.training.trainer import Training


@pytest.fixture
def examples():
    g = torch.Generator().manual_seed(0)
    return [Example(torch.randn(3, 32, 32, generator=g), torch.randn(20, 128, generator=g))]


def really_kept(denoiser, examples, config):
    """Bytes of the distinct storages that the graph of one forward pass holds, without weights."""
    known = {p.untyped_storage().data_ptr() for p in denoiser.network.parameters()}
    held = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive: no address is used twice
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        draws = next(random_draws(examples, len(denoiser.schedule), config))
        batch_errors(denoiser, examples, draws, adapter=True)
    return sum(size for size, _ in held.values())


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_estimate_is_what_autograd_keeps(examples, batch_size, checkpointed):
    denoiser = ToyDenoiser(AdapterConfig(rank=4))
    if checkpointed:
        assert denoiser.checkpoint_blocks() > 3
    config = TrainingConfig(batch_size=batch_size)
    expected = really_kept(denoiser, examples, config)
    assert estimate(denoiser, examples, config).activations == pytest.approx(expected, rel=0.1)


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


@pytest.mark.parametrize("objective", ["dreambooth-prior", "mapo", "output-preservation", "dco-prior"])
def test_an_objective_that_looks_twice_needs_twice(examples, objective):
    (example,) = examples
    both = dataclasses.replace(example, rejected=[example.latent], class_conditioning=torch.randn(20, 128))
    data = [both, dataclasses.replace(both, prior=True)]
    denoiser = ToyDenoiser(AdapterConfig(rank=4))
    once = estimate(denoiser, data, TrainingConfig(objective="dreambooth")).activations
    assert estimate(denoiser, data, TrainingConfig(objective=objective)).activations > 1.7 * once


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
