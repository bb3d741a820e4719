"""`python -m dco_core evidence`: run a study and write its report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ..errors import DCOError, printable_lines


def add_command(commands: Any) -> None:
    parser = commands.add_parser(
        "evidence",
        help="compare training methods as the paper does, with figures and verdicts",
        description="Run a study: train, sample, score, and draw. Stopped at any moment, the same command goes on. "
        "Jobs run side by side, one a CPU core or a GPU.",
    )
    parser.set_defaults(run=_evidence, stopped="Stopped. The same command goes on.")
    parser.add_argument(
        "--study",
        default="toy-world",
        help="protocol, protocol-merges or protocol-merges-sketch (docs/evidence/protocol.md), toy-world, "
        "holding, two-subjects, toy-world-frontier, -defaults, -quick, sdxl (docs/real-models.md), or a JSON file",
    )
    parser.add_argument("--model", default=None, help="in place of the study's, as for train")
    parser.add_argument(
        "--subjects", nargs="+", default=None, metavar="FOLDER",
        help="of pictures with captions, in place of the study's: objects; with --dreambench-plus: its subjects, as "
        "object/03",
    )  # fmt: skip
    parser.add_argument("--live-subjects", nargs="+", default=None, metavar="FOLDER", help="persons and animals")
    parser.add_argument(
        "--loras", type=Path, default=None, metavar="FOLDER",
        help="for --study two-subjects: the output of --study holding, whose LoRAs it puts into one picture",
    )  # fmt: skip
    parser.add_argument("--judge", default=None, metavar="MODEL", help="a vision-language model that scores too")
    parser.add_argument(
        "--dreambench-plus", type=Path, default=None, metavar="DATA",
        help="its data folder: write a study of --subjects of it into --output, and run nothing",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for jobs, tables, figures and evidence.md"
    )
    parser.add_argument(
        "--workers", "--jobs", type=int, default=None,
        help="jobs at once, which share the GPUs where they are more; left out: one a core or GPU",
    )  # fmt: skip
    parser.add_argument(
        "--scheduler", default=None, metavar="ADDRESS",
        help="of a Dask scheduler, as tcp://HOST:8786: its workers, on any machines that see the output folder under "
        "the same name, do the jobs",
    )  # fmt: skip
    parser.add_argument("--device", default=None, help="cuda, cuda:N or cpu; left out: GPUs if there are any")
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="instead of the study's")
    parser.add_argument(
        "--report-only", action="store_true", help="draw and judge what is done, without running anything"
    )


def _evidence(values: dict[str, Any]) -> int:
    import dataclasses

    if values["dreambench_plus"]:
        return _prepare(values)
    if values["study"] == "two-subjects":
        return _two_subjects(values)
    if values["loras"]:
        raise DCOError("--loras is for --study two-subjects: leave it out.")
    from ..evidence.report import write_report
    from ..evidence.runner import devices, run
    from ..evidence.setting import setting_for
    from ..evidence.study import load_study
    from ..evidence.workspace import Workspace

    output: Path = values["output"].resolve()  # workers start elsewhere
    study = load_study(values["study"], _changes(values))
    if values["seeds"]:
        study = dataclasses.replace(study, seeds=tuple(values["seeds"]))
        study.check()
    found = devices(values["device"], values["workers"])
    failed = [] if values["report_only"] else run(study, output, found, _print_line, values["scheduler"])
    setting = setting_for(study, output / "references", found[0])
    command = f"python -m dco_core evidence --study {values['study']}{_told(values)} --output {output.name}"
    page = write_report(study, setting, Workspace(study, setting, output), output, command, failed)
    _print_line(f"Written {page}")
    return 1 if failed else 0


def _changes(values: dict[str, Any]) -> dict[str, Any]:
    """Of the study, as the options say."""
    known = {"model": values["model"], "judge_model": values["judge"]}
    changes: dict[str, Any] = {name: value for name, value in known.items() if value}
    live, objects = values["live_subjects"] or [], values["subjects"] or []
    if live or objects:
        changes["subjects"] = [*objects, *live]
        changes["categories"] = dict.fromkeys(live, "live subject")
    return changes


def _told(values: dict[str, Any]) -> str:
    """The options that change the study, as they were given."""
    words = []
    for option in ("model", "subjects", "live_subjects", "judge", "seeds"):
        if given := values[option]:
            given = [given] if isinstance(given, str) else given
            words += [f"--{option.replace('_', '-')}", *(shlex.quote(str(one)) for one in given)]
    return "".join(f" {word}" for word in words)


def _two_subjects(values: dict[str, Any]) -> int:
    from ..evidence.two_subjects import run

    if values["loras"] is None:
        raise DCOError("--study two-subjects needs --loras, the output folder of --study holding.")
    _print_line(f"Written {run(values['loras'].resolve(), values['output'].resolve(), _print_line)}")
    return 0


def _prepare(values: dict[str, Any]) -> int:
    from ..evidence.dreambench import prepare

    names = [*(values["subjects"] or []), *(values["live_subjects"] or [])]
    if not names or not values["model"]:
        raise DCOError("--dreambench-plus needs --subjects, as object/03, and --model, as diffusers:FOLDER.")
    output: Path = values["output"].resolve()
    study, captions = prepare(values["dreambench_plus"].resolve(), names, values["model"], output)
    _print_line(f"Written {study}. Say in each caption what its picture shows (docs/real-models.md):")
    for path in captions:
        _print_line(f"  {path}")
    _print_line(f"Then run: python -m dco_core evidence --study {study} --output RESULTS")
    return 0


def _print_line(text: str) -> None:
    print(printable_lines(text), flush=True)
