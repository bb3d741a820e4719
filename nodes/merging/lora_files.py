"""LoRA files in the graph."""

from __future__ import annotations

import math
from collections.abc import Mapping

from comfy_api.latest import io

from ...dco_core.errors import parsed_json, printable_lines
from ...dco_core.lora import LazyLayers, from_bundle, read_lora, read_tensors, to_tensors
from ...dco_core.lora.file import has_peft_configuration
from ...dco_core.suggested_scales import PAPER
from ..host import files


class DCOLoadLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOLoadLoRA", display_name="Load LoRA File (DCO)", category="model/loaders",
            description="Reads a LoRA file as LORA_MODEL, for reward guidance and merging, with what its header tells: "
            "the trigger words and the guidance scales to begin with. It does not touch any model.",
            search_aliases=["lora loader", "load lora", "lora_model", "dco"],
            inputs=[
                io.Combo.Input(
                    "lora_name", options=files.lora_names(),
                    tooltip="The file. A LoRA that was trained just now appears after pressing R.",
                ),
            ],
            has_intermediate_output=True,
            outputs=[
                io.LoraModel.Output(
                    display_name="lora", tooltip="The LoRA, with its learned tokens and header.",
                ),
                io.String.Output(
                    display_name="trigger_words",
                    tooltip="What to write in a prompt; <dog> is a learned token.",
                ),
                io.Float.Output(display_name="w_rg", tooltip="A reward guidance scale to begin with."),
                io.Float.Output(display_name="w_text", tooltip="A text guidance scale (cfg) to begin with."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, lora_name: str) -> str:
        return files.state_of([files.lora_path(lora_name)])

    @classmethod
    def execute(cls, lora_name: str) -> io.NodeOutput:
        path = files.lora_path(lora_name)
        lora = read_lora(path)
        # LoHa, LoKr and the like stay as they are: as plain pairs they can be a hundred times as large. Not those of
        # peft, whose strength stands in a configuration that the host does not read.
        stay = isinstance(lora.layers, LazyLayers) and not has_peft_configuration(path, lora.metadata)
        tensors = read_tensors(path) if stay else to_tensors(lora)
        header = lora.metadata
        trigger = header.get("modelspec.trigger_phrase") or ", ".join(
            f"<{n}>" for n in from_bundle(lora.other)
        )
        w_rg, w_text = (
            _number(header.get(name), default)
            for name, default in (("dco.w_rg", PAPER.w_rg), ("dco.w_text", PAPER.w_text))
        )
        lines = [
            f"Trigger words: {trigger}." if trigger else "No trigger words in its header.",
            f"To begin with: w_rg {w_rg:g}, w_text {w_text:g}.",
        ]
        part = _stopped_at(header)
        if part:
            lines.insert(0, f"Training was stopped {part}: run it again for the whole LoRA.")
        text = printable_lines("\n".join(lines))
        return io.NodeOutput(tensors, trigger, w_rg, w_text, ui={"text": [text]})


def _stopped_at(header: Mapping[str, str]) -> str:
    """ "at step 99 of 2000" for a LoRA whose training was stopped, else ""."""
    try:
        config = parsed_json(header["dco.config"])
        done, asked = int(header["ss_steps"]), int(config["steps"])
    except (KeyError, ValueError, TypeError):
        return ""
    return f"at step {done} of {asked}" if done < asked else ""


def _number(text: str | None, default: float) -> float:
    """A finite number from a header; anything else is the default: headers are other people's text."""
    try:
        value = float(text) if text is not None else default
    except ValueError:
        return default
    return value if math.isfinite(value) else default


NODES = [DCOLoadLoRA]
