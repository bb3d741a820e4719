"""Which pictures the model in training makes: base, trained and reward guidance, from the same noise each time.

Nothing that training depends on is touched: the network in training is the one that samples, without gradients,
and noise comes from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DCOError
from ..network.denoiser import Denoiser
from ..sampling import sample
from .examples import Conditioning


@dataclass(frozen=True)
class PreviewPrompt:
    """text: as it was written, for the caption. The conditionings are those of an Example."""

    text: str
    conditioning: Conditioning
    base_conditioning: Conditioning = None
    empty_conditioning: Conditioning = None

    @property
    def base_is_fixed(self) -> bool:
        """Whether phi reads the same at every step of a training: not where it shares tokens in training."""
        base = self.conditioning if self.base_conditioning is None else self.base_conditioning
        return not callable(base) and not callable(self.empty_conditioning)


class Preview(NamedTuple):
    """One picture: its prompt, what made it, and its latent [C, ...] (fp32, on the CPU, in the model's scale)."""

    prompt: str
    label: str
    latent: Tensor


class Previews:
    """The same pictures again and again while a model trains: for each prompt the base model (w_rg = 0), theta in
    its place (w_rg = w_text), and reward guidance, from one noise. Prompt i has the noise of seed + i, so pictures of
    different steps can be compared. What the base model makes is sampled once.

    shape: of a latent, [C, H, W]. device: where the network is. callback: see `sample`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        prompts: Sequence[PreviewPrompt],
        shape: Sequence[int],
        seed: int,
        *,
        w_rg: float,
        w_text: float,
        steps: int = 20,
        device: torch.device | str = "cpu",
        callback: Callable[[], None] = lambda: None,
    ):
        if not prompts:
            raise DCOError("There is no prompt to preview: write one, or turn previews off.")
        self._denoiser, self._prompts = denoiser, list(prompts)
        self._shape, self._seed, self._device = tuple(shape), seed, device
        self._w_text, self._steps, self._callback = w_text, steps, callback
        self._scales = {"base model": 0.0, "trained": w_text, f"reward guidance {w_rg:g}": w_rg}
        self._base: dict[int, Tensor] = {}

    @property
    def labels(self) -> list[str]:
        """Of the pictures of one prompt, in their order."""
        return list(self._scales)

    def take(self) -> list[Preview]:
        """The pictures of the model as it is now, prompt by prompt. No gradient, no global random number."""
        return [
            Preview(prompt.text, label, self._latent(i, w_rg))
            for i, prompt in enumerate(self._prompts)
            for label, w_rg in self._scales.items()
        ]

    def _latent(self, i: int, w_rg: float) -> Tensor:
        prompt = self._prompts[i]
        if w_rg == 0 and i in self._base:
            return self._base[i]
        generator = torch.Generator().manual_seed((self._seed + i) % 2**64)
        noise = torch.randn((1, *self._shape), generator=generator).to(self._device)
        latent = sample(
            self._denoiser,
            [prompt.conditioning],
            None if prompt.base_conditioning is None else [prompt.base_conditioning],
            [prompt.empty_conditioning],
            noise,
            w_rg=w_rg,
            w_text=self._w_text,
            steps=self._steps,
            callback=self._callback,
        )[0].cpu()
        if w_rg == 0 and prompt.base_is_fixed:
            self._base[i] = latent
        return latent
