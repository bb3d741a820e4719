"""The figures of a study: frontiers, ablations, noise distance, contact sheets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..drawing import figure as charts
from ..drawing.contact_sheet import contact_sheet
from ..drawing.pareto_plot import Curve, pareto_figure
from .analysis import averages
from .claims import BETAS
from .jobs import PICTURES, Job
from .setting import Setting
from .study import BASE, CEILING, METHODS, PLAIN, Study
from .tables import Row
from .workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# {file: (title, methods)}: one picture with everything could not be read
FRONTIERS = {
    "frontier": ("Subjects: likeness against prompt (Fig. 1, 9)", (
        "DreamBooth", "DreamBooth, half the steps", "DreamBooth + prior 0.5", "DreamBooth + prior 1", "DCO", "MaPO",
        "output preservation",
    )),
    "captions": ("Comprehensive and compact captions (Fig. 8a)", (
        "DreamBooth", "DreamBooth, compact captions", "DCO", "DCO, compact captions",
    )),
    "beta": ("beta (Fig. 8b)", ("DreamBooth", *BETAS)),
    "steps": ("Half and all of the steps (App. D.3)", (
        "DreamBooth", "DreamBooth, half the steps", "DCO", "DCO, half the steps",
    )),
}  # fmt: skip


def save(path: Path, image: np.ndarray | Figure) -> None:
    """Write a picture; a chart also as .svg beside it, for papers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(image, np.ndarray):
        charts.save(image, path.with_suffix(".svg"))
        image = charts.to_array(image)
    picture = Image.fromarray(image)
    # flat colours: a palette loses nothing that can be seen and a third of the bytes is enough
    picture.quantize(192).save(path, optimize=True) if path.suffix == ".png" else picture.save(
        path, quality=88
    )


def frontiers(means: Sequence[Row]) -> dict[str, Figure]:
    """{name: chart} of the Pareto curves that the table has methods for."""
    subjects = [r for r in means if r["subject"] and not r["style"]]
    styles = [r for r in means if r["style"] and not r["subject"]]
    own = tuple(dict.fromkeys(r["method"] for r in subjects if r["method"] not in (*METHODS, BASE, CEILING)))
    pictures: dict[str, Figure] = {}
    drawn: list[list[str]] = []
    for name, (title, methods) in {
        **FRONTIERS,
        "own_methods": ("Methods of this study", ("DCO", *own)),
    }.items():
        curves = _curves(subjects, methods, "likeness")
        named = [curve.label for curve in curves]
        # the base model and more than one to compare, which no other title has already
        if len(curves) > 2 and named not in drawn and (own or name != "own_methods"):
            drawn.append(named)
            pictures[name] = pareto_figure(curves, title, "subject likeness", "prompt alignment")
    trained = dict.fromkeys(r["method"] for r in styles if r["method"] != CEILING)
    curves = _curves(styles, tuple(trained), "style_likeness")
    if len(curves) > 1:
        title = "Styles: likeness against prompt (Fig. 5)"
        pictures["style"] = pareto_figure(curves, title, "style likeness", "prompt alignment")
    return pictures


def _curves(means: Sequence[Row], methods: Iterable[str], x: str) -> list[Curve]:
    """A curve a method over w_rg, its plain guidance hollow beside it; error bars are standard errors over units."""
    table = averages(means)
    curves = []
    for method in dict.fromkeys((*methods, BASE)):
        rows = sorted(
            (r for r in table if r["method"] == method and r["guidance"] != PLAIN),
            key=lambda r: r["guidance"],
        )
        if not rows:
            continue
        plain = [r for r in table if r["method"] == method and r["guidance"] == PLAIN]
        curves.append(
            Curve(
                method,
                [(r[x], r["alignment"]) for r in rows],
                [(r[f"{x} sd"] / r["n"] ** 0.5, r["alignment sd"] / r["n"] ** 0.5) for r in rows],
                ["" if method == BASE else f"{r['guidance']:g}" for r in rows],
                [(r[x], r["alignment"]) for r in plain],
            )
        )
    return curves


def noise_distances(rows: Sequence[Row]) -> Figure | None:
    """Fig. 8c: the noise distance over t of DreamBooth and of DCO at each beta, means over units."""
    curves = []
    for method in ("DreamBooth", "DreamBooth + prior 1", *BETAS):
        by_t: dict[float, list[float]] = {}
        for row in rows:
            if row["method"] == method and row["subject"]:
                by_t.setdefault(row["t"], []).append(row["epsilon"])
        if by_t:
            points = [(float(t), float(np.mean(values))) for t, values in sorted(by_t.items())]
            errors = [
                (0.0, float(np.std(v, ddof=1) / len(v) ** 0.5) if len(v) > 1 else 0.0)
                for _, v in sorted(by_t.items())
            ]
            curves.append(Curve(method, points, errors))
    if not curves:
        return None
    return pareto_figure(
        curves, "Distance to the base model (Fig. 8c)", "timestep t", "|eps_theta - eps_phi|^2"
    )


def sheets(study: Study, setting: Setting, workspace: Workspace) -> dict[str, np.ndarray]:
    """Contact sheets: for the first subject, the first style, and their merge, of the first seed: a row a method,
    plain and at the middle w_rg."""
    middle = sorted(study.w_rg)[len(study.w_rg) // 2] if study.w_rg else PLAIN
    subject, style = (names[0] if names else None for names in (study.subjects, study.styles))
    wanted: dict[str, tuple[str | None, str | None, Sequence[str]]] = {}
    if subject:
        wanted["subject"] = (subject, None, study.methods)
    if style:
        wanted["style"] = (None, style, study.style_methods)
    if study.merges:
        wanted["merge"] = (subject, style, study.merges)
    found = {}
    for name, (what, how, methods) in wanted.items():
        rows: dict[str, list[np.ndarray | None]] = {}
        columns = setting.prompts(what, how)
        for method in (BASE, *methods):
            folder = workspace.path(Job(method, what, how, study.seeds[0], next(iter(study.models())))) / PICTURES
            for guidance in (0.0,) if method == BASE else (PLAIN, middle):
                cells = [_picture(folder / f"{guidance}_{i}.png") for i in range(len(columns))]
                if any(cell is not None for cell in cells):
                    rows[_row_label(method, guidance)] = cells
        if rows:
            found[f"sheet_{name}"] = contact_sheet(
                list(rows.values()), list(rows), [_short(c) for c in columns], _TITLES[name]
            )
    return found


_TITLES = {"subject": "My subject", "style": "My style", "merge": "My subject in my style"}


def _row_label(method: str, guidance: float | str) -> str:
    if method == BASE:
        return method
    return f"{method}, {'plain' if guidance == PLAIN else f'w_rg {guidance:g}'}"


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= 34 else prompt[:33].rstrip() + "..."


def _picture(path: Path) -> np.ndarray | None:
    """The picture, small: a sheet has hundreds."""
    if not path.is_file():
        return None
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((96, 96), Image.Resampling.LANCZOS)
        return np.asarray(small)


def all_figures(
    study: Study, setting: Setting, workspace: Workspace, means: Sequence[Row], distances: Sequence[Row]
) -> Mapping[str, np.ndarray | Figure]:
    """{file name: picture}."""
    found: dict[str, np.ndarray | Figure] = {}
    main = study.checkpoint if study.checkpoints else None
    for base in study.models():
        mine = [
            r for r in means
            if (r.get("base") or "") == base and (main is None or r.get("checkpoint") in (0, main, "merged"))
        ]  # fmt: skip
        name_of = f"_{base}" if base else ""
        found |= {f"{name}{name_of}.png": picture for name, picture in frontiers(mine).items()}
    first = next(iter(study.models()))
    distance = noise_distances(
        [r for r in distances if (r.get("base") or "") == first and r.get("on", "references") == "references"]
    )
    if distance is not None:
        found["noise_distance.png"] = distance
    return found | {f"{name}.jpg": picture for name, picture in sheets(study, setting, workspace).items()}
