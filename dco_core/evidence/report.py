"""A study's tables, figures and verdicts as Markdown."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from ..lora import read_lora
from ..metrics import column_cosine
from . import figures
from .analysis import SCORE_NAMES, Interval, averages, frontier_areas, unit_means
from .claims import Claim, Evidence, claims_of
from .jobs import DISTANCES, DONE, LORA, SCORES, TRAINING, Bench, Job, jobs_of
from .setting import Setting
from .study import BASE, MERGES, PLAIN, Study
from .tables import Row, markdown, read_table, write_table, write_text

_INTRODUCTION = """\
A *unit* is one subject (or style, or both) with one seed. Within a unit every method has the same references and the
same noise, in training and in the pictures, so that methods are compared in pairs; intervals are 95 % bootstrap
intervals of the mean difference over units. *Alignment at equal likeness* is how much higher one method's curve over
w_rg lies than another's, over the likenesses that both reach: where the frontier is. The *area under the frontier* is
the share of the square (likeness, alignment) that a method's points dominate: how far it reaches, which also depends
on how far training went. A verdict is mechanical: *holds here* if every interval of the claim excludes 0 on the
predicted side, *does not hold here* if one excludes it on the other side, *not shown here* otherwise."""


def collect(study: Study, bench: Bench) -> tuple[Evidence, list[Row]]:
    """The tables of the jobs that are done, and the rows of training.csv."""
    scores: list[Row] = []
    distances: list[Row] = []
    training: list[Row] = []
    cosines: list[Row] = []
    for job in (job for jobs in jobs_of(study) for job in jobs):
        if not bench.done(job):
            continue
        path = bench.path(job)
        scores += read_table(path / SCORES)
        for name, rows in ((DISTANCES, distances), (TRAINING, training)):
            if (path / name).is_file() and job.method not in MERGES:
                rows += read_table(path / name)
        if job.method in MERGES and MERGES[job.method][1] == "exact":
            of = MERGES[job.method][0]
            parts = (Job(of, job.subject, None, job.seed), Job(of, None, job.style, job.seed))
            pair = [read_lora(bench.path(part) / LORA) for part in parts]
            found = column_cosine(*pair)
            cosines.append(
                {"method": job.method, "subject": job.subject, "style": job.style, "seed": job.seed, **found}
            )
    return Evidence(unit_means(scores), distances, cosines), training


def write_report(
    study: Study, setting: Setting, bench: Bench, output: Path, command: str, failed: Sequence[str]
) -> Path:
    """Write tables, figures and evidence.md into `output`; the path of the page. Raises DCOError where nothing is
    done."""
    evidence, training = collect(study, bench)
    tables = {"units": evidence.means, "noise_distance": evidence.distances, "training": training}
    tables["column_cosine"] = evidence.cosines
    for name, rows in tables.items():
        if rows:
            write_table(output / "tables" / f"{name}.csv", rows)
    pictures = figures.all_figures(study, setting, bench, evidence.means, evidence.distances)
    for name, picture in pictures.items():
        figures.save(output / "figures" / name, picture)
    write_text(output / "study.json", json.dumps(dataclasses.asdict(study), indent=1))
    page = output / "evidence.md"
    write_text(page, _page(study, evidence, training, bench, sorted(pictures), command, failed))
    return page


def _page(
    study: Study, evidence: Evidence, training: Sequence[Row], bench: Bench, pictures: Sequence[str], command: str,
    failed: Sequence[str],
) -> str:  # fmt: skip
    claims = claims_of(evidence)
    subjects = [r for r in evidence.means if r["subject"] and not r["style"]]
    styles = [r for r in evidence.means if r["style"] and not r["subject"]]
    merged = [r for r in evidence.means if r["style"] and r["subject"]]
    parts = [
        "# Evidence",
        f"Made by\n\n    {command}\n\non {_machine()}, {_work(study, bench)}. The same command makes it again; a run "
        "that was stopped goes on. `study.json` has every setting, `tables/` the numbers behind the figures.",
        _INTRODUCTION,
        "## Verdicts",
        markdown({"claim": c.text, "source": c.source, "verdict": f"**{c.verdict}**"} for c in claims),
        "## What was compared",
        markdown(_comparisons(claims)),
    ]
    if failed:
        parts += ["## Not done", *(f"- {text}" for text in failed)]
    for title, rows, x in (
        ("Subjects", subjects, "likeness"),
        ("Styles", styles, "style_likeness"),
    ):
        if rows:
            parts += [
                f"## {title}",
                markdown(_scores(rows)),
                "Area under the frontier:",
                markdown(_areas(rows, x)),
            ]
    if merged:
        parts += ["## My subject in my style (Table 1)", markdown(_scores(merged))]
    if training:
        parts += ["## Training", markdown(_training(training))]
    if evidence.cosines:
        parts += ["## Column cosine of the merged pairs (Fig. 10)", markdown(_cosines(evidence.cosines))]
    parts += ["## Figures", *(f"![{name}](figures/{name})" for name in pictures)]
    parts.append(
        "Error bars are standard errors over units. Filled symbols are reward guidance at the w_rg beside them, hollow "
        f"ones plain classifier-free guidance of the fine-tuned model at w_text {study.w_text:g}."
    )
    return "\n\n".join(parts) + "\n"


def _machine() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{name} ({platform.machine()}, torch {torch.__version__})"


def _work(study: Study, bench: Bench) -> str:
    seconds, n = 0.0, 0
    for job in (job for jobs in jobs_of(study) for job in jobs):
        if bench.done(job):
            seconds += json.loads((bench.path(job) / DONE).read_text(encoding="utf-8"))["seconds"]
            n += 1
    seeds = ", ".join(map(str, study.seeds))
    return f"{n} jobs of {seconds / max(n, 1):.0f} s each, seeds {seeds}"


def _comparisons(claims: Sequence[Claim]) -> list[Row]:
    signs = {1: "above 0", -1: "below 0", 0: "none"}
    return [
        {"comparison": c.text, "predicted": signs[c.predicted], "difference": _interval(c.difference)}
        for claim in claims
        for c in claim.comparisons
    ]


def _interval(found: Interval) -> str:
    return str(found)


def _scores(means: Sequence[Row]) -> list[Row]:
    """Mean +- standard deviation over units."""
    rows = []
    for row in averages(means):
        guidance = row["guidance"]
        label = "" if row["method"] == BASE else guidance if guidance == PLAIN else f"w_rg {guidance:g}"
        line: Row = {"method": row["method"], "guidance": label}
        for score in SCORE_NAMES:
            if score in row:
                line[score.replace("_", " ")] = f"{row[score]:.3f} +- {row[f'{score} sd']:.3f}"
        rows.append({**line, "units": row["n"]})
    return rows


def _areas(means: Sequence[Row], x: str) -> list[Row]:
    rows = []
    for method, units in frontier_areas(means, x).items():
        values = torch.tensor(list(units.values()), dtype=torch.float64)
        spread = values.std().item() if len(values) > 1 else 0.0
        rows.append(
            {"method": method, "area": f"{values.mean().item():.3f} +- {spread:.3f}", "units": len(values)}
        )
    return sorted(rows, key=lambda row: row["area"], reverse=True)


def _training(rows: Sequence[Row]) -> list[Row]:
    """What the runs said at their end, means over units."""
    groups: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], bool(row["style"])), []).append(row)
    table = []
    for (method, style), group in groups.items():
        line: Row = {"method": method, "of": "style" if style else "subject", "steps": group[0]["steps"]}
        for name in ("beta", "loss", "margin", "gate"):
            values = [row[name] for row in group if row.get(name) is not None]
            line[name] = sum(values) / len(values) if values else None
        table.append({**line, "runs": len(group)})
    return table


def _cosines(rows: Sequence[Row]) -> list[Row]:
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(abs(row["all"]))
    return [
        {"pairs": method, "absolute column cosine": sum(values) / len(values), "units": len(values)}
        for method, values in groups.items()
    ]
