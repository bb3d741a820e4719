"""Options nodes: what a node leaves to its `options` socket, so that its own face stays small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from comfy_api.latest import io

from .host.node_choices import check_choices


class Face(NamedTuple):
    """What an options node shows. socket: the type of `options`; of: the node that reads them; chained: whether one can
    follow another."""

    node_id: str
    display_name: str
    socket: Any
    inputs: Callable[[], list[Any]]
    description: str
    search_aliases: Sequence[str]
    category: str
    of: str
    chained: bool = True


class OptionsNode(io.ComfyNode):
    """A node whose inputs are its output: {name: value}, over those of the options node before it. An input that the
    prompt leaves out is not there and has the default of whoever reads the options."""

    FACE: ClassVar[Face]

    @classmethod
    def define_schema(cls) -> io.Schema:
        face = cls.FACE
        before = face.socket.Input("options", optional=True, tooltip="More options nodes, one after the other.")
        return io.Schema(
            node_id=face.node_id, display_name=face.display_name, category=face.category,
            description=face.description, search_aliases=[*face.search_aliases, "options", "advanced", "dco"],
            inputs=[*face.inputs(), *([before] if face.chained else [])],
            outputs=[face.socket.Output(display_name="options", tooltip=f"For `options` of {face.of}.")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )  # fmt: skip

    @classmethod
    def execute(cls, options: Mapping[str, Any] | None = None, **values) -> io.NodeOutput:
        check_choices(cls)
        return io.NodeOutput({**(options or {}), **values})


def dynamic(name: str, options: Mapping[str, Sequence[Any]], tooltip: str, **more: Any) -> io.DynamicCombo.Input:
    """A choice, and the inputs that belong to each option."""
    keys = [io.DynamicCombo.Option(key, list(inputs)) for key, inputs in options.items()]
    return io.DynamicCombo.Input(name, options=keys, tooltip=tooltip, **more)
