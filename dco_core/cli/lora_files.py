"""`python -m dco_core merge`, `resize`, `convert`, `inspect`: LoRA files from the command line, layer by layer."""

from __future__ import annotations

import argparse
import collections
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..drawing import figure as charts
from ..drawing.compatibility_plot import compatibility_figure
from ..errors import DCOError, parsed_json, printable, printable_lines
from ..files.safetensors_file import TensorFile
from ..lora import (
    BUNDLE,
    LazyLayers,
    LoraWeights,
    from_bundle,
    open_lora,
    read_lora,
    tensors_sha256,
    write_lora,
)
from ..lora.arithmetic import rank_header
from ..lora.flux_keys import is_diffusers_flux, to_original_names
from ..lora.keys import split_key
from ..lora.state_dict import DTYPES
from ..merging import (
    PRESETS,
    Dare,
    ErrorReport,
    Exact,
    MergeMethod,
    NPLora,
    Size,
    Ties,
    block_of,
    blocks_for,
    compare,
    merge_with,
    parse_file_weight,
    reduce,
)
from ..merging.blocks import block_order
from ..merging.low_rank import norm
from ..merging.report import as_table, carried

METHODS: dict[str, Callable[[Mapping[str, Any]], MergeMethod]] = {
    "exact": lambda values: Exact(),
    "ties": lambda values: Ties(values["density"]),
    "dare": lambda values: Dare(values["drop"], values["seed"]),
    "np-lora": lambda values: NPLora(values["mu"]),
}
_SHOWN = (
    "modelspec.title", "ss_base_model_version", "dco.prediction", "modelspec.trigger_phrase", "dco.method", "dco.error",
    "dco.error_before",
)  # fmt: skip


def add_commands(commands) -> None:
    """Add the commands to the parser's `add_subparsers()`."""
    merging = commands.add_parser(
        "merge",
        help="add LoRAs up, exactly",
        description="dW = weight_1 dW_1 + weight_2 dW_2 + ..., exactly, or smaller with the error told. Files need not "
        "fit into memory.",
    )
    merging.add_argument("inputs", nargs="+", metavar="FILE=WEIGHT", help="a LoRA file; without =WEIGHT 1")
    _output(merging)
    _size(merging)
    merging.add_argument(
        "--blocks",
        default="",
        metavar="RULES",
        help='weights by block, such as "up = 0.5; 1: down = 0; 2: *_attn2_* = 0.8", or presets: '
        + ", ".join(PRESETS),
    )
    merging.add_argument("--method", choices=METHODS, default="exact", help="(exact)")
    merging.add_argument("--density", type=float, default=0.2, help="TIES: share of entries that stay (0.2)")
    merging.add_argument("--drop", type=float, default=0.5, help="DARE: share of entries that go (0.5)")
    merging.add_argument("--seed", type=int, default=0, help="DARE: of the draw (0)")
    merging.add_argument(
        "--mu", type=float, default=float("inf"), help="NP-LoRA: 0 is the plain sum, inf the hard projection"
    )
    merging.add_argument("--keys", choices=("kohya", "diffusers"), default="kohya", help="(kohya)")
    merging.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the file (fp32: exact)")
    _runs(merging, _merge)

    resizing = commands.add_parser("resize", help="a smaller LoRA, with the error told")
    resizing.add_argument("input", type=Path)
    _output(resizing)
    _size(resizing)
    resizing.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the file; left out: the input's, unless --max-error is finer than it",
    )
    _runs(resizing, _resize)

    converting = commands.add_parser("convert", help="the same LoRA with other keys")
    converting.add_argument("input", type=Path)
    converting.add_argument(
        "--to", choices=("kohya", "diffusers"), required=True, help="spelling of the keys"
    )
    _output(converting)
    converting.add_argument("--dtype", choices=DTYPES, help="left out: as it is")
    _runs(converting, _convert)

    inspecting = commands.add_parser(
        "inspect", help="what is in LoRA files; of two, whether they get along", description=inspect.__doc__
    )
    inspecting.add_argument("inputs", nargs="+", type=Path, metavar="FILE")
    inspecting.add_argument("--plot", type=Path, metavar="FILE.svg|png|pdf", help="chart of the comparison")
    _runs(inspecting, _inspect)


def _runs(parser: argparse.ArgumentParser, run: Callable[[Mapping[str, Any]], int]) -> None:
    parser.set_defaults(run=run, stopped="Stopped. Nothing was written.")


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, type=Path, help="the file to write, FILE.safetensors")


def _size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rank", type=int, metavar="R", help="no layer above this rank")
    parser.add_argument("--max-error", type=float, metavar="E", help="|error| / |dW| of no layer above this")


def _check_output(path: Path, inputs: Iterable[Path]) -> Path:
    """The path, if it can be written. DCOError for another kind of file, and for one of the inputs."""
    if path.suffix != ".safetensors" or path.is_dir():
        raise DCOError(f"--output {path} is no .safetensors file: write FILE.safetensors.")
    if any(path.exists() and other.exists() and path.samefile(other) for other in inputs):
        raise DCOError(f"--output {path} is one of the inputs, which would be lost: name another file.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what systems send before they kill
    return path


def _write(path: Path, lora: LoraWeights, keys: str, dtype: str, report: ErrorReport) -> None:
    """Write layer by layer; error and ranks go into the header last."""
    write_lora(path, lora, keys=keys, dtype=dtype, late=lambda: rank_header(report.ranks()) | report.header())


def _merge(values: Mapping[str, Any]) -> int:
    named = [parse_file_weight(text, lambda name: Path(name).is_file()) for text in values["inputs"]]
    inputs = [(Path(name), weight) for name, weight in named]
    output = _check_output(values["output"], [path for path, _ in inputs])
    size, method = Size(values["rank"], values["max_error"]), METHODS[values["method"]](values)
    weights = [weight for _, weight in inputs]
    if not any(weights):
        raise DCOError("All weights are 0: the sum would be empty. Give at least one LoRA a weight.")
    loras = [open_lora(path) for path, _ in inputs]
    blocks = blocks_for(values["blocks"], loras)
    report = ErrorReport()
    dtype = DTYPES[values["dtype"]]
    merged = merge_with(
        method, loras, weights, blocks, size, None if dtype == torch.float32 else dtype, report
    )
    _write(output, merged, values["keys"], values["dtype"], report)
    shown = ", ".join(f"{path.name} x {weight:g}" for path, weight in inputs)
    print(printable(f"Merged {shown} ({method.name}): {len(merged.layers)} layers. Saved {output}."))
    print("\n".join([printable_lines(report.text()), *map(printable, carried(merged))]))
    return 0


def _resize(values: Mapping[str, Any]) -> int:
    output = _check_output(values["output"], [values["input"]])
    size = Size(values["rank"], values["max_error"])
    if size.exact:
        raise DCOError("resize needs a size: --rank R, --max-error E, or both.")
    report = ErrorReport()
    name = values["dtype"] or default_dtype(values["input"], size)
    dtype = None if name == "fp32" else DTYPES[name]
    lora = open_lora(values["input"])
    if (earlier := lora.metadata.get("dco.error", "0")) != "0":  # dco.error will be of this step alone
        lora.metadata["dco.error_before"] = earlier
    smaller = reduce(lora, size, dtype, report)
    _write(output, smaller, "kohya", name, report)
    print(printable(f"Saved {output} ({name})."))
    print(printable_lines(report.text()))
    return 0


def default_dtype(path: Path, size: Size) -> str:
    """The input's, where all of it is of one that is fine enough for the wanted error; else fp32."""
    file = TensorFile(path)
    found = {file.meta(key).dtype for key in file if file.meta(key).dim() > 1 and not key.startswith(BUNDLE)}
    name = next((name for name, dtype in DTYPES.items() if {dtype} == found), "fp32")
    fine = size.max_error is None or size.max_error > 4 * torch.finfo(DTYPES[name]).eps
    return name if fine else "fp32"


def _convert(values: Mapping[str, Any]) -> int:
    output = _check_output(values["output"], [values["input"]])
    lora = read_lora(values["input"])
    if values["to"] == "kohya" and is_diffusers_flux(lora.layers):
        lora = to_original_names(lora)
    dtype = values["dtype"]
    if dtype is None and isinstance(lora.layers, LazyLayers):
        dtype = "fp32"
    write_lora(output, lora, keys=values["to"], dtype=dtype)
    print(printable(f"Saved {output} with {values['to']} keys: {len(lora.layers)} layers."))
    return 0


def _inspect(values: Mapping[str, Any]) -> int:
    paths = values["inputs"]
    if values["plot"]:
        charts.check_suffix(values["plot"])
        if len(paths) != 2:
            raise DCOError(f"--plot compares two files, but there are {len(paths)}.")
    print("\n\n".join(inspect(path) for path in paths))
    if len(paths) == 2:
        found = compare(open_lora(paths[0]), open_lora(paths[1]))
        print("\n" + printable_lines(found.table()))
        if values["plot"]:
            charts.save(compatibility_figure(found, f"{paths[0].name} and {paths[1].name}"), values["plot"])
    return 0


def inspect(path: Path) -> str:
    """What is in a LoRA file: adapter types, ranks, alphas, dtypes, learned tokens, header, and |dW| by block; of
    two files also whether they get along."""
    file, lora = TensorFile(path), open_lora(path)
    parts = collections.Counter(
        parsed[1] for key in file if not key.startswith(BUNDLE) and (parsed := split_key(key))
    )
    dtypes = collections.Counter(str(file.meta(key).dtype).removeprefix("torch.") for key in file)
    blocks: dict[str, list[tuple[float, int]]] = {}
    scales: collections.Counter[str] = collections.Counter()
    for key, layer in lora.layers.items():
        blocks.setdefault(block_of(key), []).append((norm(layer), layer.rank))
        scales[f"{layer.scale:g}"] += 1
    rows = {
        block: {
            "layers": str(len(found)),
            "ranks": _span([rank for _, rank in found]),
            "|dW|": f"{sum(n**2 for n, _ in found) ** 0.5:.4g}",
        }
        for block, found in sorted(blocks.items(), key=lambda item: block_order(item[0]))
    }
    lines = [
        f"{path}: {len(lora.layers)} layers, {path.stat().st_size / 2**20:.1f} MiB",
        f"sha256 of the tensors, as in the headers of merges: {tensors_sha256(lora)}",
        "parts: " + ", ".join(f"{part} x {count}" for part, count in sorted(parts.items())),
        "dtypes: " + ", ".join(f"{name} x {count}" for name, count in dtypes.most_common()),
        "alpha / rank: " + ", ".join(f"{scale} x {count}" for scale, count in scales.most_common(5)),
    ]
    lines += [f"learned tokens: {', '.join(tokens)}"] if (tokens := from_bundle(lora.other)) else []
    lines += [f"{name}: {lora.metadata[name]}" for name in _SHOWN if name in lora.metadata]
    lines += [*_provenance(lora.metadata), *carried(lora)]
    return "\n".join([*map(printable, lines), *([as_table(rows)] if rows else [])])


def _provenance(metadata: Mapping[str, str]) -> list[str]:
    try:
        inputs = parsed_json(metadata.get("dco.merge", "[]"))
        return [
            f"merged from {i['title'] or 'untitled'} x {float(i['weight']):g}, sha256 {i['sha256']}"
            for i in inputs
        ]
    except (ValueError, TypeError, KeyError, OverflowError):
        return ["dco.merge: not readable"]


def _span(ranks: list[int]) -> str:
    return str(ranks[0]) if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
