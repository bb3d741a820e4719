"""Networks that were written for sampling change tensors in place, which gradients cannot go back through.

Flux, for one, adds to its image and text with `img += ...` after a normalisation has saved `img` for its backward
pass. Python binds the name anew in such a statement, so computing it out of place has the same result. Torch itself
cannot tell `x += y` from `x.add_(y)`, not even in a TorchFunctionMode: only the method that Python calls differs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

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
