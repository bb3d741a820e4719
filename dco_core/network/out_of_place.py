"""Networks that were written for sampling change tensors in place, which gradients cannot go back through.

Flux, for one, adds to its image and text with `img += ...` after a normalisation has saved `img` for its backward
pass. Python binds the name anew in such a statement, so computing it out of place has the same result. Torch itself
cannot tell `x += y` from `x.add_(y)`, not even in a TorchFunctionMode: only the method that Python calls differs.

Of calls such as `x.addcmul_(y, z)` (LTX) nothing tells whether their result is used. They stay as they are, and
autograd gets copies of what they overwrite: KeptCopies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..errors import DCOError

Result = TypeVar("Result")

_PLAIN: dict[str, Callable[..., Tensor]] = {
    "__iadd__": torch.add,
    "__isub__": torch.sub,
    "__imul__": torch.mul,
}
_lock = threading.Lock()
_inside = 0  # threads and nested uses together
_here = threading.local()  # .depth: uses of this thread; others, which may sample meanwhile, see no change


@contextmanager
def out_of_place() -> Iterator[None]:
    """Inside, in this thread and wherever gradients are wanted, `x += y`, `x -= y` and `x *= y` make a new tensor of
    x's dtype. Calls such as `x.add_(y)` stay as they are: nothing tells whether their result is used."""
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            for name, plain in _PLAIN.items():
                setattr(Tensor, name, _statement(plain, getattr(torch._C.TensorBase, name)))
    _here.depth = getattr(_here, "depth", 0) + 1
    try:
        yield
    finally:
        _here.depth -= 1
        with _lock:
            _inside -= 1
            if _inside == 0:
                for name in _PLAIN:
                    delattr(Tensor, name)  # torch's own, of the base class, is back


def _statement(plain: Callable[..., Tensor], in_place: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def statement(x: Tensor, y: object) -> Tensor:
        if not getattr(_here, "depth", 0) or not torch.is_grad_enabled():
            return in_place(x, y)
        return plain(x, y).to(x.dtype)

    return statement


# The hooks of others on what autograd saves (checkpointing, the estimate of memory): torch asks the innermost alone.
_outer_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def can_keep() -> bool:
    """Whether this torch lets hooks on saved tensors call the ones around them (2.8 does)."""
    return _outer_hooks is not None


class KeptCopies:
    """Runs a network, and hands autograd copies of the tensors that the network overwrites after they were saved.

    The first run with gradients shows which ones these are, by their places in the order of saving. A network that
    overwrites none runs without hooks from then on; any other is run once more with the copies, and watched."""

    def __init__(self) -> None:
        self._places: frozenset[int] | None = None  # None: nothing has been seen yet

    def run(self, call: Callable[[], Result]) -> Result:
        """`call()`, which may run more than once: hand in one that does not change what it reads. DCOError where
        the places differ in every run."""
        if not torch.is_grad_enabled() or self._places == frozenset() or not can_keep():
            return call()
        for _ in range(3):
            places = self._places or frozenset()
            result, overwritten = watched(call, places)
            self._places = places | overwritten
            if not overwritten:
                return result
        raise DCOError(
            "This network changes tensors in place that its gradient needs, and not the same ones in every run: it "
            "cannot be trained."
        )


def watched(
    call: Callable[[], Result], copied: frozenset[int] = frozenset(), trial: bool = False
) -> tuple[Result, frozenset[int]]:
    """(call(), the places of the saved tensors that it changed later). Places count the tensors that autograd saves
    during the call; of those in `copied` it gets copies, which nobody can change. Hooks around the call are asked as
    if there were none here, except in a trial, of which nothing is kept. Gradients are right where no place is
    returned."""
    outer = None if trial or _outer_hooks is None else _outer_hooks(True)
    versions: dict[int, tuple[Tensor, int]] = {}
    saved = 0

    def pack(tensor: Tensor) -> Any:
        nonlocal saved
        place, saved = saved, saved + 1
        if place in copied:
            tensor = tensor.detach().clone()
        elif not tensor.is_inference():
            versions[place] = _version_of(tensor), tensor._version
        return tensor if outer is None else outer[0](tensor)

    with saved_tensors_hooks(pack, _as_it_is if outer is None else outer[1]):
        result = call()
    return result, frozenset(place for place, (now, then) in versions.items() if now._version != then)


def _version_of(tensor: Tensor) -> Tensor:
    """An empty tensor that shares the version counter of `tensor` and none of its memory."""
    alias = tensor.detach()
    alias.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


_NO_WAY_BACK = (
    "modified by an inplace operation",
    "no autograd formula",
    "derivative for",
    "is not differentiable",
)


@contextmanager
def clear_refusal() -> Iterator[None]:
    """Around a backward pass: DCOError where the network has an operation that gradients cannot go back through."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _NO_WAY_BACK):
            raise
        raise DCOError(
            "This network has an operation that gradients cannot go back through, so it cannot be trained here: train "
            f"on another model. (torch: {str(error).strip().splitlines()[0]})"
        ) from error
