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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dco_core.drawing.contact_sheet import Row, Section, Sheet, draw_sheet
from dco_core.evidence.toy_prompts import true_renders
from dco_core.metrics import collateral_rmse
from dco_core.toy_world import scorer
from dco_core.toy_world.renderer import render
from dco_core.toy_world.world import style_reference, subject_references

from . import demo_graph
from .api import Client
from .demo_graph import Comparison
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


def _titles(prompt: dict[str, Any], methods: Sequence[Comparison]) -> dict[str, str]:
    titles = {node: f"training {_TRAINED[what]}" for what, node in demo_graph.trainers(prompt).items()}
    titles[demo_graph.MERGE] = "merging subject and style"
    for node in prompt:
        if node.startswith("sample") and node.endswith("_0"):
            titles[node] = f"sampling {methods[int(node[6:-2])].name}"
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


def _shown(method: Comparison) -> tuple[str | None, str | None]:
    """The subject and the style that its prompts ask for."""
    subject = None if method.prompts == demo_graph.OTHERS else "toy"
    return subject, "print" if method.prompts == demo_graph.STYLED else None


def _scores(
    images: torch.Tensor, texts: Sequence[str], subject: str | None, style: str | None
) -> dict[str, float]:
    """Mean scores of images [B, 3, 32, 32] of prompts: against the true attributes of what is named."""
    found = {"prompt_alignment": scorer.prompt_alignment(images, texts)}
    if subject:
        found["subject_likeness"] = scorer.subject_likeness(images, subject)
    if style:
        found["style_likeness"] = scorer.style_likeness(images, style)
    return {name: round(values.mean().item(), 3) for name, values in found.items()}


def _scored(
    methods: Sequence[Comparison], pictures: Sequence[list[list[Image.Image]]]
) -> list[dict[str, Any]]:
    """A row a method, after the true renders of its prompts, which are its ceiling (the base model is its floor)."""
    rows: list[dict[str, Any]] = []
    base: dict[tuple[str, ...], torch.Tensor] = {}
    for method, made in zip(methods, pictures, strict=True):
        texts = [text for text, group in zip(method.prompts, made, strict=True) for _ in group]
        images, shown = _cells([picture for group in made for picture in group]), _shown(method)
        if method.prompts not in base:
            base[method.prompts] = images
            true = _scores(true_renders(texts, *shown, seed=demo_graph.SEED), texts, *shown)
            rows.append({"method": "true pictures", "prompts": method.prompts, "images": len(texts)} | true)
        row = {"method": method.name, "w_rg": method.w_rg, "prompts": method.prompts, "images": len(texts)}
        row |= _scores(images, texts, *shown)
        if method.prompts == demo_graph.OTHERS:
            changed = collateral_rmse((images + 1) / 2, (base[method.prompts] + 1) / 2).mean().item()
            row["change"] = round(changed, 3)
        rows.append(row)
    return rows


def _reference_pictures() -> list[Image.Image]:
    scenes = [render(make()[0]) for make in (subject_references, style_reference)]
    arrays = ((torch.cat(scenes).clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(a).resize((256, 256), Image.Resampling.BICUBIC) for a in arrays]


def _note(score: dict[str, Any]) -> str:
    names = {"subject_likeness": "likeness", "style_likeness": "style", "prompt_alignment": "obeyed"}
    return "\n".join(f"{text} {score[name]:.2f}" for name, text in names.items() if name in score)


_SHOWN = {
    demo_graph.PLACES: "My subject in new places",
    demo_graph.OTHERS: "Other things, with the subject's LoRA on",
    demo_graph.STYLED: "My subject in my style",
}


def _tables(scores: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for prompts, title in _SHOWN.items():
        chosen = [s for s in scores if s["prompts"] == prompts]
        names = {
            "subject_likeness": "subject likeness", "style_likeness": "style likeness",
            "prompt_alignment": "obey the whole prompt", "change": "change (RMSE)",
        }  # fmt: skip
        names = {name: text for name, text in names.items() if any(name in s for s in chosen)}
        lines += [
            f"## {title}",
            "",
            f"| method | {' | '.join(names.values())} |",
            "|---" * (len(names) + 1) + "|",
        ]
        for s in chosen:
            decimals = {"change": 3}
            cells = [f"{s[name]:.{decimals.get(name, 2)}f}" if name in s else "" for name in names]
            lines.append(f"| {s['method']} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _markdown(report: dict[str, Any]) -> str:
    lines = [
        "# Demo report",
        "",
        f"Made on {report['date']} with ComfyUI {report['comfyui']} on {report['device']}, in "
        f"{report['seconds']:.0f} s after the host had started. Toy World, epsilon base, "
        f"w_text {demo_graph.W_TEXT:g}, {demo_graph.STEPS} Euler "
        f"steps; {demo_graph.TRAINING_STEPS} steps of training, learning rate "
        f"{demo_graph.LEARNING_RATE:g}, rank {demo_graph.RANK}, batch {demo_graph.BATCH}. One "
        f"training seed and {report['scores'][0]['images']} pictures a row, so differences of a few hundredths say "
        "nothing; claims over subjects are in docs/evidence.md. Plain guidance, where no w_rg is named. What DCO "
        "learns faster than DreamBooth it owes to the clipping of its larger gradients (same page).",
        "",
        *_tables(report["scores"]),
        "Likeness: colours of body and ears, ears and build against the true subject, in 0 to 1. In print style its "
        "colours cannot be seen: there it is one of ears and build, which other toys have too. Between the base model "
        "(floor) and true pictures (ceiling) lies what can be learned. The scorers are validated on renders "
        "(`dco_core/toy_world/scorer.py`).",
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


def _sheet(
    methods: Sequence[Comparison], pictures: Sequence[list[list[Image.Image]]], scores: list[dict[str, Any]]
) -> Sheet:
    """Six rows: what is taught, three ways to learn it, one of them over w_rg, and the merge."""
    rows = {}
    score_of = {(s["method"], s["prompts"]): s for s in scores}
    for method, made in zip(methods, pictures, strict=True):
        note = _note(score_of[method.name, method.prompts])
        rows[method.name, method.prompts] = Row([np.asarray(group[0]) for group in made], method.name, note)
    floor, ceiling = (
        score_of[name, demo_graph.PLACES]["subject_likeness"] for name in (demo_graph.BASE, "true pictures")
    )
    taught = Row(
        [np.asarray(picture) for picture in _reference_pictures()],
        "references",
        f"4 of the subject, 1 of the style\nlikeness of true pictures {ceiling:.2f},\nof the base model {floor:.2f}",
    )
    places, styled = demo_graph.PLACES, demo_graph.STYLED
    sweep = [(0.0, demo_graph.BASE), *((w, demo_graph.at(demo_graph.DCO, w)) for w in demo_graph.W_RG)]
    swept = Row(
        [rows[name, places].pictures[demo_graph.SWEPT] for _, name in sweep],
        demo_graph.DCO,
        places[demo_graph.SWEPT].replace(", ", ",\n"),
    )
    headings = ["w_rg 0: base model", *(f"w_rg {w:g}" for w, _ in sweep[1:])]
    shown = (demo_graph.PUBLISHED, demo_graph.DREAMBOOTH, demo_graph.DCO)
    learned = [rows[name, places] for name in shown]
    return draw_sheet(
        [
            Section([taught], title="What is taught"),
            Section(learned, places, _SHOWN[places]),
            Section([swept], headings, "Reward guidance: from prompt to likeness"),
            Section([rows["merge", styled]], styled, _SHOWN[styled]),
        ],
        "Direct Consistency Optimization on the Toy World",
        cell=128,
    )


def run(client: Client, output: Path, loras: Path) -> None:
    """Run everything on a started host and write `output`. loras: the host's output/loras folder."""
    started = time.monotonic()
    workflow = to_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    workflow = demo_graph.with_settings(workflow)
    prompt, methods = demo_graph.with_comparisons(workflow)
    progress = _Progress(_titles(prompt, methods))
    print(f"Running the workflow '{WORKFLOW.stem}'", flush=True)
    first = client.run(workflow, progress, timeout=1800)
    print("Running the comparisons", flush=True)
    outputs = client.run(prompt, progress, timeout=1800)

    pictures = [[_pictures(client, outputs, node) for node in method.outputs] for method in methods]
    scores = _scored(methods, pictures)
    sheet = _sheet(methods, pictures, scores)
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
    (output / "loss_and_margin.png").write_bytes(
        client.download(plot["filename"], plot["subfolder"], plot["type"])
    )
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
