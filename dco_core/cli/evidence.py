"""`python -m dco_core evidence`: run a study and write its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import printable_lines


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
        "toy-world-frontier, -defaults, -quick, or a JSON file",
    )
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

    from ..evidence.report import write_report
    from ..evidence.runner import devices, run
    from ..evidence.setting import setting_for
    from ..evidence.study import load_study
    from ..evidence.workspace import Workspace

    output: Path = values["output"].resolve()  # workers start elsewhere
    study = load_study(values["study"])
    if values["seeds"]:
        study = dataclasses.replace(study, seeds=tuple(values["seeds"]))
        study.check()
    found = devices(values["device"], values["workers"])
    failed = [] if values["report_only"] else run(study, output, found, _print_line, values["scheduler"])
    setting = setting_for(study, output / "references", found[0])
    seeds = f" --seeds {' '.join(map(str, values['seeds']))}" if values["seeds"] else ""
    command = f"python -m dco_core evidence --study {values['study']}{seeds} --output {output.name}"
    page = write_report(study, setting, Workspace(study, setting, output), output, command, failed)
    _print_line(f"Written {page}")
    return 1 if failed else 0


def _print_line(text: str) -> None:
    print(printable_lines(text), flush=True)
