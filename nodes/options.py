"""Options nodes: what a node leaves to its `options` socket, so that its own face stays small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from .host.node_choices import check_choices


class OptionsNode(io.ComfyNode):
    """A node whose inputs are its output: {name: value}, over those of the options node before it. An input that the
    prompt leaves out is not there and has the default of whoever reads the options."""

    @classmethod
    def execute(cls, options: Mapping[str, Any] | None = None, **values) -> io.NodeOutput:
        check_choices(cls)
        return io.NodeOutput({**(options or {}), **values})


def schema(
    node_id: str, display_name: str, kind: Any, inputs: list[Any], *, category: str, description: str,
    search_aliases: list[str], for_node: str, chained: bool = True,
) -> io.Schema:  # fmt: skip
    """The schema of an options node. kind: the type of its socket; chained: whether one can follow another."""
    before = kind.Input("options", optional=True, tooltip="More options nodes, one after the other.")
    return io.Schema(
        node_id=node_id, display_name=display_name, category=category, description=description,
        search_aliases=[*search_aliases, "options", "advanced", "dco"],
        inputs=[*inputs, before] if chained else inputs,
        outputs=[kind.Output(display_name="options", tooltip=f"For `options` of {for_node}.")],
        hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
    )  # fmt: skip
