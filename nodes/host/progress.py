"""Progress bar and interrupt. Long work runs in the node's own thread, where the host's context is."""

from __future__ import annotations

import comfy.model_management
import comfy.utils

Interrupted = comfy.model_management.InterruptProcessingException  # a BaseException: clean up in `finally`


def raise_if_interrupted() -> None:
    """Raise Interrupted if the user pressed cancel. The progress bar checks only now and then; this always does."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def progress_bar(total: int) -> comfy.utils.ProgressBar:
    return comfy.utils.ProgressBar(total)
