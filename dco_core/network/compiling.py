"""torch.compile by block: steps of a large network on a GPU take less time, after a first one that takes minutes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import nn

from ..errors import DCOError
from .gradient_checkpointing import blocks

# Blocks of one class share their code, so every width, shape and switch counts against one limit, which by default
# is 8: beyond it torch would quietly not compile.
_VARIANTS = 256
_LIMIT = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"


def compile_blocks(network: nn.Module, backend: str | Callable = "inductor") -> int:
    """Compile every block (see checkpointing.py) of `network`, in place, and return how many there are. Call it
    after LoRA layers were injected, and before checkpoint_blocks. Equal blocks share their code.

    A block runs compiled from its first call on; where torch cannot compile on this machine (no C++ compiler, no
    Triton), that call raises DCOError.
    """
    found = list(blocks(network))
    for block in found:
        block.forward = _compiled(block, backend)
    return len(found)


def _compiled(block: nn.Module, backend: str | Callable) -> Callable[..., Any]:
    compiled = torch.compile(block.forward, backend=backend)

    def forward(*args: Any, **kwargs: Any) -> Any:
        try:
            with torch._dynamo.config.patch({_LIMIT: _VARIANTS}):
                return compiled(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise DCOError(
                f"torch.compile cannot compile {type(block).__name__} on this machine: switch it off. "
                f"({str(error).strip().splitlines()[0]})"
            ) from error

    return forward
