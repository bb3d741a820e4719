"""Which files of tests a run hands out first."""

from pathlib import Path

# Handed out first, in this order: a process that gets a long file last works alone while the others have ended, and
# a host that runs (tests/host, tests/browser) waits for its tests least where the other process computes meanwhile.
LONGEST_FIRST = (
    "core/test_evidence_regression.py",
    "host",
    "browser",
    "core/test_command_line.py",
    "core/test_processes.py",
    "core/test_generation.py",
    "core/test_options_take_effect.py",
    "engine/test_unusual_unets.py",
    "core/test_diffusers_layouts.py",
    "core/test_evidence_folders.py",
    "core/test_training_run.py",
    "core/test_evidence_protocol.py",
)


def place(file: Path) -> int:
    """Where a file of tests comes in a run: its entry's place in LONGEST_FIRST, or behind them all."""
    tests = Path(__file__).resolve().parent
    if tests not in file.resolve().parents:
        return len(LONGEST_FIRST)
    inside = file.resolve().relative_to(tests)
    names = (inside.as_posix(), inside.parts[0])
    return min((i for i, name in enumerate(LONGEST_FIRST) if name in names), default=len(LONGEST_FIRST))
