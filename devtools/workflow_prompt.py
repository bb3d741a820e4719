"""A UI-format workflow as the API prompt that the frontend would send."""

from __future__ import annotations

from typing import Any

_VIRTUAL = {"Note", "MarkdownNote", "PrimitiveNode", "Reroute"}
_CONTROL = {"fixed", "increment", "decrement", "randomize"}
_BUTTON = "IMAGEUPLOAD"  # has a value in the file, and is no input
_MUTED, _BYPASSED = 2, 4


def to_prompt(workflow: dict[str, Any]) -> dict[str, Any]:
    """{node id: {class_type, inputs}} of a workflow without reroutes, subgraphs and bypassed nodes.

    Widget values are positional; the node's `inputs` name the widgets in that order. A seed is followed by the
    value of its control ("fixed", "randomize", ...), which is no input.
    """
    links = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in _VIRTUAL or node.get("mode") == _MUTED:
            continue
        if node.get("mode") == _BYPASSED:
            raise ValueError(
                f"node {node['id']} ({node['type']}) is bypassed: only the frontend resolves that"
            )
        values = list(node.get("widgets_values") or [])
        inputs: dict[str, Any] = {}
        for slot in node.get("inputs", []):
            if "widget" in slot:
                value = values.pop(0)
                if slot["type"] != _BUTTON:
                    inputs[slot["widget"]["name"]] = value
                if values and values[0] in _CONTROL and "seed" in slot["widget"]["name"]:
                    values.pop(0)
            if slot.get("link") is not None:
                source, output = links[slot["link"]]
                inputs[slot["name"]] = [source, output]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
