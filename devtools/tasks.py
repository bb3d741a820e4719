"""What `dev.py` runs inside the prepared environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from . import browser, environment
from .environment import DEV, PASSIVE_WAITING, ROOT

# Files of tests side by side, each process with a host of its own: one more than there are cores, as a process that
# waits for its host leaves one idle. Files are handed out in the order of tests/conftest.py (longest first), not by how
# many tests they hold.
_PROCESSES = min(4, (os.cpu_count() or 1) + 1)
_SIDE_BY_SIDE = ("-n", str(_PROCESSES), "--dist", "loadfile", "--no-loadscope-reorder")
_ONE_THREAD = {**PASSIVE_WAITING, "OMP_NUM_THREADS": "1"}


def end_cleanly_on_sigterm() -> None:
    """Let `kill` end this process by SystemExit, so that what it has started is ended too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def demo(output: str, serve: bool) -> int:
    """Run `devtools.demo`; returns its exit code."""
    host = environment.prepare(for_tests=False)
    arguments = ["-m", "devtools.demo", "--output", str(Path(output).resolve())]
    return _python([*arguments, "--serve"] if serve else arguments, ROOT, host)


def test(pytest_arguments: list[str]) -> int:
    """Run ruff, the type check and pytest; returns pytest's exit code, or 1 if only an earlier one failed."""
    host = environment.prepare(for_tests=True)
    browser.install_if_possible()
    print("ruff ...", flush=True)
    failed = _python(["-m", "ruff", "check", "."], ROOT, host)
    print("type check ...", flush=True)
    failed |= type_check(host)
    arguments = pytest_arguments
    if not any(argument.startswith("tests") for argument in arguments):
        arguments = ["tests", *arguments]
    return _python(["-m", "pytest", *_SIDE_BY_SIDE, *arguments], ROOT, host, _ONE_THREAD) or min(failed, 1)


def evidence(arguments: list[str]) -> int:
    """Run `python -m dco_core evidence`, into evidence_output/ unless told otherwise; returns its exit code."""
    host = environment.prepare(for_tests=True)  # joblib is among the test tools
    if "--output" not in arguments and "--help" not in arguments:
        arguments = [*arguments, "--output", "evidence_output"]
    return _python(["-m", "dco_core", "evidence", *arguments], ROOT, host, _ONE_THREAD)


def type_check(host: Path) -> int:
    """Run mypy on the pack, then on the developer tools.

    The pack uses relative imports across its folders, so it is checked as one package from a copy: its real
    folder may have any name, also one that is no Python identifier.
    """
    room = DEV / "typecheck"
    copied = _python(["-m", "devtools.pack_files", str(room / "comfyui_dco"), ".py"], ROOT, host)
    config = ROOT / "pyproject.toml"
    mypy = ["-m", "mypy", f"--config-file={config}", f"--cache-dir={DEV / 'mypy_cache'}"]
    pack = _python([*mypy, "-p", "comfyui_dco"], room, host)
    tools = _python([*mypy, "--explicit-package-bases", "devtools", "dev.py"], ROOT, host)
    return copied or pack or tools


def _python(
    arguments: list[str], folder: Path, host: Path, defaults: Mapping[str, str] = PASSIVE_WAITING
) -> int:
    """Run the environment's Python; defaults: environment variables that the user's own go before."""
    command = [str(environment.venv_python()), *arguments]
    process = subprocess.Popen(command, cwd=folder, env={**defaults, **os.environ, "COMFYUI_PATH": str(host)})
    try:
        return process.wait()
    except KeyboardInterrupt:  # the child got Ctrl-C too and stops its host
        return process.wait()
    except SystemExit:  # `kill` reaches this process alone
        process.terminate()
        process.wait()
        raise
