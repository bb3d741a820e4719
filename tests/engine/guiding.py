"""Shorthands of the engine tests: guidance as the nodes make it, checked against two models."""

from __future__ import annotations

import torch
from small_models import latent, lora_for, small_model, text
from torch import Tensor
from two_models import cfg, difference, formula, merged, oracle, sample

from devtools import in_process_host as host

TOLERANCE = 1e-5


def guided(
    model, lora, w_rg: float = 2.0, personalized=None, kind: str = "reward", mask=None, regions=(), **options
):
    """The MODEL with guidance. lora: one, or [(LoRA, strength), ...]. regions: as `region` makes them."""
    (first, strength), *rest = lora if isinstance(lora, list) else [(lora, 1.0)]
    more = {f"lora_{n}": one for n, (one, _) in enumerate(rest, 2)}
    more |= {f"strength_{n}": s for n, (_, s) in enumerate(rest, 2)}
    values = {"lora_strength": strength, "more_loras": more} | options
    made = host.pack("nodes.guidance.guided").Guided(model, first, personalized, values, mask, regions)
    return made.patched(kind, w_rg)


def region(lora, mask=None, personalized=None, factor: float = 1.0, strength: float = 1.0, before=()):
    """The chain of regions with one more, as the node makes it."""
    node = host.pack("nodes.guidance.regions").DCORegionalLoRA
    return node.execute(lora, factor, strength, mask, personalized, before).args[0]


class Case:
    """A base model, a LoRA, prompts and a start; each part may be changed before it runs."""

    def __init__(self, family: str = "sd15", batch: int = 1, lora: dict[str, Tensor] | None = None, **more):
        self.family, self.more = family, more
        self.phi, second = small_model(family, **more), small_model(family, **more)
        self.lora = lora_for(self.phi) if lora is None else lora
        self.theta = merged(second, self.lora)
        self.positive, self.negative = text(family, 7, 1), text(family, 5, 2)
        self.start = latent(family, batch)

    def ours(self, w_rg: float = 2.0, w_text: float = 4.0, model=None, sampling=None, **options) -> Tensor:
        model = guided(self.phi if model is None else model, self.lora, w_rg, **options)
        return sample(cfg(model, self.positive, self.negative, w_text), self.start, **(sampling or {}))

    def expected(
        self, w_rg: float = 2.0, w_text: float = 4.0, combine=None, sampling=None, personalized=None
    ) -> Tensor:
        guider = oracle(
            self.phi, self.theta, self.positive, self.negative, combine or formula(w_rg, w_text), personalized
        )
        return sample(guider, self.start, **(sampling or {}))

    def plain(self, w_text: float = 4.0, model=None, **sampling) -> Tensor:
        model = self.phi if model is None else model
        return sample(cfg(model, self.positive, self.negative, w_text), self.start, **sampling)

    def check(
        self,
        w_rg: float = 2.0,
        w_text: float = 4.0,
        combine=None,
        sampling=None,
        tolerance=TOLERANCE,
        **options,
    ):
        """Guidance is the oracle's, and not what it would be without the LoRA."""
        ours = self.ours(w_rg, w_text, sampling=sampling, **options)
        expected = self.expected(w_rg, w_text, combine, sampling, options.get("personalized"))
        assert difference(expected, self.plain(w_text, **(sampling or {}))) > 100 * tolerance
        assert difference(ours, expected) < tolerance


def equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b)
