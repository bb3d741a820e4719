"""Progress bar, text on nodes, and interrupt. Long work runs in the node's own thread, where the host's context
is."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
from comfy_api.latest import io
from server import PromptServer  # the host's

from ...dco_core.errors import printable_lines


def raise_if_interrupted() -> None:
    """Raise the host's InterruptProcessingException, a BaseException, if the user pressed cancel. The progress bar
    checks only now and then; this always does."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def progress_bar(total: int) -> comfy.utils.ProgressBar:
    return comfy.utils.ProgressBar(total)


class NodeText:
    """What stands on a running node: one line of progress, which the next one replaces, above messages that stay.
    The frontend keeps the last text alone, so each one that is sent holds both.

    node: a node with the hidden input unique_id; outside of a prompt nothing is shown."""

    def __init__(self, node: type[io.ComfyNode]):
        self._node_id = getattr(node.hidden, "unique_id", None)
        self._line, self._messages = "", list[str]()

    def progress(self, line: str) -> None:
        self._line = line
        self._send()

    def message(self, text: str) -> None:
        """Something that must not be lost behind progress: advice, a file that was saved."""
        if text:
            self._messages.append(text)
            self._send()

    def _send(self) -> None:
        if self._node_id is not None:
            text = "\n\n".join(filter(None, [self._line, *self._messages]))
            PromptServer.instance.send_progress_text(printable_lines(text), self._node_id)
