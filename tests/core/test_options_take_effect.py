"""Every option of training changes what comes out of a run, and nothing trains without one of these rows."""

import dataclasses
from typing import NamedTuple

import pytest
import torch

from dco_core.lora import LoraLayer
from dco_core.network.lora_layers import AdapterConfig
from dco_core.schedules import Schedule
from dco_core.training.config import TrainingConfig
from dco_core.training.examples import Example
from dco_core.training.learned_tokens import LearnedTokens
from dco_core.training.trainer import Training
from tests.small_network import Denoiser, small_base

MAPO = {"objective": "mapo"}
START = {"attn2.to_q": LoraLayer(torch.full((1, 6), 0.3), torch.full((6, 1), 0.2), 1.0)}


class Row(NamedTuple):
    """value: what the option is set to. beside: options that both runs have, without which it means nothing.
    same_lora: it acts on something else than what is learned."""

    value: object
    beside: dict = {}
    same_lora: bool = False


TRAINING = {
    "steps": Row(7),
    "batch_size": Row(2),
    "learning_rate": Row(2e-2),
    "objective": Row("dreambooth"),
    "beta": Row(0.3),
    "reduction": Row("batch-mean", {"batch_size": 2}),
    "offset_noise": Row(0.2),
    "weight_decay": Row(0.5),
    "max_grad_norm": Row(1e-7),
    "seed": Row(1),
    "gradient_accumulation_steps": Row(2),
    "token_learning_rate": Row(1e-2),
    "weighting": Row("min-snr"),
    "snr_gamma": Row(1.0, {"weighting": "min-snr"}),
    "caption_dropout": Row(0.6),
    "target_gate": Row(0.1, {"beta": None, "automatic_beta": "images"}),
    "prior_weight": Row(500.0, {"objective": "dco-prior"}),
    "preservation_weight": Row(5.0, {"objective": "output-preservation"}),
    "mask_prior": Row(500.0),
    "preservation_prompts": Row("a cat\na tree", {"preservation_weight": 500.0}),
    "preservation_share": Row(0.3, {"preservation_prompts": "a cat\na tree", "preservation_weight": 500.0}),
    "mapo_beta": Row(0.5, MAPO | {"mapo_snr": 1e-3}),
    "mapo_snr": Row(5.0, MAPO),
    "optimizer": Row("adafactor"),
    "lr_scheduler": Row("cosine"),
    "lr_warmup_steps": Row(3),
    "ema_decay": Row(0.5),
    "look_ahead": Row(1, {"look_ahead": 3}, same_lora=True),
    "validation_steps": Row(2, same_lora=True),
    "keep": Row("best", {"validation_steps": 1, "learning_rate": 3.0, "objective": "dreambooth"}),
    "timestep_sampling": Row("logit-normal"),
    "automatic_beta": Row("images", {"beta": None, "weighting": "epsilon"}),
}
ADAPTER = {
    "rank": Row(3),
    "alpha": Row(1.0),
    "layers": Row("all linear"),
    "seed": Row(1),
    "name_filter": Row("to_k"),
    "dropout": Row(0.5),
    "start": Row(START),
}


class Counted(Denoiser):
    """Keeps how many rows each call without the adapter has."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.reference_calls = []

    def predict(self, x_t, t, conditioning, *, adapter):
        if not adapter:
            self.reference_calls.append(len(x_t))
        return super().predict(x_t, t, conditioning, adapter=adapter)


def examples(tokens):
    """Two masked references, one with a learned token, with all that any objective reads; and a class image."""
    g = torch.Generator().manual_seed(1)

    def made(*shape):
        return torch.randn(*shape, generator=g)

    def own():
        return torch.cat([start, tokens.rows()["dog"]["text"]])

    start, mask = made(3, 5), (made(2, 2) > 0).float()
    mask[0, 0] = 1
    reference = Example(
        made(6, 2, 2), made(4, 5), made(4, 5), class_conditioning=made(4, 5), empty_conditioning=made(4, 5), mask=mask,
        rejected=[made(6, 2, 2)], preserved=[made(4, 5), made(4, 5)],
    )  # fmt: skip
    with_token = (
        dataclasses.replace(reference, latent=made(6, 2, 2), conditioning=own) if tokens else reference
    )
    return [
        reference,
        with_token,
        Example(made(6, 2, 2), made(4, 5), empty_conditioning=made(4, 5), prior=True),
    ]


def result_of(training, adapter=None, with_tokens=False):
    """What a run learns, and all else that it leaves."""
    g = torch.Generator().manual_seed(2)
    tokens = (
        LearnedTokens({"dog": {"text": torch.randn(1, 5, generator=g)}}, {"dog": "dog"})
        if with_tokens
        else None
    )
    denoiser = Counted(
        small_base(), Schedule.stable_diffusion("v"), AdapterConfig(**{"rank": 2} | (adapter or {}))
    )
    config = TrainingConfig(**{"steps": 6, "learning_rate": 1e-2} | training)
    chosen = examples(tokens)
    run = Training(denoiser, chosen if config.with_prior else chosen[:2], config, tokens)
    run.run()
    with run.result():
        learned = {
            f"{name}.{part}": getattr(layer, part).detach().clone() * (layer.scale if part == "up" else 1)
            for name, layer in denoiser.lora().items() for part in ("up", "down")
        }  # fmt: skip
        if tokens:
            learned["dog"] = tokens.tensors()["dog"]["text"].clone()
    return learned, (run.scores, denoiser.reference_calls)


def same(a, b):
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a)


def test_every_option_has_a_row():
    assert {f.name for f in dataclasses.fields(TrainingConfig)} == set(TRAINING)
    assert {f.name for f in dataclasses.fields(AdapterConfig)} == set(ADAPTER)


@pytest.mark.parametrize("name", TRAINING)
def test_an_option_of_training_takes_effect(name):
    value, beside, same_lora = TRAINING[name]
    tokens = name == "token_learning_rate"
    without, with_it = (
        result_of(beside, with_tokens=tokens),
        result_of(beside | {name: value}, with_tokens=tokens),
    )
    if same_lora:
        assert all(torch.allclose(without[0][k], with_it[0][k], atol=1e-6) for k in without[0])
        assert without[1] != with_it[1]
    else:
        assert not same(without[0], with_it[0])


@pytest.mark.parametrize("name", ADAPTER)
def test_an_option_of_the_adapter_takes_effect(name):
    value, beside, _ = ADAPTER[name]
    assert not same(result_of({}, beside)[0], result_of({}, beside | {name: value})[0])


def test_a_run_without_changes_is_the_same_run():
    assert same(result_of({})[0], result_of({})[0])
