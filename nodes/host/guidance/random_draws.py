"""The random numbers that patches on a MODEL draw from torch's own generators (ToMe, HyperTile)."""

from __future__ import annotations

from typing import Any

import torch


class Draws:
    """Where torch's generators of the CPU and of `device` stand. rewind() takes them back there, so that every call of
    a network within one evaluation draws what a single call would, and what follows is drawn as without guidance."""

    def __init__(self, device: torch.device):
        self._device_module: Any = None if device.type == "cpu" else getattr(torch, device.type, None)
        self._which: tuple = () if device.type == "mps" else (device,)  # there is one
        self._cpu = torch.get_rng_state()
        read = getattr(self._device_module, "get_rng_state", None)
        self._state = None if read is None else read(*self._which)

    def rewind(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._state is not None:
            self._device_module.set_rng_state(self._state, *self._which)
