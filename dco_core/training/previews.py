"""Pictures from the model in training: base, trained and reward guidance side by side, from the same noise each
time.

Nothing that training depends on is touched: the network in training is the one that samples, without gradients,
and noise comes from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import DCOError
from ..guidance import reward_guidance
from ..network.denoiser import Denoiser
from ..suggested_scales import PAPER
from .examples import Conditioning

_INK, _SOFT, _PAPER = (40, 40, 48), (96, 96, 106), (250, 250, 248)
_CELL, _NARROWEST, _GAP, _MARGIN = 256, 180, 8, 10  # pixels: longest side, narrowest column
_TITLE_SIZE, _LABEL_SIZE, _TITLE_LINES = 17, 18, 2


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    conditioning: Conditioning,
    base_conditioning: Conditioning,
    empty_conditioning: Conditioning,
    noise: Tensor,
    *,
    w_rg: float,
    w_text: float,
    steps: int,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Reward guidance from noise [B, ...] to x0 [B, ...], in the latent scale of the model and where the noise is.

    Deterministic DDIM (Song et al. 2021, Eq. 12 with sigma = 0), which for flow models is Euler's method, over
    evenly spaced indices of the schedule that begin with its noisiest (the host's "simple" scheduler).

    conditioning: what theta reads, for every sample. base_conditioning: what phi reads (None: the same).
    empty_conditioning: what phi reads for phi(0). Each may be a function without arguments, which is called once.
        Those whose coefficient is 0 (see `reward_guidance`) may be None; their predictions are not computed.
    tick: called before every step; whatever it raises ends sampling.
    Raises DCOError for a number of steps that the schedule does not have, and for a conditioning that is missing.
    """
    if not 1 <= steps <= len(denoiser.schedule):
        raise DCOError(
            f"A picture cannot be sampled in {steps} steps: use 1 to {len(denoiser.schedule)}, such as 20."
        )
    schedule, n = denoiser.schedule, len(noise)
    if base_conditioning is None:
        base_conditioning = conditioning
    theta_text = _read(conditioning) if w_rg != 0 else None
    phi_text = _read(base_conditioning) if w_text != w_rg else None
    null_text = _read(empty_conditioning) if w_text != 1 else None

    def said(x: Tensor, t: Tensor, text: Any, adapter: bool) -> Tensor | None:
        return None if text is None else denoiser.predict(x, t, [text] * n, adapter=adapter).to(x)

    last = len(schedule) - 1
    indices = [last - i * len(schedule) // steps for i in range(steps)]
    x = noise
    for index, following in zip(indices, [*indices[1:], None], strict=True):
        tick()
        t = torch.full((n,), index)
        prediction = reward_guidance(
            said(x, t, theta_text, True),
            said(x, t, phi_text, False),
            said(x, t, null_text, False),
            w_rg,
            w_text,
        )
        x0 = schedule.denoised(x, prediction, t)
        if following is None:
            break
        alpha, sigma = schedule.at(t, x)
        x = schedule.noised(x0, (x - alpha * x0) / sigma, torch.full((n,), following))
    return x0


def _read(conditioning: Conditioning) -> Any:
    return conditioning() if callable(conditioning) else conditioning


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

    shape: of a latent, [C, H, W]. device: where the network is. tick: see `sample`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        prompts: Sequence[PreviewPrompt],
        shape: Sequence[int],
        seed: int,
        *,
        w_rg: float = PAPER.w_rg,
        w_text: float = PAPER.w_text,
        steps: int = 20,
        device: torch.device | str = "cpu",
        tick: Callable[[], None] = lambda: None,
    ):
        if not prompts:
            raise DCOError("There is no prompt to preview: write one, or turn previews off.")
        self._denoiser, self._prompts = denoiser, list(prompts)
        self._shape, self._seed, self._device = tuple(shape), seed, device
        self._w_text, self._steps, self._tick = w_text, steps, tick
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
            prompt.conditioning,
            prompt.base_conditioning,
            prompt.empty_conditioning,
            noise,
            w_rg=w_rg,
            w_text=self._w_text,
            steps=self._steps,
            tick=self._tick,
        )[0].cpu()
        if w_rg == 0 and prompt.base_is_fixed:
            self._base[i] = latent
        return latent


def sheet(previews: Sequence[Preview], images: Sequence[np.ndarray], heading: str) -> np.ndarray:
    """The pictures of `Previews.take` as images, a row a prompt -> uint8 [H, W, 3], of the same size whatever the
    heading. images: uint8 [H, W, 3], one a preview. heading: before every prompt, such as "step 100"."""
    rows: list[tuple[str, list[str], list[np.ndarray]]] = []
    for (prompt, label, _), image in zip(previews, images, strict=True):
        if not rows or rows[-1][0] != prompt or label in rows[-1][1]:
            rows.append((prompt, [], []))
        rows[-1][1].append(label)
        rows[-1][2].append(image)
    return np.concatenate(
        [labelled_row(pictures, labels, f"{heading}: {prompt}") for prompt, labels, pictures in rows]
    )


def labelled_row(images: Sequence[np.ndarray], labels: Sequence[str], title: str) -> np.ndarray:
    """Pictures (uint8 [H, W, 3], of any size) side by side under their labels and a title -> uint8 [H, W, 3]. Each is
    brought to 256 pixels on its longest side; the title may fill two lines, which are always there."""
    title_font, label_font = (ImageFont.load_default(size=s) for s in (_TITLE_SIZE, _LABEL_SIZE))
    pictures = [_scaled(image) for image in images]
    column = max(_NARROWEST, *(picture.width for picture in pictures))
    width = 2 * _MARGIN + len(pictures) * (column + _GAP) - _GAP
    labels_at = _MARGIN + _TITLE_LINES * (_TITLE_SIZE + 4) + 4
    pictures_at = labels_at + _LABEL_SIZE + 8
    height = pictures_at + max(picture.height for picture in pictures) + _MARGIN
    row = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(row)
    lines = _wrapped(title, title_font, width - 2 * _MARGIN, _TITLE_LINES)
    pen.multiline_text((_MARGIN, _MARGIN - 4), "\n".join(lines), fill=_INK, font=title_font, spacing=4)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x = _MARGIN + i * (column + _GAP)
        (line,) = _wrapped(label, label_font, column, 1)
        pen.text((x, labels_at), line, fill=_SOFT, font=label_font)
        row.paste(picture, (x, pictures_at))
    return np.asarray(row)


def _scaled(image: np.ndarray) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    factor = _CELL / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.LANCZOS)


def _wrapped(text: str, font: Any, width: int, lines: int) -> list[str]:
    """At most `lines` lines of at most `width` pixels; dots stand for what is left out."""
    wrapped: list[str] = []
    rest = " ".join(text.split())
    while len(wrapped) < lines - 1 and font.getlength(rest) > width:
        words = rest.split(" ")
        n = next((n for n in range(len(words), 0, -1) if font.getlength(" ".join(words[:n])) <= width), 0)
        if n == 0:  # one word wider than a line
            break
        wrapped.append(" ".join(words[:n]))
        rest = " ".join(words[n:])
    short = rest
    while short and font.getlength(short if short == rest else short + "...") > width:
        short = short[:-1]
    return [*wrapped, short if short == rest else short.rstrip() + "..."]
