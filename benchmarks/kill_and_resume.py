"""Kill training at random moments and see that it goes on as if nothing had happened.

    python -m benchmarks.kill_and_resume --kills 200 --processes 10

Every trial is `python -m dco_core train --model toy-world ...` on four small pictures, killed with SIGKILL at a random
moment, some trials again and again while they resume, and then run to its end. Its file must be byte for byte that of a
run that nobody disturbed, nothing half-written may carry a checkpoint's name, and only a few checkpoints may lie
about. Moments are of three kinds: a quarter anywhere from the start of the command on, a half a moment after a
checkpoint of a random step is there, a quarter while a checkpoint is being written. `--processes` kills hit complete
processes; the others a fork of one process that has torch imported. Exit status 1 if anything differs. Needs fork():
Linux or macOS.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from dco_core.cli.commands import main as command_line
from dco_core.pipeline.output_files import checkpoint_folder
from dco_core.toy_world.references import write_toy_references
from dco_core.training.checkpoints import KEPT

ROOT = Path(__file__).resolve().parent.parent
_CHECKPOINT = re.compile(r"[0-9a-f]{16}-(\d{8})\.safetensors")


@dataclass
class Tally:
    """Where kills fell: the newest checkpoint's step then (-1: none yet), and how many writes they cut. resumes: runs
    that went on from a checkpoint. strays: temporary files of cut writes, which a later run removes when they are an
    hour old."""

    kills: int = 0
    resumes: int = 0
    steps: collections.Counter[int] = field(default_factory=collections.Counter)
    writing: int = 0
    trials: int = 0
    most_checkpoints: int = 0
    most_strays: int = 0
    wrong: list[str] = field(default_factory=list)


class Trainer:
    """The command of one trial, in a process of its own or in a fork of this one."""

    def __init__(self, data: Path, output: Path, steps: int, every: int, look_ahead: int):
        self.output, self.folder, self.steps = output, checkpoint_folder(output), steps
        self.arguments = [
            "train", "--model", "toy-world", "--data", str(data), "--output", str(output), "--steps", str(steps),
            "--seed", "3", "--beta", "1", "--learning-rate", "1e-3", "--rank", "4", "--threads", "1",
            "--checkpoint-every", str(every), "--look-ahead", str(look_ahead),
        ]  # fmt: skip

    def start(self, whole_process: bool) -> int:
        if whole_process:
            command = [sys.executable, "-m", "dco_core", *self.arguments]
            quiet = subprocess.DEVNULL
            return subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet).pid
        child = os.fork()
        if child:
            return child
        status = 1
        with contextlib.suppress(BaseException), open(os.devnull, "w") as quiet:
            sys.stdout = sys.stderr = quiet
            status = command_line(self.arguments)
        os._exit(status)

    def finish(self, whole_process: bool) -> bool:
        _, status = os.waitpid(self.start(whole_process), 0)
        return status == 0

    def being_written(self) -> list[Path]:
        return list(self.folder.glob(".*.tmp")) if self.folder.is_dir() else []

    def checkpoints(self) -> list[Path]:
        found = self.folder.glob("*.safetensors") if self.folder.is_dir() else []
        return sorted(path for path in found if _CHECKPOINT.fullmatch(path.name))

    def newest(self) -> int:
        """The step of the newest checkpoint, -1 if there is none."""
        steps = [int(_CHECKPOINT.fullmatch(path.name)[1]) for path in self.checkpoints()]  # type: ignore[index]
        return max(steps, default=-1)


def moment(trainer: Trainer, seconds: float, strays: set[Path]) -> Callable[[], bool]:
    """Says when it is time to kill a command that takes so many seconds. strays: what earlier kills left."""
    kind, started = (
        random.choice(("anywhere", "after a step", "after a step", "while writing")),
        time.monotonic(),
    )
    at = started + random.uniform(0, 1.1 * seconds)
    step = random.randint(min(trainer.newest() + 1, trainer.steps), trainer.steps)
    if kind == "anywhere":
        return lambda: time.monotonic() > at
    if kind == "while writing":
        return lambda: time.monotonic() > at and bool(set(trainer.being_written()) - strays)
    pause, reached = random.uniform(0, seconds / trainer.steps), 0.0

    def is_now() -> bool:
        nonlocal reached
        if not reached and trainer.newest() >= step:
            reached = time.monotonic()
        return bool(reached) and time.monotonic() > reached + pause

    return is_now


def kill(trainer: Trainer, seconds: float, whole_process: bool, tally: Tally) -> bool:
    """Start the command and kill it; False if it was done first."""
    strays = set(trainer.being_written())
    is_now = moment(trainer, seconds, strays)
    tally.resumes += trainer.newest() >= 0
    process = trainer.start(whole_process)
    while not is_now():
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status):
        return False
    tally.kills += 1
    tally.writing += bool(set(trainer.being_written()) - strays)
    tally.steps[trainer.newest()] += 1
    tally.most_checkpoints = max(tally.most_checkpoints, len(trainer.checkpoints()))
    tally.most_strays = max(tally.most_strays, len(trainer.being_written()))
    return True


def is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return all(file.get_tensor(key) is not None for key in file.keys())
    except (SafetensorError, OSError):
        return False


def trial(
    trainer: Trainer, kills: int, seconds: float, whole_process: bool, expected: bytes, tally: Tally
) -> None:
    """Kill so many runs of one command, look at what is left each time, and let it end."""
    tally.trials += 1
    for _ in range(kills):
        if trainer.output.exists():
            break
        kill(trainer, seconds, whole_process, tally)
        for path in [*trainer.checkpoints(), *([trainer.output] if trainer.output.exists() else [])]:
            if not is_whole(path):
                tally.wrong.append(f"trial {tally.trials}: {path.name} is half-written")
        if len(trainer.checkpoints()) > KEPT + 1:  # one more if it died between writing and dropping
            tally.wrong.append(f"trial {tally.trials}: {len(trainer.checkpoints())} checkpoints")
    tally.resumes += trainer.newest() >= 0
    if not trainer.finish(whole_process):
        tally.wrong.append(f"trial {tally.trials}: the resumed run failed")
    elif trainer.output.read_bytes() != expected:
        tally.wrong.append(f"trial {tally.trials}: another file")
    elif len(trainer.checkpoints()) != 1:
        tally.wrong.append(f"trial {tally.trials}: {len(trainer.checkpoints())} checkpoints at the end")


def table(tally: Tally) -> str:
    """A markdown table, and the histogram of where kills fell."""
    facts = {
        "kills": tally.kills,
        "trials": tally.trials,
        "resumed from a checkpoint": tally.resumes,
        "while a checkpoint was being written": tally.writing,
        "most checkpoints at once": tally.most_checkpoints,
        "most cut writes lying about": tally.most_strays,
        "wrong": len(tally.wrong),
    }
    lines = [
        f"| {' | '.join(facts)} |",
        "|---" * len(facts) + "|",
        f"| {' | '.join(map(str, facts.values()))} |",
    ]
    lines += ["", "| newest checkpoint at the kill | kills |", "|---|---|"]
    lines += [f"| {'none' if s < 0 else f'step {s}'} | {n} |" for s, n in sorted(tally.steps.items())]
    return "\n".join(lines + ["", *tally.wrong])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=10, help="of the kills: of complete processes")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        write_toy_references(room / "data", "toy")

        def trainer(number: int, every: int, look_ahead: int) -> Trainer:
            # the file's name is in its header: every trial has a folder instead
            output = room / str(number) / "toy.safetensors"
            return Trainer(room / "data", output, options.steps, every, look_ahead)

        # once here, so that forks find everything imported; with the windows that trials use
        expected: dict[int, bytes] = {}
        seconds: dict[bool, float] = {}
        for number, window in enumerate((1, 4)):
            first = trainer(-1 - number, 1, window)
            with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
                with contextlib.redirect_stderr(quiet):
                    if command_line(first.arguments):
                        raise SystemExit("The undisturbed run failed.")
            expected[window] = first.output.read_bytes()
        for whole_process in (False, True)[: 1 + bool(options.processes)]:
            started = time.monotonic()
            if not trainer(-3 - whole_process, 1, 4).finish(whole_process):
                raise SystemExit("The undisturbed run failed.")
            seconds[whole_process] = time.monotonic() - started
        while tally.kills < options.kills:
            number = tally.trials
            whole_process = tally.kills < options.processes
            window = random.choice((1, 4))
            one = trainer(number, random.choice((1, 2, 3)), window)
            left = (options.processes if whole_process else options.kills) - tally.kills
            kills = min(random.choice((1, 1, 2, 4)), left)
            trial(one, kills, seconds[whole_process], whole_process, expected[window], tally)
            shutil.rmtree(one.output.parent)
            if sys.stderr.isatty():
                print(f"\r{tally.kills} kills, {len(tally.wrong)} wrong", end="", file=sys.stderr, flush=True)
    print(table(tally))
    print("\nAll files are byte-equal." if not tally.wrong else "\nSomething differs.")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
