"""Choices that a node has not: the host drops them, with all that belongs to them, and says nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from comfy_api.latest import io

from ...dco_core.errors import DCOError, shortened


def check_choices(node: type[io.ComfyNode]) -> None:
    """DCOError for a value of a dynamic choice (io.DynamicCombo) that is no option of it: of an older workflow, or
    misspelt in a prompt. Call it in `execute` of a node with the hidden inputs unique_id and dynprompt."""
    dynprompt = getattr(node.hidden, "dynprompt", None)
    if dynprompt is None:  # called outside of a prompt
        return
    sent = dynprompt.get_node(node.hidden.unique_id)["inputs"]
    for name, options, value in _choices(node.define_schema().inputs, sent):
        if value not in options:
            raise DCOError(
                f"{name} {shortened(value)} is unknown: choose {', '.join(options[:-1])} or {options[-1]}."
            )


def _choices(
    inputs: Iterable[Any], sent: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, list[str], Any]]:
    """(name, options, value) of every choice that was sent, and of those inside of what it chooses."""
    for entry in inputs:
        name = prefix + entry.id
        if isinstance(entry, io.DynamicCombo.Input) and name in sent:
            yield entry.id, [option.key for option in entry.options], sent[name]
            for option in entry.options:
                if option.key == sent[name]:
                    yield from _choices(option.inputs, sent, f"{name}.")
