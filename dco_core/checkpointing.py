"""Gradient checkpointing by block: of each block only its inputs are kept for the backward pass, which runs the
block once more. It trades about a third more time for most of a network's activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from .errors import DCOError
from .out_of_place import out_of_place

_CHAINS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SWITCHES = ("training", "_disable_adapters")  # of dropout and of a peft layer


def checkpoint_blocks(network: nn.Module) -> int:
    """Checkpoint every block of `network`, in place, and return how many there are. Call it after LoRA layers were
    injected; without gradients the blocks run as before.

    A block is the outermost module with two or more weighted layers that holds no chain (ModuleList, Sequential)
    of such modules itself: a residual block, a transformer block, whatever the family calls it.
    While gradients are wanted, blocks run under `out_of_place`. The first such run raises DCOError for a block that
    changes saved tensors in another way, because its gradients would be wrong without a word.
    """
    sound: set[type[nn.Module]] = set()
    found = [block for block in blocks(network) if not hasattr(block.forward, "checkpointed")]
    for block in found:
        block.forward = _checkpointed(block, sound)
    return len(found)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network, as `checkpoint_blocks` sees them."""
    for child in module.children():
        if _is_block(child):
            yield child
        elif not _is_adapted(child):
            yield from blocks(child)


def _is_block(module: nn.Module) -> bool:
    return _is_large(module) and not any(
        _is_large(member)
        for chain in module.modules()
        if isinstance(chain, _CHAINS)
        for member in chain.children()
    )


def _is_large(module: nn.Module) -> bool:
    return not isinstance(module, _CHAINS) and _weighted_layers(module) > 1


def _is_adapted(module: nn.Module) -> bool:
    """A layer in its LoRA."""
    return "base_layer" in module._modules


def _weighted_layers(module: nn.Module) -> int:
    if _is_adapted(module):
        return 1
    own = any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    return own + sum(map(_weighted_layers, module.children()))


def _checkpointed(block: nn.Module, sound: set[type[nn.Module]]) -> Callable[..., Any]:
    plain = block.forward
    dropouts = [m for m in block.modules() if isinstance(m, _DropoutNd)]
    switchable = [m for m in block.modules() if m in dropouts or hasattr(m, "_disable_adapters")]

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        names = list(kwargs)

        def call(values: Sequence[Any]) -> Any:
            positional, named = values[: len(args)], values[len(args) :]
            with out_of_place():
                return plain(*positional, **dict(zip(names, named, strict=True)))

        values = [*args, *kwargs.values()]
        if type(block) not in sound:
            with _switched(_states(dropouts, training=False)):
                _refuse_changed_tensors(block, call, values)
            sound.add(type(block))

        # By the time of the backward pass others have changed what the block reads: switches, and the host's
        # options, a dictionary that says which block is running.
        switches = _states(switchable)
        options = [dict(value) if isinstance(value, dict) else None for value in values]
        again = False

        def run(*values: Any) -> Any:
            nonlocal again
            if again:
                values = tuple(v if o is None else dict(o) for v, o in zip(values, options, strict=True))
            again = True
            with _switched(switches):
                return call(values)

        random = any(dropout.training and dropout.p > 0 for dropout in dropouts)
        return checkpoint(run, *values, use_reentrant=False, preserve_rng_state=random)

    forward.checkpointed = True  # type: ignore[attr-defined]
    return forward


def _states(modules: Sequence[nn.Module], **changed: bool) -> list[tuple[nn.Module, dict[str, bool]]]:
    return [(m, {s: vars(m)[s] for s in _SWITCHES if s in vars(m)} | changed) for m in modules]


@contextmanager
def _switched(states: Sequence[tuple[nn.Module, dict[str, bool]]]) -> Iterator[None]:
    """Inside, the modules' switches stand as `states` says."""
    before = _states([module for module, _ in states])
    try:
        for module, switches in states:
            vars(module).update(switches)
        yield
    finally:
        for module, switches in before:
            vars(module).update(switches)


def _refuse_changed_tensors(
    block: nn.Module, call: Callable[[Sequence[Any]], Any], values: Sequence[Any]
) -> None:
    """DCOError if the block changes its arguments, or tensors after autograd saved them. Without checkpointing
    autograd would say so itself; but it does not watch tensors that pass through the hooks of checkpointing."""
    seen: list[tuple[Tensor, int]] = []

    def watch(tensor: Tensor) -> Tensor:
        if not tensor.is_inference():
            seen.append((tensor, tensor._version))
        return tensor

    def with_gradient(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return watch(value.detach().clone().requires_grad_() * 1)  # no leaf: leaves refuse in-place changes

    given = [dict(value) if isinstance(value, dict) else with_gradient(value) for value in values]
    with saved_tensors_hooks(watch, lambda tensor: tensor):
        call(given)
    if any(tensor._version != version for tensor, version in seen):
        raise DCOError(
            f"The blocks of this network ({type(block).__name__}) change tensors in place that their gradient "
            "needs: it cannot be trained with gradient checkpointing, switch that off."
        )
