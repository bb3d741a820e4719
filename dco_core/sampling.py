"""The sampler: DDIM, which for flow models is Euler's method, with reward guidance in every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import DCOError
from .guidance import reward_guidance
from .network.denoiser import Denoiser


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    conditioning: Sequence[Any] | None,
    base_conditioning: Sequence[Any] | None,
    empty_conditioning: Sequence[Any] | None,
    noise: Tensor,
    *,
    w_rg: float,
    w_text: float,
    steps: int,
    callback: Callable[[], None] = lambda: None,
) -> Tensor:
    """Reward guidance from noise [B, ...] to x0 [B, ...], in the latent scale of the model and where the noise is.

    Deterministic DDIM (Song et al. 2021, Eq. 12 with sigma = 0), which for flow models is Euler's method, over
    evenly spaced indices of the schedule that begin with its noisiest (the host's "simple" scheduler).

    conditioning: what theta reads, one for each sample (a conditioning may be a list itself, as the host's are, so one
        for all would be mistaken for it). base_conditioning: what phi reads (None: the same). empty_conditioning: what
        phi reads for phi(0). Each may hold functions without arguments; a function is called once. Those whose
        coefficient is 0 (see `reward_guidance`) may be None; their predictions are not computed.
    callback: called before every step; whatever it raises ends sampling.
    Raises DCOError for a number of steps that the schedule does not have, for a conditioning that is missing, and for
    a list of another length than the noise.
    """
    if not 1 <= steps <= len(denoiser.schedule):
        raise DCOError(
            f"A picture cannot be sampled in {steps} steps: use 1 to {len(denoiser.schedule)}, such as 20."
        )
    schedule, n = denoiser.schedule, len(noise)
    if base_conditioning is None:
        base_conditioning = conditioning
    theta_text = _rows(conditioning, n) if w_rg != 0 else None
    phi_text = _rows(base_conditioning, n) if w_text != w_rg else None
    null_text = _rows(empty_conditioning, n) if w_text != 1 else None

    def predicted(x: Tensor, t: Tensor, text: list[Any] | None, adapter: bool) -> Tensor | None:
        return None if text is None else denoiser.predict(x, t, text, adapter=adapter).to(x)

    last = len(schedule) - 1
    indices = [last - i * len(schedule) // steps for i in range(steps)]
    x = noise
    for index, following in zip(indices, [*indices[1:], None], strict=True):
        callback()
        t = torch.full((n,), index)
        prediction = reward_guidance(
            predicted(x, t, theta_text, True),
            predicted(x, t, phi_text, False),
            predicted(x, t, null_text, False),
            w_rg,
            w_text,
        )
        x0 = schedule.denoised(x, prediction, t)
        if following is None:
            break
        alpha, sigma = schedule.at(t, x)
        x = schedule.noised(x0, (x - alpha * x0) / sigma, torch.full((n,), following))
    return x0


def _rows(given: Sequence[Any] | None, n: int) -> list[Any] | None:
    """The conditioning of each of n samples; None where there is none."""
    if given is None:
        return None  # reward_guidance says what it needs
    if len(given) != n:
        raise DCOError(f"{n} samples have {len(given)} conditionings: give one for each sample.")
    missing = sum(one is None for one in given)
    if missing == n:
        return None
    if missing:
        raise DCOError(f"{missing} of {n} samples have no conditioning: give one for each sample.")
    read: dict[int, Any] = {}  # a function stands for one text, which may be that of many samples
    for one in given:
        if id(one) not in read:
            read[id(one)] = one() if callable(one) else one
    return [read[id(one)] for one in given]
