"""Runs side by side are the runs that Training makes of each alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dco_core.errors import DCOError
from dco_core.evidence.side_by_side import SideBySide, possible
from dco_core.network.lora_layers import AdapterConfig
from dco_core.toy_world.image_model import ToyWorldModel
from dco_core.training.calibration import with_beta
from dco_core.training.config import TrainingConfig
from dco_core.training.examples import Example
from dco_core.training.objectives import OBJECTIVES
from dco_core.training.trainer import Training

SEEDS = (5, 8, 2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return ToyWorldModel()


def examples_of(model, seed, prior=False, held=False):
    """Three pictures of different texts; a class image last. held: with masks and preservation prompts."""
    texts = model.encode_captions(["a large toy on grass", "a small toy at night", "a toy", "a toy on white"])
    side = model.default_resolution
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(side, side, 3, generator=generator) for _ in range(4)]
    latents = [mean for mean, _ in model.encode_images(images)]
    made = [Example(x, text) for x, text in zip(latents, texts, strict=True)]
    if held:
        side = latents[0].shape[-1]
        mask = (torch.arange(side * side).view(side, side) % 3 > 0).float()
        made = [dataclasses.replace(e, mask=mask if i else None, preserved=texts[:2]) for i, e in enumerate(made)]
    made[-1] = dataclasses.replace(made[-1], prior=True)
    return made if prior else made[:-1]


CASES = {
    "plain": {"objective": "dreambooth"},
    "plain, clipped hard, decayed, warmed up": {
        "objective": "dreambooth", "max_grad_norm": 0.01, "weight_decay": 0.5, "lr_scheduler": "cosine",
        "lr_warmup_steps": 2,
    },
    "DCO": {"beta": 0.02},
    "DCO, epsilon weighting": {"beta": 1.0, "weighting": "epsilon"},
    "DCO, a beta for each": {"beta": None, "automatic_beta": "images"},
    "prior": {"objective": "dreambooth-prior", "prior_weight": 0.7},
    "DCO, prior": {"objective": "dco-prior", "beta": 0.02, "prior_weight": 0.7, "weighting": "min-snr"},
    "scored": {"objective": "dreambooth", "validation_steps": 2},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_run_ends_as_it_does_alone(model, case):
    config = TrainingConfig(**{"steps": 4, "batch_size": 2, "learning_rate": 3e-3} | CASES[case])
    prior, seeds = config.with_prior, SEEDS[:2]
    adapters = [AdapterConfig(rank=3, layers="all linear", seed=seed) for seed in seeds]
    examples = [examples_of(model, seed, prior) for seed in seeds]
    starts = [model.denoiser(adapter).lora() for adapter in adapters]
    betas = []
    if config.beta is None:
        settled = (dataclasses.replace(config, seed=seed) for seed in seeds)
        each = zip(settled, map(model.denoiser, adapters), examples, strict=True)
        betas = [with_beta(own, denoiser, pictures).beta for own, denoiser, pictures in each]
        assert abs(betas[0] / betas[1] - 1) > 0.01
    together = SideBySide(model.denoiser(None), starts, examples, seeds, config, CPU, betas)
    seen: list[int] = []
    together.run(seen.append)
    assert seen == [1, 2, 3, 4]
    for i, seed in enumerate(seeds):
        keep = {"keep": "best"} if config.validation_steps else {}
        alone = Training(
            model.denoiser(adapters[i]), examples[i], dataclasses.replace(config, seed=seed, **keep)
        )
        alone.run()
        expected, found = alone.denoiser.lora(), together.denoiser.lora_of(i)
        assert found.keys() == expected.keys()
        for name, layer in expected.items():
            # Adam's first steps have the size of the rate: where a gradient is all but 0, rounding decides
            for a, b in ((found[name].down, layer.down), (found[name].up, layer.up)):
                assert (a - b).norm() <= 0.02 * (
                    b - (starts[i][name].down if b is layer.down else 0)
                ).norm() + 1e-6
            assert found[name].scale == layer.scale
        if config.validation_steps:
            assert alone.best is not None and together.stopped_at[i] == alone.best.step
            with alone.result():
                best = alone.denoiser.lora()
            stopped = together.denoiser.lora_of(i, together.stopped)
            name = next(iter(best))
            torch.testing.assert_close(stopped[name].up, best[name].up, atol=2e-4, rtol=0.02)


def test_runs_differ_from_one_another(model):
    config = TrainingConfig(objective="dreambooth", steps=1, learning_rate=1e-2)
    starts = [model.denoiser(AdapterConfig(rank=2, seed=seed)).lora() for seed in SEEDS]
    runs = SideBySide(
        model.denoiser(None), starts, [examples_of(model, s) for s in SEEDS], SEEDS, config, CPU
    )
    runs.run()
    name = next(iter(starts[0]))
    ups = [runs.denoiser.lora_of(i)[name].up for i in range(3)]
    assert (ups[0] - ups[1]).abs().max() > 1e-3 and (ups[1] - ups[2]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"ema_decay": 0.9}, "ema_decay"), ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
     ({"reduction": "batch-mean"}, "reduction"),
     ({"beta": None}, "need that of each")],
)  # fmt: skip
def test_what_only_a_run_alone_can_do_is_refused(model, changes, message):
    starts = [model.denoiser(AdapterConfig(rank=2)).lora()]
    with pytest.raises(DCOError, match=message):
        SideBySide(
            model.denoiser(None),
            starts,
            [examples_of(model, 0)],
            [0],
            TrainingConfig(**{"beta": 0.1} | changes),
            CPU,
        )


def test_dropout_is_for_a_run_alone():
    config = TrainingConfig(objective="dreambooth")
    assert possible(config, AdapterConfig(rank=2)) and not possible(config, AdapterConfig(rank=2, dropout=0.1))


@pytest.mark.parametrize("objective", ["dco", "dreambooth"])
def test_gradients_of_what_is_held_are_those_of_each_run_alone(model, objective):
    """From LoRAs that are away from zero, where theta is not phi."""
    config = TrainingConfig(
        objective=objective, beta=0.02, batch_size=2, mask_prior=3.0, preservation_prompts="one; two",
        preservation_weight=5.0, look_ahead=1,
    )  # fmt: skip
    adapters = [AdapterConfig(rank=3, layers="all linear", seed=seed) for seed in SEEDS]
    examples = [examples_of(model, seed, held=True) for seed in SEEDS]
    starts = [model.denoiser(adapter).lora() for adapter in adapters]
    together = SideBySide(model.denoiser(None), starts, examples, SEEDS, config, CPU)
    generator = torch.Generator().manual_seed(0)
    for p in together.denoiser.trainable().values():
        p.data += 0.02 * torch.randn(p.shape, generator=generator)
    (OBJECTIVES[objective](next(together._batches())).loss * len(SEEDS)).backward()
    for i, seed in enumerate(SEEDS):
        alone = Training(model.denoiser(adapters[i]), examples[i], dataclasses.replace(config, seed=seed))
        for name, p in alone.denoiser.trainable().items():
            p.data = together.denoiser.trainable()[name].data[i].clone()
        OBJECTIVES[objective](next(alone._batches())).loss.backward()
        for name, p in alone.denoiser.trainable().items():
            found = together.denoiser.trainable()[name].grad[i]
            assert (found - p.grad).norm() <= 1e-4 * p.grad.norm() + 1e-7, name


def test_a_share_of_the_batches_is_for_a_run_alone(model):
    config = TrainingConfig(preservation_prompts="one", preservation_share=0.5)
    assert not possible(config, AdapterConfig())
    with pytest.raises(DCOError, match="preservation_share 0.5 is for a run alone"):
        SideBySide(model.denoiser(None), [], [], [], config, CPU)
