"""phi's errors on disk: the frozen base model makes the same of a draw in every run, whatever trains beside it.

A file holds the errors of one series of draws under a key of everything they depend on: the model, what it reads of
every picture, the draws, how many go into one call, and what computes. So a second run with another beta, rank,
learning rate or number of steps finds them, and a change of anything else makes another file.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DCOError
from ..files.atomic import remove_abandoned
from ..files.checksummed import read_sealed, write_sealed
from ..files.content_key import content_key
from ..network.denoiser import Denoiser
from .config import TrainingConfig
from .examples import Example, Prompt
from .noise_levels import noise_levels

KEPT_FILES = 64  # the latest, a few kilobytes each
_FORMAT = 1
_SECONDS = 60.0  # between writes
# What neither the draws nor phi depend on. Whatever else a configuration holds, also in the future, is part of the key.
_OF_THETA = (
    "steps", "learning_rate", "beta", "reduction", "weight_decay", "max_grad_norm", "gradient_accumulation_steps",
    "token_learning_rate", "weighting", "snr_gamma", "target_gate", "prior_weight", "preservation_weight", "mapo_beta",
    "mapo_snr", "optimizer", "lr_scheduler", "lr_warmup_steps", "ema_decay", "validation_steps", "keep",
    "automatic_beta",
)  # fmt: skip


class ReferenceCache:
    """phi's errors of earlier runs in `folder`, which any number of runs share, also at the same time.

    content: tells the model, and how it is run (precision, compiled or not), from all others. note: a sentence on what
    was found."""

    def __init__(self, folder: Path | str, content: str):
        self.folder, self._content = Path(folder), content
        self.note = ""
        self._path: Path | None = None
        self._errors: dict[int, Tensor] = {}
        self._unwritten, self._written = False, time.monotonic()

    def open(
        self, denoiser: Denoiser, examples: Sequence[Example], config: TrainingConfig, share: tuple[int, int] = (0, 1),
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        """Find the errors of this series of draws. config: with numbers for what was automatic. share: which of how
        many processes takes every so many batches of it. device: that computes, where it is not that of the
        examples."""
        self._key = reference_key(self._content, denoiser, examples, config, share, device)
        self._path = self.folder / f"{self._key[:32]}.safetensors"
        self._window = config.look_ahead
        there = self._path.exists()
        self._errors, self._unwritten = self._read(), False
        if self._errors:
            batches = self._window * len(self._errors)
            self.note = f"The base model's errors on {batches} batches are there from an earlier run."
            with suppress(OSError):
                os.utime(self._path)  # the latest in use are kept
        elif there:
            self.note = f"The kept errors of the base model in {self._path.name} are damaged and are made anew."

    def get(self, window: int) -> Tensor | None:
        """The errors [rows] of a window of draws, counted from the start of the series; None for one that is new."""
        return self._errors.get(window)

    def put(self, window: int, errors: Tensor) -> None:
        """Keep the errors [rows] of a window."""
        self._errors[window] = errors.detach().cpu().clone()
        self._unwritten = True
        if time.monotonic() - self._written > _SECONDS:
            self.write()

    def write(self) -> None:
        """Write what is new, beside what other runs have written meanwhile. A disk that cannot be written costs a later
        run its time, not this one its result: it is logged."""
        if not self._unwritten or self._path is None:
            return
        self._unwritten, self._written = False, time.monotonic()
        together = self._read() | self._errors
        windows = sorted(together)
        tensors = {"windows": torch.tensor(windows), "errors": torch.stack([together[w] for w in windows])}
        try:
            write_sealed(self._path, tensors, {"key": self._key})
            self._remove_oldest()
        except (DCOError, OSError) as error:
            logging.warning("DCO: the base model's errors are not kept: %s", error)

    def _read(self) -> dict[int, Tensor]:
        assert self._path is not None
        saved = read_sealed(self._path)
        if saved is None or saved[1].get("key") != self._key:
            return {}
        tensors, _ = saved
        return dict(zip(tensors["windows"].tolist(), tensors["errors"], strict=True))

    def _remove_oldest(self) -> None:
        remove_abandoned(self.folder)
        files = sorted(self.folder.glob("*.safetensors"), key=_modified)
        for path in files[:-KEPT_FILES]:
            path.unlink(missing_ok=True)


def reference_key(
    content: str,
    denoiser: Denoiser,
    examples: Sequence[Example],
    config: TrainingConfig,
    share: tuple[int, int] = (0, 1),
    device: torch.device | None = None,
) -> str:
    """SHA-256 (hex) over everything that phi's errors on a series of draws depend on."""
    recipe = {name: value for name, value in config.as_dict().items() if name not in _OF_THETA}
    known: dict[int, str] = {}
    for example in examples:  # repeats are the same object
        known.setdefault(id(example), _example_key(denoiser, example, bool(config.caption_dropout)))
    shown = [known[id(example)] for example in examples]
    computing = _computing(device or examples[0].latent.device)
    levels = noise_levels(denoiser, config)
    return content_key(_FORMAT, content, denoiser.schedule, levels, recipe, shown, computing, share)


def _example_key(denoiser: Denoiser, example: Example, dropout: bool) -> str:
    """Of what phi is shown: not of what theta reads."""
    prompts = [] if example.prior else [Prompt.BASE, *([Prompt.EMPTY] if dropout else [])]
    read = [denoiser.conditioning_content(example.conditioning_of(prompt)) for prompt in prompts]
    return content_key(example.latent, example.std, example.mask, example.prior, len(example.rejected), read)


def _computing(device: torch.device) -> dict[str, Any]:
    """What else the last bit of a number depends on."""
    found: dict[str, Any] = {"torch": torch.__version__, "matmul": torch.get_float32_matmul_precision()}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["tf32"] = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    else:
        found["device"] = (device.type, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    return found


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


assert {field.name for field in dataclasses.fields(TrainingConfig)} >= set(_OF_THETA)
