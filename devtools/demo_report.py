"""What the demo shows of its pictures: scores, tables, the contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from dco_core.drawing.contact_sheet import Row, Section, Sheet, draw_sheet
from dco_core.evidence.toy_prompts import true_renders
from dco_core.metrics import collateral_rmse
from dco_core.toy_world import scorer
from dco_core.toy_world.references import toy_references
from dco_core.toy_world.renderer import render

from . import demo_graph
from .demo_graph import Comparison


def _cells(pictures: list[Image.Image]) -> torch.Tensor:
    """Pictures of 256 px -> the Toy World's canvas [B, 3, 32, 32] in -1..1."""
    arrays = np.stack([np.asarray(p) for p in pictures])
    images = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.nn.functional.avg_pool2d(images, 8)


def _shown(method: Comparison) -> tuple[str | None, str | None]:
    """The subject and the style that its prompts ask for."""
    subject = None if method.prompts == demo_graph.OTHERS else "toy"
    return subject, demo_graph.STYLE if method.prompts == demo_graph.STYLED else None


def _scores(
    images: torch.Tensor, texts: Sequence[str], subject: str | None, style: str | None
) -> dict[str, float]:
    """Mean scores of images [B, 3, 32, 32] of prompts: against the true attributes of what is named."""
    found = {"prompt_alignment": scorer.prompt_alignment(images, texts)}
    if subject:
        found["subject_likeness"] = scorer.subject_likeness(images, subject, style)
    if style:
        in_style = scorer.style_scores(images, style)
        found |= {"style_likeness": in_style["colour"], "style_form": in_style["form"]}
    return {name: round(values.mean().item(), 3) for name, values in found.items()}


def scored(
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
    scenes = [render(toy_references(what)[0])[:count] for what, count in (("toy", 4), (demo_graph.STYLE, 2))]
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
            "subject_likeness": "subject likeness", "style_likeness": "style: form and colours",
            "style_form": "form alone", "prompt_alignment": "obey the whole prompt", "change": "change (RMSE)",
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


def markdown_report(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        "# Demo report",
        "",
        f"Made on {report['date']} with ComfyUI {report['comfyui']} on {report['device']}, in "
        f"{report['seconds']:.0f} s after two hosts had started, which work side by side. Toy World, epsilon base, "
        f"w_text {demo_graph.W_TEXT:g}, {demo_graph.STEPS} Euler "
        f"steps; {demo_graph.TRAINING_STEPS} steps of training, learning rate "
        f"{demo_graph.LEARNING_RATE:g}, rank {demo_graph.RANK}, batch {demo_graph.BATCH}. One "
        f"training seed and {report['scores'][0]['images']} pictures a row, so differences of a few hundredths say "
        "nothing; claims over subjects are in docs/evidence.md. Plain guidance, where no w_rg is named. What DCO "
        "learns faster than DreamBooth it owes to the clipping of its larger gradients (same page).",
        "",
        *_tables(report["scores"]),
        "Likeness: colours of body and ears, ears and build against the true subject, in 0 to 1. Style: an outline and "
        "patterned paper, which is its form, in the true colours of both. Between the floor (the base model; for the "
        "subject in the style, the style's LoRA alone) and the true pictures lies what can be learned. The scorers are "
        "validated on renders (`dco_core/toy_world/scorer.py`, `sketches.py`).",
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


def contact_sheet(
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
        "4 of the subject, 2 of 4\nof the style; likeness of\n"
        f"true pictures {ceiling:.2f},\nof the base model {floor:.2f}",
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
            Section([rows[demo_graph.MERGE, styled]], styled, _SHOWN[styled]),
        ],
        "Direct Consistency Optimization on the Toy World",
        cell=128,
    )


