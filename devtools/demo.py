"""The demo: workflow 0 in a real ComfyUI, the comparisons of the paper on the Toy World, a sheet and a report.

`python dev.py demo` runs it. Everything is made by the host through its HTTP API; only scores and drawing
happen here. Two hosts train and sample at the same time: the network is too small to keep two cores busy.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from . import demo_graph
from .api import Client
from .demo_graph import Prompt, Side
from .demo_report import contact_sheet, markdown_report, scored
from .environment import DEV, ROOT
from .host_server import PACK_FOLDER, HostServer
from .tasks import end_cleanly_on_sigterm
from .workflow_prompt import to_prompt

WORKFLOW = ROOT / "workflows" / "0_DCO_LoRA_training_Toy_World.json"
_TRAINED = {
    "subject": "the subject, with DCO",
    "style": "the style, with DCO",
    "dreambooth": "the subject, with DreamBooth (plain loss), to compare",
    "dreambooth_compact": "the subject, with DreamBooth and compact captions, as published",
}
_TIMEOUT = 3600


class _Progress:
    """Prints what one of the hosts is doing, a line a node and a line each quarter of a training."""

    def __init__(self, titles: dict[str, str]):
        self.titles, self.started = titles, time.monotonic()
        self.shown = ("", 0)

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        node = str(data.get("node"))
        if node not in self.titles:
            return
        if kind == "executing":
            self._line(node)
        elif kind == "progress" and data.get("max", 0) >= 100:
            quarter = 4 * data["value"] // data["max"]
            if quarter and (node, quarter) != self.shown:
                self.shown = (node, quarter)
                self._line(node, f": step {data['value']} of {data['max']}")

    def _line(self, node: str, more: str = "") -> None:
        print(f"[{time.monotonic() - self.started:4.0f} s] {self.titles[node]}{more}", flush=True)


def _titles(side: Side) -> dict[str, str]:
    titles = {node: f"training {_TRAINED[what]}" for what, node in side.trainers.items()}
    titles |= {node: "merging subject and style" for node in side.merges.values()}
    for node in side.prompt:
        if node.startswith("sample") and node.endswith("_0"):
            titles[node] = f"sampling {side.methods[int(node[6:-2])].name}"
    return titles


def _pictures(client: Client, outputs: dict[str, Any], node: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(client.download(i["filename"], i["subfolder"], i["type"]))).convert("RGB")
        for i in outputs[node]["images"]
    ]


def _run(client: Client, side: Side, first: Prompt | None = None) -> dict[str, Any]:
    """The outputs of a side's prompt. first: run before it."""
    progress = _Progress(_titles(side))
    outputs = client.run(first, progress, timeout=_TIMEOUT) if first else {}
    return outputs | client.run(side.prompt, progress, timeout=_TIMEOUT)


def run(hosts: Sequence[HostServer], pool: ThreadPoolExecutor, output: Path) -> None:
    """Run everything on two started hosts and write `output`."""
    started = time.monotonic()
    workflow = to_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    workflow = demo_graph.with_settings(workflow)
    sides = [demo_graph.dco_side(workflow), demo_graph.dreambooth_side(workflow)]
    print(f"Running the workflow '{WORKFLOW.stem}' and what it is compared with", flush=True)
    running = [
        pool.submit(_run, host.client, side, first)
        for host, side, first in zip(hosts, sides, (workflow, None), strict=True)
    ]
    results = [future.result() for future in running]

    made = [
        (method, [_pictures(host.client, outputs, node) for node in method.outputs])
        for host, side, outputs in zip(hosts, sides, results, strict=True)
        for method in side.methods
    ]
    made.sort(key=lambda pair: demo_graph.place_in_report(pair[0]))
    methods, pictures = [method for method, _ in made], [groups for _, groups in made]
    scores = scored(methods, pictures)
    sheet = contact_sheet(methods, pictures, scores)
    output.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.picture).save(output / "contact_sheet.png")
    training: dict[str, str] = {}
    for host, side, outputs in zip(hosts, sides, results, strict=True):
        texts = {name: outputs[node]["text"][0] for name, node in (side.trainers | side.merges).items()}
        for name, text in texts.items():
            file = Path(host.base_dir) / "output" / text.split("Saved ")[1].split(". Press")[0]
            shutil.copyfile(file, output / f"toy_{_file_name(name)}.safetensors")
        training |= {name: texts[name].splitlines()[0] for name in side.trainers}
    plot = results[0][sides[0].trainers["subject"]]["dco_pictures"][-1]
    (output / "loss_and_margin.png").write_bytes(
        hosts[0].client.download(plot["filename"], plot["subfolder"], plot["type"])
    )
    system = hosts[0].client.system_stats()
    report = {
        "date": datetime.date.today().isoformat(),
        "comfyui": system["system"]["comfyui_version"],
        "device": f"{system['devices'][0]['name']} ({platform.machine()}, torch {torch.__version__})",
        "seconds": round(time.monotonic() - started, 1),
        "w_text": demo_graph.W_TEXT,
        "steps": demo_graph.STEPS,
        "scores": scores,
        "cells": sheet.cells,  # of contact_sheet.png: [left, top, right, bottom] of each section, row and column
        "training": training,
        "files": sorted(
            path.name for path in output.iterdir() if path.name not in ("report.md", "report.json")
        ),
    }
    (output / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    (output / "report.md").write_text(markdown_report(report), encoding="utf-8")
    print("\n" + markdown_report(report).split("Likeness:")[0].strip(), flush=True)
    print(
        f"\nWritten to {output}: contact_sheet.png, loss_and_margin.png, report.md, report.json, LoRAs",
        flush=True,
    )


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_." else "_" for c in name.replace(", ", "_"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--serve", action="store_true")
    args = parser.parse_args()
    end_cleanly_on_sigterm()
    for name in ("demo", "demo_compared"):
        shutil.rmtree(DEV / name, ignore_errors=True)
    print("Starting ComfyUI, twice ...", flush=True)
    # each host half of the cores: more threads than cores wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))
    with ThreadPoolExecutor(2) as pool:  # outermost: its threads end when their hosts have
        with HostServer(DEV / "demo") as host:
            with HostServer(DEV / "demo_compared") as other:
                run((host, other), pool, args.output)
            if args.serve:
                link = f"http://{host.address}/?template={WORKFLOW.stem}&source={PACK_FOLDER}"
                print(f"\nComfyUI is at http://{host.address} - press Ctrl-C to stop it.", flush=True)
                print(f"Open the first template: {link}", flush=True)
                try:
                    while True:
                        time.sleep(1)
                except KeyboardInterrupt:
                    print("Stopping ComfyUI.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
