"""Runs of the trainer on the small network, as tests make them, stop them and compare them."""

import dataclasses

import pytest
import torch

from dco_core.network.lora_layers import AdapterConfig
from dco_core.schedules import Schedule
from dco_core.training.checkpoints import Checkpoints
from dco_core.training.config import TrainingConfig
from dco_core.training.learned_tokens import LearnedTokens
from dco_core.training.reference_cache import ReferenceCache
from dco_core.training.trainer import Training
from tests.small_network import Denoiser, small_base, small_examples

STEPS = 9


class Stop(BaseException):
    """What the host raises when a user presses cancel is no Exception either."""


class Run:
    """A training on the small network: made anew each time, as after a restart. tokens: {name: rows} of learned tokens,
    three rows of a caption at most; True is one of one row. held: with masks and preservation prompts. cache: a folder
    for phi's errors. reference: of the denoiser, phi on another device."""

    def __init__(
        self, folder=None, every=0, content="", schedule=None, dropout=0.0, tokens=False, prior=False, rank=2,
        cache=None, held=False, reference=lambda denoiser: None, **config
    ):  # fmt: skip
        self.examples = small_examples()
        if held:
            self.examples = held_examples()
        if prior:
            self.examples += [dataclasses.replace(e, prior=True) for e in small_examples(5)[3:]]
        self.denoiser = Denoiser(
            small_base(), schedule or Schedule.stable_diffusion(), AdapterConfig(rank=rank, dropout=dropout)
        )
        self.tokens = None
        if tokens:
            counts = {"dog": 1} if tokens is True else dict(tokens)
            # each of its own start, whatever the order they come in
            start = {n: torch.full((k, 5), 1 + 0.1 * len(n)) + torch.arange(5) * 0.1 * ord(n[0]) % 1
                     for n, k in counts.items()}  # fmt: skip
            self.tokens = LearnedTokens(
                {n: {"text": rows} for n, rows in start.items()}, {n: n for n in counts}
            )
            rest = [e.conditioning[: 4 - sum(counts.values())] for e in self.examples]
            rows = [self.tokens.rows()[n]["text"] for n in sorted(counts)]
            self.examples = [
                dataclasses.replace(
                    e, conditioning=lambda r=r: torch.cat([r, *rows]), base_conditioning=e.conditioning
                )
                for e, r in zip(self.examples, rest, strict=True)
            ]
        checkpoints = None if folder is None else Checkpoints(folder, every)
        config = TrainingConfig(**{"steps": STEPS, "learning_rate": 1e-2, "seed": 7, **config})
        self.training = Training(
            self.denoiser, self.examples, config, self.tokens, checkpoints=checkpoints, content=content,
            reference_cache=None if cache is None else ReferenceCache(cache, "small network"),
            reference=reference(self.denoiser),
        )  # fmt: skip

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
                tensors |= {f"<{n}>": by_encoder["text"] for n, by_encoder in self.tokens.tensors().items()}
        losses = [(r.step, r.loss, r.margin, r.learning_rate) for r in self.training.history]
        return tensors, losses, self.training.scores


def held_examples():
    """Two of three pictures have a mask, and each the same three preservation prompts."""
    g = torch.Generator().manual_seed(4)
    masks = [torch.rand(2, 2, generator=g), None, torch.tensor([[1.0, 0.0], [0.3, 1.0]])]
    prompts = [torch.randn(4, 5, generator=g) for _ in range(3)]
    return [
        dataclasses.replace(e, mask=mask, preserved=prompts)
        for e, mask in zip(small_examples(), masks, strict=True)
    ]


def assert_same(run, other):
    (tensors, losses, scores), (others, other_losses, other_scores) = run.made(), other.made()
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[k], others[k]) for k in tensors)
    assert losses == other_losses
    assert scores == other_scores
