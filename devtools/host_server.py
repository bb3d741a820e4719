"""Start and stop a real ComfyUI with this pack installed in a scratch tree."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from . import environment
from .api import Client, HostError
from .pack_files import copy_pack

PACK_FOLDER = "ComfyUI-DCO"
SCRATCH_FOLDERS = ("models", "input", "output", "temp", "user", "custom_nodes")
START_LIMIT_S = 300
STOP_LIMIT_S = 20


class HostStartError(RuntimeError):
    """The host ended or stayed silent while starting; the message holds the end of its log."""


class HostServer:
    """A ComfyUI process over a scratch tree `base_dir`; use it as a context manager. It ends when this process does,
    however that ends.

    extra_nodes: folders or files of further custom nodes, copied beside the pack.
    Attributes: base_dir, port, address ("127.0.0.1:PORT"), client (devtools.api.Client), log_path.
    Raises HostStartError when the host does not answer within 300 s.
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str],
        extra_nodes: Sequence[str | os.PathLike[str]] = (),
    ):
        self.base_dir = Path(base_dir).resolve()
        self.port = 0  # none yet
        self.extra_nodes = [Path(node) for node in extra_nodes]
        self.log_path = self.base_dir / "host.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def log(self) -> str:
        """Everything the host has written so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def __enter__(self) -> HostServer:
        self._make_tree()
        self.port = _free_port()
        self.client = Client(self.address)
        self._start()
        try:
            self._wait_until_answering()
            self._refuse_failed_imports()
        except BaseException:  # Ctrl-C included: no host may be left behind
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the host and wait for it; killed if it does not leave within 20 s."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def _make_tree(self) -> None:
        for name in SCRATCH_FOLDERS:
            (self.base_dir / name).mkdir(parents=True, exist_ok=True)
        custom_nodes = self.base_dir / "custom_nodes"
        copy_pack(custom_nodes / PACK_FOLDER)
        for node in self.extra_nodes:
            if node.is_dir():
                shutil.copytree(
                    node,
                    custom_nodes / node.name,
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("__pycache__"),
                )
            else:
                shutil.copy2(node, custom_nodes / node.name)

    def _start(self) -> None:
        host = environment.comfyui_path()
        python = environment.venv_python()
        if not python.exists() or not (host / "main.py").is_file():
            raise HostStartError("the environment .dev/ is missing or incomplete; run: python dev.py test")
        arguments = [
            str(python),
            str(Path(__file__).with_name("host_launcher.py")),
            str(host / "main.py"),
            "--port",
            str(self.port),
            "--disable-auto-launch",
            "--disable-api-nodes",
            "--base-directory",
            str(self.base_dir),
            # the default lies in the host's own folder and is locked by the first host that runs from it
            "--database-url",
            f"sqlite:///{(self.base_dir / 'user' / 'comfyui.db').as_posix()}",
        ]
        if not _torch_sees_gpu(python):
            arguments.append("--cpu")
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(
                arguments,
                cwd=host,
                stdin=subprocess.PIPE,  # closed by the system when this process ends: host_launcher.py
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **environment.PASSIVE_WAITING,
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    "PYTHONUTF8": "1",
                },
            )

    def _wait_until_answering(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                code = self._process.returncode
                raise HostStartError(f"the host ended with code {code} while starting:\n{self._tail()}")
            try:
                Client(self.address, timeout=5).system_stats()
                return
            except HostError:
                time.sleep(0.2)
        raise HostStartError(f"the host did not answer within {START_LIMIT_S} s:\n{self._tail()}")

    def _refuse_failed_imports(self) -> None:
        """The host goes on without a custom node that it cannot import; a test or demo must not."""
        failed = [line for line in self.log().splitlines() if "(IMPORT FAILED)" in line]
        if failed and (self.base_dir / "custom_nodes" / PACK_FOLDER / "__init__.py").is_file():
            raise HostStartError(f"the host could not import a custom node: {failed}\n{self.log()}")

    def _tail(self) -> str:
        return "\n".join(self.log().splitlines()[-40:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _torch_sees_gpu(python: Path) -> bool:
    """Ask torch itself where a GPU is listed: its build may lack CUDA (plain wheels on Windows do)."""
    if not environment.has_nvidia_gpu():
        return False
    answer = subprocess.run(
        [str(python), "-c", "import torch; print(torch.cuda.is_available())"], capture_output=True, text=True
    )
    return answer.stdout.strip() == "True"
