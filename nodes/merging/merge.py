"""My subject in my style: one LoRA from several."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ...dco_core.data.pixels import as_image
from ...dco_core.drawing.compatibility_plot import compatibility_plot
from ...dco_core.errors import DCOError, printable_lines
from ...dco_core.lora import LazyLayers, LoraLayer, LoraWeights, from_tensors, to_tensors, write_lora
from ...dco_core.lora.arithmetic import rank_header
from ...dco_core.lora.state_dict import DTYPES
from ...dco_core.merging import (
    ErrorReport,
    MergeMethod,
    ZipLora,
    blocks_for,
    compare,
    merge_with,
)
from ...dco_core.merging.report import carried
from ...dco_core.training.zip_lora import ZipSettings
from ..host.files import new_lora_path, shown_name
from ..host.node_choices import check_choices
from ..host.progress import NodeText, raise_if_interrupted
from ..options import Face, OptionsNode
from . import inputs as merge_inputs


class DCOLoRAArithmeticMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DCOLoRAArithmeticMerge", display_name="LoRA Arithmetic Merge (DCO)",
            category="model/merging",
            description="dW = weight_1 dW_1 + weight_2 dW_2 + ...: the exact weighted sum of any number of LoRAs, "
            "of any rank and alpha, as one LoRA. The paper so adds a subject and a style, both trained with DCO, "
            "without further training (Sec. 5.3).",
            search_aliases=[
                "merge lora", "lora merge", "combine lora", "resize lora", "my subject in my style",
                "ziplora", "ties", "dare", "dco",
            ],
            is_output_node=True, hidden=[io.Hidden.unique_id, io.Hidden.dynprompt], inputs=merge_inputs.own(),
            outputs=merge_inputs.outputs(),
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, files="", **_) -> str:
        return merge_inputs.state_of_files(files or "")

    @classmethod
    def execute(cls, loras, weights, name, method=None, files="", options=None) -> io.NodeOutput:
        check_choices(cls)
        values = merge_inputs.settled(options)
        inputs = [from_tensors(lora, key) for key, lora in loras.items() if lora is not None]
        factors = merge_inputs.parse_weights(weights, len(inputs))
        named, more = merge_inputs.read_files(files)
        inputs, factors = inputs + named, factors + more
        merge_inputs.check_terms(factors)
        path = new_lora_path(name) if name.strip() else None
        blocks = blocks_for(values["block_weights"], inputs)
        wanted, chosen = merge_inputs.parse_size(values["size"]), merge_inputs.parse_method(method)
        dtype, lines = DTYPES[values["save_dtype"]], []
        if chosen is None:
            chosen, text = _zipped(inputs, factors, method)
            lines.append(text)
        progress = NodeText(cls)
        if values["compare"]:
            progress.progress(f"Comparing {len(inputs)} LoRAs ...")
        table, picture = _compared(inputs, factors) if values["compare"] else ("", _blank())

        progress.progress(f"Merging {len(inputs)} LoRAs ...")
        report = ErrorReport()
        rounding = None if dtype == torch.float32 else dtype
        merged = merge_with(
            chosen, [_interruptible(lora) for lora in inputs], factors, blocks, wanted, rounding, report
        )
        layers = dict(merged.layers)
        header = merged.metadata | rank_header(report.ranks()) | report.header()
        merged = LoraWeights(layers, merged.other, header, merged.paths, merged.vectors)
        lines.insert(
            0,
            f"Merged {len(inputs)} LoRAs with weights {', '.join(f'{w:g}' for w in factors)}: "
            f"{len(layers)} modules, {chosen.name}.",
        )
        if path is not None:
            write_lora(path, merged, keys=values["save_keys"], dtype=dtype)
            lines.append(f"Saved {shown_name(path)}. Press R to see it in the LoRA lists.")
        lines += [report.text(), *carried(merged)]
        text = printable_lines("\n".join(lines))
        return io.NodeOutput(to_tensors(merged, dtype=dtype), text, picture, table, ui={"text": [text]})


class DCOMergeOptions(OptionsNode):
    FACE = Face(
        "DCOMergeOptions", "Merge Options (DCO)", merge_inputs.OPTIONS, merge_inputs.more,
        "How large LoRA Arithmetic Merge makes the sum, weights by block, how the file is saved, and whether the LoRAs "
        "are compared.",
        ["resize lora", "block weights"], "model/merging", "LoRA Arithmetic Merge", chained=False,
    )  # fmt: skip


def _interruptible(lora: LoraWeights) -> LoraWeights:
    """The LoRA with layers that look for a cancel when they are read."""

    def layer(key: str) -> LoraLayer:
        raise_if_interrupted()
        return lora.layers[key]

    lazy = LazyLayers(lora.layers, layer)
    return LoraWeights(lazy, lora.other, lora.metadata, lora.paths, lora.vectors)


def _zipped(inputs: Sequence[LoraWeights], weights: Sequence[float], options) -> tuple[MergeMethod, str]:
    """ZipLoRA's mergers, trained on the MODEL, and a report on them."""
    from ..host.merging import zip_mergers_of

    if len(inputs) != 2:
        raise DCOError(
            f"ZipLoRA merges a subject and a style LoRA, in this order, but there are {len(inputs)}."
        )
    settings = ZipSettings(
        options["steps"], options["learning_rate"], options["similarity"], options["zip_seed"]
    )
    found = zip_mergers_of(
        options["model"], inputs, (weights[0], weights[1]),
        (options["subject_latent"], options["style_latent"]),
        (options["subject_prompt"], options["style_prompt"]), settings,
    )  # fmt: skip
    return ZipLora(found.mergers), found.text()


def _compared(inputs: Sequence[LoraWeights], weights: Sequence[float]) -> tuple[str, Tensor]:
    """Tables and one picture of all pairs of LoRAs that are used."""
    used = [i for i, weight in enumerate(weights) if weight]
    tables, pictures = [], []
    for a, b in itertools.combinations(used, 2):
        title = f"LoRA {a + 1} (weight {weights[a]:g}) and LoRA {b + 1} (weight {weights[b]:g})"
        found = compare(_interruptible(inputs[a]), _interruptible(inputs[b]), (weights[a], weights[b]))
        tables.append(f"{title}: {found.table()}")
        pictures.append(compatibility_plot(found, title))
    if not pictures:
        return "One LoRA alone: nothing to compare.", _blank()
    return "\n\n".join(tables), as_image(np.concatenate(pictures))[None]


def _blank() -> Tensor:
    return torch.ones(1, 64, 64, 3)


NODES = [DCOLoRAArithmeticMerge, DCOMergeOptions]
