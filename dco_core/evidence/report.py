"""A study's tables, figures and verdicts as Markdown."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from ..lora import read_lora
from ..merging.compatibility import column_cosine
from . import figures
from .analysis import FAR_NAMES, OTHERS_NAMES, SCORE_NAMES, averages, frontier_areas, unit_means
from .claims import Claim, Evidence, claims_of
from .contrasts import PRIMARY, Finding, Test, contrasts_from, findings
from .intervals import Interval
from .jobs import DISTANCES, DONE, SCORES, TRAINING, jobs_of
from .setting import Setting
from .study import BASE, CEILING, MERGES, Study
from .tables import Row, grouped, markdown, read_table, write_table, write_text
from .workspace import Workspace

_INTRODUCTION = """\
A *unit* is one subject (or style, or both) with one seed. Within a unit every method has the same references and the
same noise, in training and in the pictures, so that methods are compared in pairs; intervals are 95 % t intervals of
the mean difference over units, and from fewer than five units nothing is concluded. *Alignment* is the share of
pictures that obey all of their prompt (SigLIP's score for models of one's own), *others* are prompts without what was
learned: how many obey, and how far they are from the base model's picture of the same noise (RMSE). *Alignment at
equal likeness* is how much higher one method's curve over w_rg lies than another's, plain guidance among its points,
over the likenesses that both reach: where the frontier is; units without a likeness in common are counted beside it.
The *area under the frontier* is the share of the square (likeness, alignment) that a method's points dominate: how
far it reaches, which also depends on how far training went. A verdict is mechanical: *holds here* if every interval
of the claim excludes 0 on the predicted side, *does not hold here* if one excludes it on the other side, *not shown
here* otherwise. Where no difference is claimed, it holds if two one-sided tests at 5 % place the difference within
the margin stated."""


def collect(study: Study, workspace: Workspace) -> tuple[Evidence, list[Row]]:
    """The tables of the jobs that are done, and the rows of training.csv."""
    scores: list[Row] = []
    distances: list[Row] = []
    training: list[Row] = []
    cosines: list[Row] = []
    for job in (job for jobs in jobs_of(study) for job in jobs):
        if not workspace.done(job):
            continue
        path = workspace.path(job)
        scores += read_table(path / SCORES)
        for name, rows in ((DISTANCES, distances), (TRAINING, training)):
            if (path / name).is_file() and job.method not in MERGES:
                rows += read_table(path / name)
        if job.method in MERGES and MERGES[job.method][1] == "exact":
            pair = [read_lora(workspace.main_lora(part)) for part in job.parts]
            cosines.append(job.columns | column_cosine(*pair))
    return Evidence(unit_means(scores), distances, cosines), training


def write_report(
    study: Study, setting: Setting, workspace: Workspace, output: Path, command: str, failed: Sequence[str]
) -> Path:
    """Write tables, figures and evidence.md into `output`; the path of the page. Raises DCOError where nothing is
    done."""
    evidence, training = collect(study, workspace)
    tables = {"units": evidence.means, "noise_distance": evidence.distances, "training": training}
    tables["column_cosine"] = evidence.cosines
    for name, rows in tables.items():
        if rows:
            write_table(output / "tables" / f"{name}.csv", rows)
    pictures = figures.all_figures(study, setting, workspace, evidence.means, evidence.distances)
    for name, picture in pictures.items():
        figures.save(output / "figures" / name, picture)
    write_text(output / "study.json", json.dumps(dataclasses.asdict(study), indent=1))
    page = output / "evidence.md"
    write_text(page, _page(study, evidence, training, workspace, sorted(pictures), command, failed))
    return page


def _page(
    study: Study, evidence: Evidence, training: Sequence[Row], workspace: Workspace, pictures: Sequence[str],
    command: str, failed: Sequence[str],
) -> str:  # fmt: skip
    subjects = [r for r in evidence.means if r["subject"] and not r["style"]]
    styles = [r for r in evidence.means if r["style"] and not r["subject"]]
    merged = [r for r in evidence.means if r["style"] and r["subject"]]
    parts = [
        "# Evidence",
        f"Made by\n\n    {command}\n\non {_machine()}, {_work(study, workspace)}. The same command makes it again; a "
        "run that was stopped goes on. `study.json` has every setting, `tables/` the numbers behind the figures.",
        _INTRODUCTION,
    ]
    if study.contrasts:
        found = findings(contrasts_from(study.contrasts), evidence)
        for family in dict.fromkeys((PRIMARY, *(f.contrast.family for f in found))):
            chosen = [f for f in found if f.contrast.family == family]
            if not chosen:
                continue
            title = f"{family[:1].upper()}{family[1:]} contrasts"
            note = "p is the largest of the contrast's tests, corrected by Holm." if family == PRIMARY else ""
            parts += [f"## {title}", note, markdown(_verdicts(chosen)), markdown(_tests(chosen))]
    for base in study.models():
        claims = claims_of(_of_base(study, evidence, base))
        if claims:
            parts += [
                f"## Claims of the paper{f', base {base}' if base else ''}",
                markdown({"claim": c.text, "source": c.source, "verdict": f"**{c.verdict}**"} for c in claims),
                markdown(_comparisons(claims)),
            ]
    if failed:
        parts += ["## Not done", *(f"- {text}" for text in failed)]
    for title, rows, x in (("Subjects", subjects, "likeness"), ("Styles", styles, "style_likeness")):
        if rows:
            parts += [f"## {title}", markdown(_scores(rows))]
            for base in study.models():
                of_base = _of_base(study, Evidence(rows, [], []), base).means
                title = f"Area under the frontier{f', base {base}' if base else ''}:"
                parts += [title, markdown(_areas(of_base, x))]
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
    return "\n\n".join(part for part in parts if part) + "\n"


def _of_base(study: Study, evidence: Evidence, base: str) -> Evidence:
    """The part of the tables that the claims about guidance are of: one base, and the main checkpoint."""

    def chosen(row: Row) -> bool:
        if (row.get("base") or "") != base:
            return False
        main = study.checkpoint if study.checkpoints else None
        return main is None or row.get("checkpoint") in (None, 0, main, "merged")

    return Evidence(
        [row for row in evidence.means if chosen(row)],
        [row for row in evidence.distances if chosen(row) and row.get("on", "references") == "references"],
        [row for row in evidence.cosines if (row.get("base") or "") == base],
    )


def _verdicts(found: Sequence[Finding]) -> list[Row]:
    return [
        {"contrast": f.contrast.claim, "verdict": f"**{f.verdict}**", "p": f"{f.corrected:.2g}"} for f in found
    ]


def _tests(found: Sequence[Finding]) -> list[Row]:
    rows = []
    for finding in found:
        for r in finding.results:
            n = r.difference.n if r.difference is not None else 0
            units = f"{n} of {n + r.left_out}" if r.left_out else str(n)
            rows.append(
                {
                    "test": r.test.text, "expected": _expected(r.test),
                    "difference": "nothing to compare" if r.difference is None else _mean_and_limits(r.difference),
                    "units": units, "p": f"{r.p:.2g}",
                }
            )  # fmt: skip
    return rows


def _expected(test: Test) -> str:
    if test.margin is None:
        return test.expect
    return {"equal": f"within +-{test.margin:g}", "no worse": f"above -{test.margin:g}"}.get(
        test.expect, f"{test.expect}, by {test.margin:g} or more"
    )


def _mean_and_limits(found: Interval) -> str:
    return f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _machine() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{name} ({platform.machine()}, torch {torch.__version__})"


def _work(study: Study, workspace: Workspace) -> str:
    seconds, n = 0.0, 0
    for job in (job for jobs in jobs_of(study) for job in jobs):
        if workspace.done(job):
            seconds += json.loads((workspace.path(job) / DONE).read_text(encoding="utf-8"))["seconds"]
            n += 1
    seeds = ", ".join(map(str, study.seeds))
    return f"{n} jobs of {seconds / max(n, 1):.0f} s each, seeds {seeds}"


def _comparisons(claims: Sequence[Claim]) -> list[Row]:
    signs = {1: "above 0", -1: "below 0"}
    return [
        {
            "comparison": c.text,
            "predicted": signs.get(c.predicted, f"within +-{c.margin:g}"),
            "difference": str(c.difference) + (f" of {c.difference.n + c.left_out}" if c.left_out else ""),
        }
        for claim in claims
        for c in claim.comparisons
    ]


def _scores(means: Sequence[Row]) -> list[Row]:
    """Mean +- standard deviation over units."""
    rows = []
    for row in averages(means):
        guidance = row["guidance"]
        label = f"w_rg {guidance:g}" if isinstance(guidance, (int, float)) else guidance
        line: Row = {"base": row["base"]} if row.get("base") else {}
        line |= {"method": row["method"], "checkpoint": row.get("checkpoint")}
        line["guidance"] = "" if row["method"] in (BASE, CEILING) else label
        for score in (*SCORE_NAMES, *FAR_NAMES, *OTHERS_NAMES):
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
    """The last reports of the runs, means over units."""
    groups = grouped(rows, lambda row: (row.get("base") or "", row["method"], bool(row["style"])))
    table = []
    for (base, method, style), group in groups.items():
        line: Row = {"base": base} if base else {}
        line |= {"method": method, "of": "style" if style else "subject", "steps": group[0]["steps"]}
        for name in ("beta", "loss", "margin", "gate", "stopped_at"):
            values = [row[name] for row in group if row.get(name) is not None]
            line[name] = sum(values) / len(values) if values else None
        table.append({**line, "runs": len(group)})
    return table


def _cosines(rows: Sequence[Row]) -> list[Row]:
    groups = {method: [abs(r["all"]) for r in own] for method, own in grouped(rows, lambda r: r["method"]).items()}
    return [
        {"pairs": method, "absolute column cosine": sum(values) / len(values), "units": len(values)}
        for method, values in groups.items()
    ]
