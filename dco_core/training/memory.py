"""What a training step needs of memory: told before the run, and measured after it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from ..network.denoiser import Denoiser
from ..network.weight_stream import WeightStream
from .config import TrainingConfig
from .draws import Draw, random_draws
from .examples import Example
from .holding import Reference, has_outside
from .noise_levels import noise_levels
from .objectives import OBJECTIVES, Batch, checked_examples, references_of

# Values a trainable parameter needs in fp32 beside itself, by optimizer: gradient and states.
_COPIES = {"adamw": 3, "adafactor": 1.2, "adamw-8bit": 1.5, "prodigy": 5}
_BYTES = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """In bytes. activations: kept from the forward to the backward pass; training: the LoRA with its gradient,
    optimizer states and average."""

    activations: int
    training: int

    @property
    def total(self) -> int:
        """Beside the weights of the base model."""
        return self.activations + self.training

    def __str__(self) -> str:
        return f"{megabytes(self.total)} beside the model ({megabytes(self.activations)} of activations)"


def estimate(denoiser: Denoiser, examples: Sequence[Example], config: TrainingConfig) -> MemoryEstimate:
    """What one step needs, from the loss of a batch of the largest latents of which nothing is kept: every tensor
    that autograd wants to save is counted and given back."""
    examples = checked_examples(examples, config)
    groups = [[e for e in examples if e.prior == prior] for prior in (False, True)]
    largest = [max(kind, key=lambda e: e.latent.numel()) for kind in groups if kind]
    draws = next(random_draws(largest, noise_levels(denoiser, config), config))
    known = {t.untyped_storage().data_ptr() for t in denoiser.network_tensors()}
    alive: dict[int, StorageWeakRef] = {}
    activations = 0

    def count(tensor: Tensor) -> None:
        nonlocal activations
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        # the same tensor is saved by several layers, but a freed one's address is used again
        counted = address in alive and not alive[address].expired()
        if address not in known and not counted:
            alive[address] = StorageWeakRef(storage)
            activations += storage.nbytes()

    def unused(_: None) -> Tensor:
        raise AssertionError("the estimate has no backward pass")

    some_beta = dataclasses.replace(config, beta=config.beta or 1.0)
    if config.preservation_prompts:  # of the batches that have them
        draws = [d if largest[d.image].prior else dataclasses.replace(d, preserved=0) for d in draws]
    batch = Batch(denoiser, largest, draws, some_beta, _blank_reference(largest, draws, config))
    with saved_tensors_hooks(count, unused), torch.random.fork_rng([]), torch.enable_grad():
        OBJECTIVES[config.objective](batch)
    more = (1 if config.ema_decay else 0) + (1 if config.keep == "best" else 0)
    return MemoryEstimate(activations, training_bytes(denoiser.trainable().values(), config.optimizer, more))


def training_bytes(parameters: Iterable[Tensor], optimizer: str, more: int = 0) -> int:
    """What trainable parameters take in fp32 with gradients and the optimizer's states; more: further copies."""
    return int(sum(p.numel() for p in parameters) * _BYTES * (1 + _COPIES[optimizer] + more))


def _blank_reference(examples: Sequence[Example], draws: Sequence[Draw], config: TrainingConfig) -> Reference:
    """What phi would say, as zeros: it keeps nothing for the backward pass, and is not run."""
    references = references_of(examples, draws)
    blank = [torch.zeros_like(examples[d.image].latent) for d in references]
    outside = [
        z if config.mask_prior and has_outside(examples[d.image]) else None
        for z, d in zip(blank, references, strict=True)
    ]
    return Reference(
        torch.zeros(len(references)),
        outside,
        [z if d.preserved >= 0 else None for z, d in zip(blank, references, strict=True)],
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that a step can still take on a device; None where nothing tells."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        (available,) = (line for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError):
        return None
    return int(available.split()[1]) * 1024


def streaming(stream: WeightStream | None, choice: str, device: torch.device) -> str:
    """What is streamed to the device, as a sentence; "" where nothing is and nobody asked for it."""
    if stream is not None:
        return (
            f"{megabytes(stream.nbytes)} of the weights stay in main memory and are streamed, at most "
            f"{megabytes(stream.resident_bytes)} at once."
        )
    if choice != "on":
        return ""
    return f"No weights are streamed: the model {'trains in main memory' if device.type == 'cpu' else 'has no blocks'}."


class PeakMemory:
    """The peak since `start`: of the GPU's allocator, or of the process where there is none."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._device = device
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(device)

    def __str__(self) -> str:
        if self._cuda:
            return f"{megabytes(torch.cuda.max_memory_allocated(self._device))} of GPU memory"
        peak = _process_peak()
        return "unknown" if peak is None else f"{megabytes(peak)} of the whole process"


def _process_peak() -> int | None:
    """The largest resident size of this process so far, in bytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def megabytes(n: float) -> str:
    """`512 MB`, `1.5 GB`."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
