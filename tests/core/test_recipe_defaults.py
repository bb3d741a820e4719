"""The recipe's numbers, and the odds of what is drawn: a mistake here trains without a word, and worse."""

from collections import Counter

import pytest
import torch
from torch import nn

from dco_core.losses import WEIGHTINGS, weights_at
from dco_core.network.lora_layers import AdapterConfig, add_adapter
from dco_core.schedules import Schedule
from dco_core.training.config import TrainingConfig
from dco_core.training.draws import random_draws
from dco_core.training.examples import Example
from dco_core.training.objectives import OBJECTIVES, Batch, batch_errors
from dco_core.training.optimizers import make_optimizer
from tests.small_network import Denoiser, small_base, small_examples


def test_defaults_are_the_papers_and_its_authors():
    config, adapter = TrainingConfig(), AdapterConfig()
    assert (config.objective, config.beta, config.beta_T, config.reduction) == (
        "dco",
        1.0,
        1000.0,
        "per-sample",
    )
    assert (config.learning_rate, config.token_learning_rate) == (5e-5, 5e-4)
    assert (config.optimizer, config.weight_decay, config.max_grad_norm) == ("adamw", 1e-4, 1.0)
    assert (config.lr_scheduler, config.lr_warmup_steps, config.batch_size, config.gradient_accumulation_steps) == (
        "constant",
        0,
        1,
        1,
    )
    assert (config.offset_noise, config.caption_dropout, config.settled_weighting, config.ema_decay) == (
        0.0,
        0.0,
        "epsilon",  # errors of the noise, whatever the model predicts
        0.0,
    )
    assert (config.prior_weight, config.snr_gamma) == (1.0, 5.0)
    assert (adapter.rank, adapter.effective_alpha, adapter.layers, adapter.dropout) == (
        32,
        32.0,
        "attention",
        0.0,
    )
    optimizer = make_optimizer("adamw", [([nn.Parameter(torch.zeros(2))], 1e-3)], config.weight_decay)
    (group,) = optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 1e-4)


@pytest.mark.parametrize("rank", [4, 16])
def test_a_lora_starts_at_one_over_its_rank(rank):
    network = nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": nn.Linear(5000, 7)})})
    parameters = add_adapter(network, AdapterConfig(rank=rank))
    assert parameters["attn1.to_q.down"].std().item() == pytest.approx(1 / rank, rel=0.03)
    assert parameters["attn1.to_q.down"].mean().item() == pytest.approx(0, abs=0.03 / rank)
    assert not parameters["attn1.to_q.up"].any()


def draws(n, length=1000, **config):
    stream = random_draws([Example(torch.zeros(1, 1, 1), None)], length, TrainingConfig(seed=1, **config))
    return [d for _ in range(n) for d in next(stream)]


def test_every_timestep_is_drawn_from_the_first_to_the_last_and_equally_often():
    seen = Counter(d.t for d in draws(4000, length=5))
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert all(count == pytest.approx(800, rel=0.15) for count in seen.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
def test_captions_are_dropped_as_often_as_asked(dropout):
    assert sum(d.dropped for d in draws(4000, caption_dropout=dropout)) / 4000 == pytest.approx(
        dropout, abs=0.025
    )


@pytest.mark.parametrize("objective", ["dreambooth-prior", "dco-prior"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_class_images_have_the_weight_of_their_noise_but_for_min_snr(objective, weighting):
    """min-SNR weighs the references alone (the authors' code); whatever else is w(t) counts for both."""
    schedule = Schedule.stable_diffusion("v")
    examples = small_examples(4)
    examples = [*examples[:2], *(Example(e.latent, e.conditioning, prior=True) for e in examples[2:])]
    config = TrainingConfig(
        objective=objective, batch_size=2, beta=0.05, prior_weight=3.0, weighting=weighting
    )
    batch = Batch(
        Denoiser(small_base(), schedule, AdapterConfig(rank=2)), examples,
        next(random_draws(examples, 1000, config)), config,
    )  # fmt: skip
    class_draws = batch.draws[2:]
    error = batch_errors(batch.denoiser, examples, class_draws, adapter=True)
    t = torch.tensor([d.t for d in class_draws])
    weight = torch.ones(2) if weighting == "min-snr" else weights_at(schedule, t, weighting)
    without = OBJECTIVES[objective](
        batch._replace(config=TrainingConfig(**config.as_dict() | {"prior_weight": 0.0}))
    )
    found = OBJECTIVES[objective](batch).loss - without.loss
    torch.testing.assert_close(found, 3.0 * (weight * error).mean(), rtol=1e-4, atol=1e-5)
