"""Gradients for the host's fused rotary embeddings.

Most families of the host turn to plain torch while training. Some do not (Ernie, Cosmos Predict2, Anima): they call
the fused operators of comfy_kitchen, which have no backward pass. Here these get one: that of the plain torch functions
with the same result, which comfy_kitchen itself falls back to. A registered formula changes no result and no sampling.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch
from torch import Tensor

_NAMES = (
    "apply_rope", "apply_rope1", "apply_rope_split_half", "apply_rope_split_half1", "rms_rope", "rms_rope1",
    "rms_rope_split_half", "rms_rope_split_half1",
)  # fmt: skip
_looked = False


def differentiable_rope() -> None:
    """Register a gradient for each fused operator of comfy_kitchen that has none. Call it outside inference mode."""
    global _looked
    if _looked:
        return
    _looked = True
    try:
        plain = importlib.import_module("comfy_kitchen.backends.eager.rope")
    except ImportError:  # an older host, which has no fused rope
        return
    for name in _NAMES:
        operator = getattr(torch.ops.comfy_kitchen, name, None)
        function = getattr(plain, name, None)
        if operator is None or function is None or _has_gradient(operator, name):
            continue
        try:
            _register(name, function)
        except (RuntimeError, ValueError) as error:
            logging.warning("DCO: no gradient for comfy_kitchen.%s: %s", name, error)


def _has_gradient(operator: Any, name: str) -> bool:
    x = torch.ones(1, 1, 1, 4, requires_grad=True)
    pair = (
        name.startswith("apply_rope")
        and not name.endswith("1")
        or name in ("rms_rope", "rms_rope_split_half")
    )
    given = [x, x] if pair else [x]
    scale = [torch.ones(4)] if name.startswith("rms") else []
    try:
        out = operator(*given, torch.ones(1, 1, 1, 2, 2, 2), *scale)
        torch.autograd.grad((out[0] if pair else out).sum(), x)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return False
    return True


def _register(name: str, function: Any) -> None:
    def keep(ctx, inputs, output) -> None:
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        ctx.rest = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.tensor_places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]

    def backward(ctx, *gradients):
        values = list(ctx.rest)
        for place, tensor in zip(ctx.tensor_places, ctx.saved_tensors, strict=True):
            values[place] = tensor.detach().requires_grad_(ctx.needs_input_grad[place])
        wanted = [i for i in ctx.tensor_places if ctx.needs_input_grad[i]]
        with torch.enable_grad():
            out = function(*values)
            out = out if isinstance(out, tuple) else (out,)
            used = [(o, g) for o, g in zip(out, gradients, strict=True) if g is not None and o.requires_grad]
            found = torch.autograd.grad(
                [o for o, _ in used], [values[i] for i in wanted], [g for _, g in used], allow_unused=True
            )
        by_place = dict(zip(wanted, found, strict=True))
        return tuple(by_place.get(i) for i in range(len(values)))

    torch.library.register_autograd(f"comfy_kitchen::{name}", backward, setup_context=keep)
