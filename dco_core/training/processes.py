"""Several processes as one run, a GPU each: `accelerate launch -m dco_core train ...`, or `torchrun`.

A step's micro-batches are shared out, the gradients of what trains are added up, and every process takes the same step.
The base model is neither wrapped nor sharded. Draws are a function of the seed and the number of the micro-batch, so N
processes see what one process with N times their accumulation would. The first process alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import DCOError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """count processes, of which this is number `rank`, with GPU `local_rank` of its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Let every process have the sum of all gradients, in place."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # its micro-batches had no finite loss
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def all(self, here: Value) -> list[Value]:
        """What every process has, by rank; in all of them."""
        if self.count == 1:
            return [here]
        found: list[Value | None] = [None] * self.count
        dist.all_gather_object(found, here)
        return found  # type: ignore[return-value]

    def firsts(self, here: Value) -> Value:
        """What the first process has."""
        return self.all(here)[0]

    def copy_firsts(self, tensors: Sequence[Tensor]) -> None:
        """Let every process start from the values of the first, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, 0)

    def device(self, asked: str | None) -> str | None:
        """The device of this process, where `asked` (as --device says) leaves a choice: a GPU each."""
        if self.count == 1 or asked not in (None, "cuda") or not torch.cuda.is_available():
            return asked
        return f"cuda:{self.local_rank}"


ALONE = Processes()


@contextmanager
def joined(device: str | None = None) -> Iterator[Processes]:
    """Inside, this process is one of those that a launcher has started, found by the variables it sets (WORLD_SIZE,
    RANK, LOCAL_RANK); ALONE without one. device: as asked for; cpu, for processes that share no GPU. DCOError where
    there are fewer GPUs than processes."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available() and device != "cpu"
    if cuda and local >= torch.cuda.device_count():
        raise DCOError(
            f"{count} processes were started, and this machine has {torch.cuda.device_count()} GPUs: start as many "
            "processes as GPUs."
        )
    if cuda:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), local)
    finally:
        dist.destroy_process_group()
