"""The inputs and outputs of the LoRA Arithmetic Merge, and what their values mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from ...dco_core.errors import DCOError
from ...dco_core.lora import LoraWeights, read_lora
from ...dco_core.lora.state_dict import DTYPES
from ...dco_core.merging import PRESETS, Dare, Exact, MergeMethod, NPLora, Size, Ties, parse_file_weight
from ..host import files
from ..options import dynamic

OPTIONS = io.Custom("DCO_MERGE_OPTIONS")
EXACT_SIZE, BY_RANK, BY_ERROR = "exact", "by rank", "by error"
EXACT, ZIP, TIES, DARE, NP = "exact sum", "ZipLoRA", "TIES", "DARE", "NP-LoRA"


def parse_weights(text: str, count: int) -> list[float]:
    """ "1, -0.5" -> [1.0, -0.5]; DCOError unless it holds `count` finite numbers. Without a connected LoRA, whose
    weights they would be, they mean nothing."""
    if not count:
        return []
    parts = [part for part in text.replace(";", ",").split(",") if part.strip()]
    try:
        weights = [float(part) for part in parts]
    except ValueError:
        raise DCOError(
            f'weights "{text}" are not numbers: write one per LoRA, separated by commas, like "1, 0.8".'
        ) from None
    if not all(map(math.isfinite, weights)):
        raise DCOError(f'weights "{text}" are not all finite: write numbers such as "1, 0.8".')
    if len(weights) != count:
        raise DCOError(
            f'weights "{text}" are {len(weights)}, but {count} LoRAs are connected: write one number for each.'
        )
    return weights


def check_terms(weights: Sequence[float]) -> None:
    """DCOError unless there is something to add up: weights of all LoRAs, connected or named."""
    if not weights:
        raise DCOError("There is no LoRA to merge: connect one to loras, or name one in files.")
    if not any(weights):
        raise DCOError(
            f"The weights {', '.join(f'{w:g}' for w in weights)} are all 0: the sum would be empty. Give at least one "
            "LoRA a weight."
        )


def parse_files(text: str) -> list[tuple[str, str, float]]:
    """The input `files` -> [(what an error calls the line, name, weight)], empty lines left out.

    Raises DCOError for a weight that is no finite number. Whether a name is one of a file is for `files.named_lora`."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"files, line {number}"
        try:
            name, weight = parse_file_weight(line.strip(), lambda part: files.is_lora(part.strip()))
        except DCOError as error:
            raise DCOError(f"{where}: {error}") from None
        if not math.isfinite(weight):
            raise DCOError(f'{where}: the weight of "{name}" is {weight}: write a finite number such as 0.8.')
        found.append((where, name.strip(), weight))
    return found


def read_files(text: str) -> tuple[list[LoraWeights], list[float]]:
    """The LoRAs that the input `files` names, and their weights. DCOError, with the line, for one that cannot be."""
    loras, weights = [], []
    for where, name, weight in parse_files(text):
        try:
            loras.append(read_lora(files.named_lora(name)))
        except DCOError as error:
            raise DCOError(f"{where}: {error}") from error
        weights.append(weight)
    return loras, weights


def state_of_files(text: str) -> str:
    """Changes with the files that are named. Mistakes are for read_files to tell."""
    try:
        return files.state_of(files.named_lora(name) for _, name, _ in parse_files(text))
    except (DCOError, OSError):
        return "unknown"


def parse_size(size: Mapping[str, Any] | None) -> Size:
    """The DynamicCombo `size`; None, as in prompts of older versions, is exact."""
    choice = (size or {}).get("size", EXACT_SIZE)
    if size is None or choice == EXACT_SIZE:
        return Size()
    if choice == BY_RANK:
        return Size(rank=size["rank"])
    if choice == BY_ERROR:
        return Size(max_error=size["max_error"])
    raise DCOError(f"size {choice!r} is unknown: choose {EXACT_SIZE}, {BY_RANK} or {BY_ERROR}.")


def parse_method(method: Mapping[str, Any] | None) -> MergeMethod | None:
    """The DynamicCombo `method`; None for ZipLoRA, which must be trained first."""
    options = method or {}
    choice = options.get("method", EXACT)
    if choice == EXACT:
        return Exact()
    if choice == TIES:
        return Ties(options["density"])
    if choice == DARE:
        return Dare(options["drop"], options["drop_seed"])
    if choice == NP:
        share = options["projection"]
        return NPLora(float("inf") if share >= 1 else share / (1 - share))
    if choice == ZIP:
        return None
    raise DCOError(f"method {choice!r} is unknown: choose one of {', '.join((EXACT, ZIP, TIES, DARE, NP))}.")


def _size() -> io.DynamicCombo.Input:
    rank = io.Int.Input(
        "rank", default=64, min=1, max=4096,
        tooltip="No layer above this rank. The report tells |error| / |dW| by block and in total.",
    )  # fmt: skip
    error = io.Float.Input(
        "max_error", default=0.05, min=0.0, max=0.99, step=0.01, round=0.0001,
        tooltip="|error| / |dW| of no layer above this; each gets the smallest rank that keeps it.",
    )  # fmt: skip
    return dynamic(
        "size", {EXACT_SIZE: [], BY_RANK: [rank], BY_ERROR: [error]}, optional=True,
        tooltip="exact: the rank is the sum of the ranks. Smaller: the best of that rank, with its error told.",
    )  # fmt: skip


def _method() -> io.DynamicCombo.Input:
    zip_inputs = [
        io.Model.Input("model", tooltip="The base model of both LoRAs. It is not changed."),
        io.Conditioning.Input("subject_prompt", tooltip="A prompt of the first LoRA, encoded."),
        io.Latent.Input("subject_latent", tooltip="Reference images of the first LoRA, encoded by the VAE."),
        io.Conditioning.Input("style_prompt", tooltip="A prompt of the second LoRA, encoded."),
        io.Latent.Input("style_latent", tooltip="Reference images of the second LoRA, encoded by the VAE."),
        io.Int.Input("steps", default=100, min=1, max=10000, tooltip="Steps of Adam; the paper: 100."),
        io.Float.Input(
            "learning_rate", default=0.01, min=1e-6, max=1.0, step=0.001, round=1e-6,
            tooltip="The paper: 0.01.",
        ),
        io.Float.Input(
            "similarity", default=0.01, min=0.0, max=10.0, step=0.001, round=1e-6,
            tooltip="lambda: how strongly both are kept from using the same columns; the paper: 0.01.",
        ),
        io.Int.Input("zip_seed", default=0, min=0, max=0xFFFFFFFF, tooltip="Seed of noise and noise levels."),
    ]  # fmt: skip
    density = io.Float.Input(
        "density", default=0.2, min=0.001, max=1.0, step=0.01,
        tooltip="Share of each LoRA's entries that stay, the largest ones; the paper: 0.2.",
    )  # fmt: skip
    drop = [
        io.Float.Input(
            "drop", default=0.5, min=0.0, max=0.99, step=0.01,
            tooltip="Share of entries that are dropped at random; the others are scaled up.",
        ),
        io.Int.Input("drop_seed", default=0, min=0, max=0xFFFFFFFF, tooltip="Seed of what is dropped."),
    ]  # fmt: skip
    projection = io.Float.Input(
        "projection", default=0.5, min=0.0, max=1.0, step=0.05,
        tooltip="How much of the first LoRA (the subject) along the second's (the style's) directions is taken out: "
        "mu / (1 + mu) of the paper. 0 is the plain sum, 1 the hard projection.",
    )  # fmt: skip
    return dynamic(
        "method", {EXACT: [], ZIP: zip_inputs, TIES: [density], DARE: drop, NP: [projection]}, optional=True,
        tooltip="The exact sum is what DCO's paper uses (Sec. 5.3); the others are methods it is compared with.",
    )  # fmt: skip


def own() -> list[Any]:
    """The node's own, in a permanent order: saved workflows keep values by position. New ones go last and are
    optional."""
    loras = io.Autogrow.TemplatePrefix(
        io.LoraModel.Input("lora", tooltip="A LoRA for the same base model."),
        prefix="lora_",
        min=0,  # files may be all there is
        max=20,
    )
    return [
        io.Autogrow.Input("loras", template=loras, tooltip="LoRAs to add up, in order."),
        io.String.Input(
            "weights", default="1, 1",
            tooltip="One weight per connected LoRA, separated by commas; negative ones subtract.",
        ),
        io.String.Input(
            "name", default="my_merge",
            tooltip="Name of the merged LoRA's file in output/loras; a number is added. Empty: it is not saved.",
        ),
        _method(),
        io.String.Input(
            "files", default="", multiline=True, optional=True,
            tooltip="LoRA files to add up after the connected LoRAs, one a line, by their name in the LoRA lists, each "
            "with its weight: my_style.safetensors=0.8. Without a weight it is 1.",
        ),
        OPTIONS.Input("options", optional=True, tooltip="Everything else, from Merge Options (DCO)."),
    ]  # fmt: skip


def more() -> list[Any]:
    """Those of the options node."""
    return [
        _size(),
        io.String.Input(
            "block_weights", default="", multiline=True, optional=True,
            tooltip="Further weights by block, one a line: up = 0.5, or for the first LoRA alone 1: down 4 = 0, or by "
            f"pattern *_attn2_* = 0.8, or a preset: {', '.join(PRESETS)}. The last line that fits counts.",
        ),
        io.Combo.Input(
            "save_dtype", options=list(DTYPES), default="fp32", optional=True,
            tooltip="Precision of the merged LoRA. fp32 keeps it exact; fp16 and bf16 are half as large.",
        ),
        io.Combo.Input(
            "save_keys", options=["kohya", "diffusers"], default="kohya", optional=True,
            tooltip="Names of the layers in the saved file. kohya's are read by ComfyUI and most tools, diffusers' by "
            "diffusers alone.",
        ),
        io.Boolean.Input(
            "compare", default=True, optional=True,
            tooltip="Measure whether the LoRAs get along: compatibility and compatibility_report.",
        ),
    ]  # fmt: skip


def outputs() -> list[Any]:
    return [
        io.LoraModel.Output(display_name="lora", tooltip="The merged LoRA."),
        io.String.Output(
            display_name="report", tooltip="What was merged, how exactly, and where it was saved."
        ),
        io.Image.Output(
            display_name="compatibility",
            tooltip="Cosines, cross-talk and norms of each pair of LoRAs, as bars.",
        ),
        io.String.Output(
            display_name="compatibility_report", tooltip="The same as a table by block, with advice."
        ),
    ]


def settled(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options by name, with defaults for what the options node or a prompt leaves out."""
    return {"size": None} | {i.id: i.default for i in more() if hasattr(i, "default")} | dict(options or {})
