"""The demo: workflow 0 in a real ComfyUI, the comparisons of the paper on the Toy World, a sheet and a report.

`python dev.py demo` runs it. Everything is made by the host through its HTTP API; only scores and drawing
happen here.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dco_core.drawing.contact_sheet import Row, Section, draw_sheet
from dco_core.toy_world import scorer
from dco_core.toy_world.renderer import render
from dco_core.toy_world.world import style_reference, subject_references

from . import demo_graph
from .api import Client
from .environment import DEV, ROOT
from .host_server import PACK_FOLDER, HostServer
from .tasks import end_cleanly_on_sigterm
from .workflow_prompt import to_prompt

WORKFLOW = ROOT / "workflows" / "0_DCO_LoRA_training_Toy_World.json"
_TRAINED = {
    "subject": "the subject, with DCO",
    "style": "the style, with DCO",
    "dreambooth": "the subject, with DreamBooth (plain loss), to compare",
}


class _Progress:
    """Prints what the host is doing, a line a node and a bar while it works."""

    def __init__(self, titles: dict[str, str]):
        self.titles, self.started = titles, time.monotonic()
        self.shown: tuple[str, int] = ("", -1)
        self.live = sys.stdout.isatty()

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "executing" and data.get("node") in self.titles:
            self._line(f"\n[{time.monotonic() - self.started:4.0f} s] {self.titles[data['node']]}")
        elif kind == "progress" and data.get("max", 0) >= 100:
            tenth = 10 * data["value"] // data["max"]
            if (data["node"], tenth) != self.shown:
                self.shown = (data["node"], tenth)
                bar = "#" * tenth + "." * (10 - tenth)
                end = "\r" if self.live and tenth < 10 else "\n"
                print(f"         [{bar}] step {data['value']} of {data['max']}", end=end, flush=True)

    def _line(self, text: str) -> None:
        print(text.lstrip("\n"), flush=True)


def _titles(prompt: dict[str, Any]) -> dict[str, str]:
    titles = {node: f"training {_TRAINED[what]}" for what, node in demo_graph.trainers(prompt).items()}
    titles[demo_graph.MERGE] = "merging subject and style"
    for node in prompt:
        if node.startswith("sample") and node.endswith("_0"):
            titles[node] = f"sampling row {int(node[6:-2]) + 1} of the sheet"
    return titles


def _pictures(client: Client, outputs: dict[str, Any], node: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(client.download(i["filename"], i["subfolder"], i["type"]))).convert("RGB")
        for i in outputs[node]["images"]
    ]


def _cells(pictures: list[Image.Image]) -> torch.Tensor:
    """Pictures of 256 px -> the Toy World's canvas [B, 3, 32, 32] in -1..1."""
    arrays = np.stack([np.asarray(p) for p in pictures])
    images = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.nn.functional.avg_pool2d(images, 8)


def _scores(method: demo_graph.Comparison, pictures: list[list[Image.Image]]) -> dict[str, Any]:
    prompts = [text for text, group in zip(method.prompts, pictures, strict=True) for _ in group]
    images = _cells([picture for group in pictures for picture in group])
    subject = scorer.subject_likeness(images, render(subject_references()[0]))
    alignment = scorer.prompt_alignment(images, prompts)
    result = {
        "method": method.name,
        "w_rg": method.w_rg,
        "images": len(images),
        "subject_likeness": round(subject.mean().item(), 3),
        "prompt_alignment": round(alignment.mean().item(), 3),
    }
    if method.prompts == demo_graph.STYLED:
        style = scorer.style_likeness(images, render(style_reference()[0]))
        result["style_likeness"] = round(style.mean().item(), 3)
    return result


def _reference_pictures() -> list[Image.Image]:
    scenes = [render(make()[0]) for make in (subject_references, style_reference)]
    arrays = ((torch.cat(scenes).clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(a).resize((256, 256), Image.Resampling.BICUBIC) for a in arrays]


def _note(score: dict[str, Any]) -> str:
    lines = [f"likeness {score['subject_likeness']:.2f}", f"prompt {score['prompt_alignment']:.2f}"]
    if "style_likeness" in score:
        lines.insert(1, f"style {score['style_likeness']:.2f}")
    return "\n".join(lines)


def _markdown(report: dict[str, Any]) -> str:
    lines = [
        "# Demo report",
        "",
        f"Made on {report['date']} with ComfyUI {report['comfyui']} on {report['device']}, "
        f"in {report['seconds']:.0f} s after the host had started. Toy World, w_text {demo_graph.W_TEXT:g}, "
        f"{demo_graph.STEPS} Euler steps; one training seed, so differences of a few hundredths say nothing.",
        "",
        "| method | subject likeness | style likeness | prompt alignment | images |",
        "|---|---|---|---|---|",
    ]
    for s in report["scores"]:
        style = f"{s['style_likeness']:.2f}" if "style_likeness" in s else ""
        lines.append(
            f"| {s['method']} | {s['subject_likeness']:.2f} | {style} | {s['prompt_alignment']:.2f} | {s['images']} |"
        )
    lines += [
        "",
        "Likeness: the scorer's reading of body and ear colours, ears and build against the four references, 1 is "
        "the same toy. Alignment: share of the prompt's factors that the picture obeys. Both scorers are validated "
        "on renders (`dco_core/toy_world/scorer.py`).",
        "",
        "## Training",
        "",
        *(f"- {name}: {text}" for name, text in report["training"].items()),
        "",
        "## Files",
        "",
        *(f"- `{name}`" for name in report["files"]),
        "",
    ]
    return "\n".join(lines)


def run(client: Client, output: Path, loras: Path) -> None:
    """Run everything on a started host and write `output`. loras: the host's output/loras folder."""
    started = time.monotonic()
    workflow = to_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    prompt, methods = demo_graph.with_comparisons(workflow)
    progress = _Progress(_titles(prompt))
    print(f"Running the workflow '{WORKFLOW.stem}'", flush=True)
    first = client.run(workflow, progress, timeout=1800)
    print("Running the comparisons", flush=True)
    outputs = client.run(prompt, progress, timeout=1800)

    scores, rows = [], []
    for method in methods:
        pictures = [_pictures(client, outputs, node) for node in method.outputs]
        scores.append(_scores(method, pictures))
        rows.append(Row([np.asarray(group[0]) for group in pictures], method.name, _note(scores[-1])))
    places = [r for r, m in zip(rows, methods, strict=True) if m.prompts == demo_graph.PLACES]
    styled = [r for r, m in zip(rows, methods, strict=True) if m.prompts == demo_graph.STYLED]
    taught = [np.asarray(picture) for picture in _reference_pictures()]
    references = Row(taught, "references", "4 of the subject,\n1 of the style")
    sheet = draw_sheet(
        [
            Section([references], title="What is taught"),
            Section(places, demo_graph.PLACES, "My subject in new places"),
            Section(styled, demo_graph.STYLED, "My subject in my style"),
        ],
        "Direct Consistency Optimization on the Toy World",
        cell=128,
    )
    output.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.picture).save(output / "contact_sheet.png")
    nodes = demo_graph.trainers(prompt)
    texts = {name: (outputs.get(node) or first[node])["text"][0] for name, node in nodes.items()}
    saved = {name: text.split("Saved ")[1].split(". Press")[0] for name, text in texts.items()}
    merge_text = outputs[demo_graph.MERGE]["text"][0]
    saved["merge"] = merge_text.split("Saved ")[1].split(". Press")[0]
    for name, file in saved.items():
        shutil.copyfile(loras.parent / file, output / f"toy_{name}.safetensors")
    plot = (outputs.get(nodes["subject"]) or first[nodes["subject"]])["dco_pictures"][-1]
    (output / "loss_and_margin.png").write_bytes(client.download(plot["filename"], plot["subfolder"], plot["type"]))
    system = client.system_stats()
    report = {
        "date": datetime.date.today().isoformat(),
        "comfyui": system["system"]["comfyui_version"],
        "device": f"{system['devices'][0]['name']} ({platform.machine()}, torch {torch.__version__})",
        "seconds": round(time.monotonic() - started, 1),
        "w_text": demo_graph.W_TEXT,
        "steps": demo_graph.STEPS,
        "scores": scores,
        "cells": sheet.cells,  # of contact_sheet.png: [left, top, right, bottom] of each section, row and column
        "training": {name: text.splitlines()[0] for name, text in texts.items()},
        "files": sorted(
            path.name for path in output.iterdir() if path.name not in ("report.md", "report.json")
        ),
    }
    (output / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    (output / "report.md").write_text(_markdown(report), encoding="utf-8")
    print("\n" + _markdown(report).split("Likeness:")[0].strip(), flush=True)
    print(
        f"\nWritten to {output}: contact_sheet.png, loss_and_margin.png, report.md, report.json, LoRAs",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--serve", action="store_true")
    args = parser.parse_args()
    end_cleanly_on_sigterm()
    shutil.rmtree(DEV / "demo", ignore_errors=True)
    print("Starting ComfyUI ...", flush=True)
    with HostServer(DEV / "demo") as host:
        run(host.client, args.output, Path(host.base_dir) / "output" / "loras")
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
