"""Choices that a node has not: the host drops them, with all that belongs to them, and says nothing."""

from __future__ import annotations

from comfy_api.latest import io

from ...dco_core.errors import DCOError, shortened


def check_choices(node: type[io.ComfyNode]) -> None:
    """DCOError for a value of a dynamic choice (io.DynamicCombo) that is no option of it: of an older workflow, or
    misspelt in a prompt. Call it in `execute` of a node with the hidden inputs unique_id and dynprompt."""
    dynprompt = getattr(node.hidden, "dynprompt", None)
    if dynprompt is None:  # called outside of a prompt
        return
    sent = dynprompt.get_node(node.hidden.unique_id)["inputs"]
    for entry in node.define_schema().inputs:
        if isinstance(entry, io.DynamicCombo.Input) and entry.id in sent:
            options, value = [option.key for option in entry.options], sent[entry.id]
            if value not in options:
                raise DCOError(
                    f"{entry.id} {shortened(value)} is unknown: choose {', '.join(options[:-1])} or {options[-1]}."
                )
