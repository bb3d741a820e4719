"""Gradient checkpointing by block: of each block only its inputs are kept for the backward pass, which runs the
block once more. It trades about a third more time for most of a network's activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from ..errors import DCOError
from .out_of_place import can_keep, out_of_place, watched

_CHAINS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SWITCHES = ("training", "_disable_adapters")  # of dropout and of a peft layer


def checkpoint_blocks(network: nn.Module) -> int:
    """Checkpoint every block of `network`, in place, and return how many there are. Call it after LoRA layers were
    injected; without gradients the blocks run as before.

    A block is the outermost module with two or more weighted layers that holds no chain (ModuleList, Sequential)
    of such modules itself: a residual block, a transformer block, whatever the family calls it.
    While gradients are wanted, blocks run under `out_of_place`, and keep copies of saved tensors that they overwrite in
    another way. The first such run raises DCOError for a block that changes its arguments, because its gradients would
    be wrong without a word.
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
    overwritten: dict[tuple[bool, ...], frozenset[int]] = {}  # by which arguments need a gradient

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        names = list(kwargs)

        def call(values: Sequence[Any]) -> Any:
            positional, named = values[: len(args)], values[len(args) :]
            with out_of_place():
                return plain(*positional, **dict(zip(names, named, strict=True)))

        values = [*args, *kwargs.values()]
        needing = tuple(isinstance(value, Tensor) and value.requires_grad for value in values)
        if type(block) not in sound and needing not in overwritten:
            with _switched(_states(dropouts, training=False)):
                if not _overwritten(block, call, values, [True] * len(values)):
                    sound.add(type(block))  # whatever needs a gradient, and in every block of this class
                else:
                    overwritten[needing] = _overwritten(block, call, values, needing)
        copied = overwritten.get(needing, frozenset())

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
                if not copied:
                    return call(values)
                result, changed = watched(lambda: call(values), copied)
            if changed:
                raise _changes_in_place(block)
            return result

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


def _overwritten(
    block: nn.Module, call: Callable[[Sequence[Any]], Any], values: Sequence[Any], needing: Sequence[bool]
) -> frozenset[int]:
    """The places (see `watched`) of the tensors that the block changes after autograd saved them, where the arguments
    in `needing` need a gradient. DCOError if it changes its arguments, which are read again in the backward pass.
    Without checkpointing autograd would say so itself; but it does not watch tensors that pass through hooks."""

    def as_argument(value: Any, needs: bool) -> Any:
        if not isinstance(value, Tensor):
            return dict(value) if isinstance(value, dict) else value
        copy = value.detach().clone()
        if not needs or not value.is_floating_point():
            return copy
        return copy.requires_grad_() * 1  # no leaf: leaves refuse in-place changes

    given = [as_argument(value, needs) for value, needs in zip(values, needing, strict=True)]
    before = [v._version if isinstance(v, Tensor) and not v.is_inference() else None for v in given]
    _, places = watched(lambda: call(given), trial=True)
    changed = any(b is not None and v._version != b for v, b in zip(given, before, strict=True))
    if changed or (places and not can_keep()):
        raise _changes_in_place(block)
    return places


def _changes_in_place(block: nn.Module) -> DCOError:
    return DCOError(
        f"The blocks of this network ({type(block).__name__}) change tensors in place that their gradient needs: it "
        "cannot be trained with gradient checkpointing, switch that off."
    )
