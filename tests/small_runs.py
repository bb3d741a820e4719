"""Runs of the trainer on the small network, as tests make them, stop them and compare them."""

import dataclasses

import pytest
import torch

from dco_core.adapters import AdapterConfig
from dco_core.checkpoints import Checkpoints
from dco_core.config import TrainingConfig
from dco_core.schedules import Schedule
from dco_core.tokens import LearnedTokens
from dco_core.trainer import Training
from tests.small_network import Denoiser, small_base, small_examples

STEPS = 9


class Stop(BaseException):
    """What the host raises when a user presses cancel is no Exception either."""


class Run:
    """A training on the small network: made anew each time, as after a restart."""

    def __init__(self, folder=None, every=0, content="", schedule=None, dropout=0.0, tokens=False, **config):
        self.examples = small_examples()
        self.denoiser = Denoiser(
            small_base(), schedule or Schedule.stable_diffusion(), AdapterConfig(rank=2, dropout=dropout)
        )
        self.tokens = None
        if tokens:
            self.tokens = LearnedTokens({"dog": {"text": torch.ones(1, 5)}}, {"dog": "dog"})
            rest = [e.conditioning[:3] for e in self.examples]
            row = self.tokens.rows()["dog"]["text"]
            self.examples = [
                dataclasses.replace(
                    e, conditioning=lambda r=r: torch.cat([r, row]), base_conditioning=e.conditioning
                )
                for e, r in zip(self.examples, rest, strict=True)
            ]
        checkpoints = None if folder is None else Checkpoints(folder, every)
        config = TrainingConfig(**{"steps": STEPS, "learning_rate": 1e-2, "seed": 7, **config})
        self.training = Training(
            self.denoiser, self.examples, config, self.tokens, checkpoints=checkpoints, content=content
        )

    def run(self, until=None):
        def on_step(report):
            if report.step == until:
                raise Stop

        if until is None:
            self.training.run(on_step)
        else:
            with pytest.raises(Stop):
                self.training.run(on_step)
        return self

    def made(self):
        """Everything the run leaves: weights, tokens, history."""
        with self.training.result():
            tensors = {f"{n}.{k}": v for n, layer in self.denoiser.lora().items()
                       for k, v in (("down", layer.down), ("up", layer.up))}  # fmt: skip
            if self.tokens is not None:
                tensors["tokens"] = self.tokens.tensors()["dog"]["text"]
        losses = [(r.step, r.loss, r.margin, r.learning_rate) for r in self.training.history]
        return tensors, losses, self.training.scores


def assert_same(run, other):
    (tensors, losses, scores), (others, other_losses, other_scores) = run.made(), other.made()
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[k], others[k]) for k in tensors)
    assert losses == other_losses
    assert scores == other_scores
