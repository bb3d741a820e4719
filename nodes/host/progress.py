"""Progress bar, text on nodes, and interrupt. Long work runs in the node's own thread, where the host's context
is."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
from server import PromptServer  # the host's

from ...dco_core.errors import printable_lines


def raise_if_interrupted() -> None:
    """Raise the host's InterruptProcessingException, a BaseException, if the user pressed cancel. The progress bar
    checks only now and then; this always does."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def progress_bar(total: int) -> comfy.utils.ProgressBar:
    return comfy.utils.ProgressBar(total)


def show_text(node_id: str | None, text: str) -> None:
    """Show a text on a running node, before it has any output."""
    if node_id is not None:
        PromptServer.instance.send_progress_text(printable_lines(text), node_id)
