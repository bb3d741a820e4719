"""phi on a second device: it looks at the next window of draws while theta trains on the first.

phi is frozen, so no gradient crosses: a copy of the base network gets the draws, and one number of each comes back
(and, where theta is held to them, phi's predictions). A thread of its own asks it, a window ahead. What it computes is
what the one device would have computed: the same calls in the same order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import torch

from ..errors import DCOError
from ..network.denoiser import Denoiser
from .config import TrainingConfig
from .draws import Draw
from .examples import Example
from .holding import Reference, reference_of
from .memory import free_memory, megabytes

OFF, AUTO = "off", "auto"
_ROOM = 1.2  # times the weights, for what a pass computes


class ReferenceAhead:
    """phi as a network of its own on `device`, asked by one thread."""

    def __init__(self, phi: Denoiser, device: torch.device):
        self.device = device
        self._phi: Denoiser | None = phi
        self._thread = ThreadPoolExecutor(1, "DCO reference")
        self._pending: Future[Reference] | None = None
        self._moved: dict[int, tuple[Example, Example]] = {}  # by the original's id, which it keeps alive

    def references(
        self, windows: Iterable[Sequence[Draw] | None], examples: Sequence[Example], config: TrainingConfig
    ) -> Iterator[Reference | None]:
        """phi on each window of draws, the next one under way while the caller uses one; None for None: a window that
        nothing is to be asked about."""
        moved = [self._here(example) for example in examples]
        coming: Future[Reference] | None = None
        begun = False
        for draws in windows:
            following = None if draws is None else self._thread.submit(self._look, moved, draws, config)
            if begun:
                yield self._done(coming, following)
            coming, begun = following, True
        if begun:
            yield self._done(coming, None)

    def check(self) -> None:
        """Raise what the thread has raised meanwhile: a cancelled prompt, too little memory."""
        if self._pending is not None and self._pending.done():
            self._pending.result()

    def close(self) -> None:
        """Wait for the thread, and let go of the network."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._phi, self._pending, self._moved = None, None, {}

    def _done(self, coming: Future[Reference] | None, following: Future[Reference] | None) -> Reference | None:
        self._pending = following
        return None if coming is None else coming.result()

    def _here(self, example: Example) -> Example:
        if id(example) not in self._moved:
            std, mask = (None if t is None else t.to(self.device) for t in (example.std, example.mask))
            there = dataclasses.replace(example, latent=example.latent.to(self.device), std=std, mask=mask)
            self._moved[id(example)] = example, there
        return self._moved[id(example)][1]

    def _look(self, examples: Sequence[Example], draws: Sequence[Draw], config: TrainingConfig) -> Reference:
        assert self._phi is not None
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            return reference_of(self._phi, examples, draws, config)


def reference_ahead(denoiser: Denoiser, choice: str, own: torch.device, processes: int = 1) -> ReferenceAhead | None:
    """A ReferenceAhead of the denoiser's base network, as chosen: OFF; AUTO, on another GPU of the same kind with room
    for it, and None where there is none; or the name of a device. own: where theta trains. Raises DCOError for a device
    that is none, that is the same GPU or has too little memory, and for a network that cannot be copied."""
    if choice == OFF or (choice == AUTO and processes > 1):
        return None
    if processes > 1:
        raise DCOError(f"reference_device is {choice}, and each process has its GPU: leave it out.")
    weights = sum(tensor.nbytes for tensor in denoiser.network_tensors())
    device = _other_gpu(own, weights) if choice == AUTO else _usable(choice, own, weights)
    if device is None:
        return None
    phi = denoiser.phi_on(device)
    if phi is None:
        if choice == AUTO:
            return None
        raise DCOError("reference_device: this network cannot be copied to another device: use off.")
    return ReferenceAhead(phi, device)


def _other_gpu(own: torch.device, weights: int) -> torch.device | None:
    """Another of the same kind, whose numbers are the same bit for bit."""
    if own.type != "cuda":
        return None
    first = torch.cuda.current_device() if own.index is None else own.index
    for index in range(torch.cuda.device_count()):
        alike = torch.cuda.get_device_name(index) == torch.cuda.get_device_name(first)
        if index != first and alike and (free_memory(torch.device("cuda", index)) or 0) > _ROOM * weights:
            return torch.device("cuda", index)
    return None


def _usable(choice: str, own: torch.device, weights: int) -> torch.device:
    try:
        device = torch.device(choice)
    except RuntimeError:
        raise DCOError(f"reference_device is {choice!r}: use off, auto, or a device such as cuda:1.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DCOError(f"reference_device is {choice}, and this machine has {count} GPUs: use off.")
        device = torch.device("cuda", device.index or 0)
        first = (own.index or 0) if own.type == "cuda" else None
        if device.index == first:
            raise DCOError(f"reference_device is {choice}, on which the LoRA trains: name another GPU, or use off.")
        free = free_memory(device) or 0
        if free <= _ROOM * weights:
            raise DCOError(
                f"reference_device is {choice}, which has {megabytes(free)} free, and the model takes "
                f"{megabytes(weights)}: use off."
            )
    elif device.type != "cpu":
        raise DCOError(f"reference_device is {choice!r}: use off, auto, or a device such as cuda:1.")
    return device
