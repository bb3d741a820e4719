"""Starting the host and leaving none behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from devtools import environment
from devtools.environment import ROOT
from devtools.host_server import HostServer, HostStartError


def write_tree(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)

def test_a_host_that_dies_shows_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "fake"
    write_tree(fake, "main.py")
    (fake / "main.py").write_text("import sys\nsys.exit('no such model zoo')\n")
    monkeypatch.setenv("COMFYUI_PATH", str(fake))
    monkeypatch.setattr(environment, "venv_python", lambda: Path(sys.executable))
    with pytest.raises(HostStartError, match="no such model zoo"), HostServer(tmp_path / "base"):
        pass


FAKE_HOST = """
import http.server, pathlib, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
port = int(sys.argv[sys.argv.index("--port") + 1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
with pathlib.Path(__file__).with_name("ports").open("a") as ports:
    ports.write(f"{port} ")
server.serve_forever()
"""
# As dev.py runs its commands, on a host that is there at once; PROGRAM is the command.
AS_DEV_PY = """
import sys
sys.path.insert(0, ROOT)
from devtools import environment, tasks
from pathlib import Path
environment.venv_python = lambda: Path(sys.executable)
tasks.end_cleanly_on_sigterm()
sys.exit(tasks._python(PROGRAM, Path(FOLDER), environment.comfyui_path()))
"""
DEMO = """
import sys, time
from pathlib import Path
from devtools import demo
def run(hosts, pool, output):
    Path("ready").touch()
    time.sleep(0 if "--serve" in sys.argv else 90)
demo.run, demo.DEV = run, demo.Path(sys.argv[1])
sys.argv[1:] = [*sys.argv[2:], "--output", sys.argv[1]]
sys.exit(demo.main())
"""
A_TEST = """
import time
from pathlib import Path
from devtools.host_server import HostServer
def test_on_a_host(tmp_path):
    with HostServer(tmp_path / "base"):
        Path("ready").touch()
        time.sleep(90)
"""


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM: it kills")
@pytest.mark.parametrize(
    ("command", "name"), [("demo", "SIGTERM"), ("demo", "SIGKILL"), ("demo --serve", "SIGTERM"), ("test", "SIGTERM")]
)
def test_kill_leaves_no_host_behind(tmp_path: Path, command: str, name: str) -> None:
    """SIGTERM to dev.py, or SIGKILL to what it runs, which then has no time to stop its host."""
    write_tree(tmp_path, "host/main.py", "test_one.py", "demo.py")
    (tmp_path / "host" / "main.py").write_text(FAKE_HOST)
    (tmp_path / "test_one.py").write_text(A_TEST)
    (tmp_path / "demo.py").write_text(DEMO)
    # the conftest.py of the tests: it says what a signal does to pytest
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "conftest.py")
    pytest_command = ["-m", "pytest", "-n", "1", "test_one.py"]
    program = pytest_command
    if command.startswith("demo"):
        program = ["demo.py", str(tmp_path / "out"), *command.split()[1:]]
    code = f"ROOT, PROGRAM, FOLDER = {str(ROOT)!r}, {program!r}, {str(tmp_path)!r}\n{AS_DEV_PY}"
    env = {**os.environ, "COMFYUI_PATH": str(tmp_path / "host"), "PYTHONPATH": str(ROOT)}
    dev = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.DEVNULL)
    while not (tmp_path / "ready").exists():
        assert dev.poll() is None, "ended before its host was ready"
        time.sleep(0.1)
    ports = [int(port) for port in (tmp_path / "host" / "ports").read_text().split()]
    assert len(ports) == (1 if command == "test" else 2)
    # while it serves, the second host of the demo is gone or going
    assert (any if "--serve" in command else all)(map(answers, ports))
    if name == "SIGTERM":
        dev.terminate()
        assert dev.wait(60) == 128 + signal.SIGTERM
        assert not any(map(answers, ports))  # stopped before dev.py ends
    else:
        (child,) = psutil.Process(dev.pid).children()
        child.kill()
        dev.wait(60)
        deadline = time.monotonic() + 20
        while any(map(answers, ports)):
            assert time.monotonic() < deadline, "the host is still there"
            time.sleep(0.1)
