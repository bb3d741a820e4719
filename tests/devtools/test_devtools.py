"""The bootstrap's own rules, against small archives, trees and a stub of the host."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from devtools import environment
from devtools.api import Client, HostError, HostInterrupted
from devtools.environment import ROOT, SetupError
from devtools.host_server import HostServer, HostStartError
from devtools.pack_files import copy_pack, pack_files


def write_tree(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


# --- which files the pack carries ---


def test_copy_honours_both_ignore_files_and_never_takes_git_or_dev(tmp_path: Path) -> None:
    root = tmp_path / "pack"
    write_tree(
        root,
        "__init__.py",
        "nodes/train.py",
        "nodes/__pycache__/train.pyc",
        "web/docs/A.md",
        "tests/a.py",
        "dco_core/tests/kept.py",
        "docs/big.png",
        ".git/HEAD",
        ".dev/venv/pyvenv.cfg",
        "out/x.bin",
        "dev.py",
    )
    (root / ".gitignore").write_text("out/\n")
    (root / ".comfyignore").write_text(
        "# development only\n/tests/\n/docs/\n/dev.py\n.gitignore\n.comfyignore\n"
    )
    copy_pack(tmp_path / "copy", root)
    copied = sorted(
        p.relative_to(tmp_path / "copy").as_posix() for p in (tmp_path / "copy").rglob("*") if p.is_file()
    )
    assert copied == ["__init__.py", "dco_core/tests/kept.py", "nodes/train.py", "web/docs/A.md"]


def test_a_second_copy_leaves_no_file_of_the_first(tmp_path: Path) -> None:
    root = tmp_path / "pack"
    write_tree(root, "old.py")
    copy_pack(tmp_path / "copy", root)
    (root / "old.py").rename(root / "new.py")
    copy_pack(tmp_path / "copy", root)
    assert [p.name for p in (tmp_path / "copy").iterdir()] == ["new.py"]


@pytest.mark.parametrize(
    ("pattern", "path", "is_folder", "ignored"),
    [
        ("*.pyc", "a/b/c.pyc", False, True),
        ("/top.py", "sub/top.py", False, False),
        ("build/", "x/build", True, True),
        ("build/", "x/build", False, False),
        ("a/*.txt", "a/b/c.txt", False, False),
        ("a/**/c.txt", "a/b/d/c.txt", False, True),
        ("a/**/c.txt", "a/c.txt", False, True),
        ("*.py[cod]", "m.pyd", False, True),
        ("*.jpg\n!keep.jpg", "w/keep.jpg", False, False),
        ("/logs/*\n!/logs/kept", "logs/kept", False, False),
        ("/logs/\n!/logs/kept", "logs/kept", False, True),  # nothing comes back out of a folder
        ("\\#notes", "#notes", False, True),
        ("\\!notes", "!notes", False, True),
        ("logs/**", "logs/deep/a.txt", False, True),
        ("part[!0-9].txt", "partA.txt", False, True),
        ("space\\ ", "space ", False, True),
    ],
)
def test_ignore_rules_read_as_git_reads_them(
    tmp_path: Path, pattern: str, path: str, is_folder: bool, ignored: bool
) -> None:
    name = f"{path}/inside" if is_folder else path
    write_tree(tmp_path, name)
    (tmp_path / ".gitignore").write_text(pattern + "\n")
    assert (Path(name) not in pack_files(tmp_path)) is ignored
    # git itself is the oracle
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    git = subprocess.run(["git", "-C", str(tmp_path), "check-ignore", "-q", name])
    assert (git.returncode == 0) is ignored


def test_this_repository_ships_no_development_file() -> None:
    tops = {path.parts[0] for path in pack_files()}
    assert not tops & {"tests", "devtools", "tools", "benchmarks", ".ci", ".dev", ".git", "dev.py"}
    assert {"dco_core", "requirements.txt"} <= tops


def test_the_pack_never_asks_for_torch_or_an_exact_version() -> None:
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert not line.startswith("torch") and "==" not in line, line


# --- fetching the host ---


def make_archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("top/vendor/Host/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)


def test_a_download_with_another_hash_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "host.tar.gz"
    archive.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(SetupError, match=found):
        environment.verify_sha256(archive, environment.HOST_SDIST_SHA256)
    environment.verify_sha256(archive, found)


def test_extraction_takes_only_the_subtree_and_no_links(tmp_path: Path) -> None:
    make_archive(
        tmp_path / "a.tar.gz", {"top/vendor/Host/main.py": b"1", "top/vendor/Hostile/x": b"2", "top/y": b"3"}
    )
    write_tree(tmp_path / "Host", "left_from_before.py")
    environment.extract_subtree(tmp_path / "a.tar.gz", "vendor/Host", tmp_path / "Host")
    assert [p.name for p in (tmp_path / "Host").iterdir()] == ["main.py"]


@pytest.mark.parametrize(
    "name", ["top/vendor/Host/../../../evil.py", "top/vendor/Host/C:/evil.py", "top/vendor/Host/a\\b"]
)
def test_a_path_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    make_archive(tmp_path / "a.tar.gz", {name: b"1"})
    with pytest.raises(SetupError, match="unsafe path"):
        environment.extract_subtree(tmp_path / "a.tar.gz", "vendor/Host", tmp_path / "x" / "Host")
    assert not (tmp_path / "x" / "Host").exists() and not (tmp_path / "evil.py").exists()


def test_host_requirements_lose_the_torch_family_and_split_at_the_hosts_own_mark() -> None:
    text = (
        "torch\ntorchsde\ntorchvision==1 # pinned\n--extra-index-url x\nnumpy>=1.25\n\n"
        "#non essential dependencies:\nkornia>=0.7.1\ntorchaudio\n"
    )
    assert environment.split_host_requirements(text) == (["torchsde", "numpy>=1.25"], ["kornia>=0.7.1"])


@pytest.mark.parametrize(
    ("gpu", "platform", "first"),
    [
        (True, "linux", ["torch", "torchvision", "torchaudio"]),
        (False, "linux", ["torch==2.13.0"]),
        (False, "darwin", ["torch==2.13.0", "torchvision", "torchaudio"]),
    ],
)
def test_torch_is_chosen_by_gpu_and_system(gpu: bool, platform: str, first: list[str]) -> None:
    assert environment.torch_commands(gpu, platform)[0] == first


def test_comfyui_path_without_a_host_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match="no main.py"):
        environment.comfyui_path()


def test_a_finished_step_runs_once_until_its_request_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "STAMPS", tmp_path / "stamps.json")
    steps, done = environment._Steps(total=1), []
    for asked in ("a", "a", "b", "b"):
        steps.run(1, "pack", asked, "step", lambda asked=asked: done.append(asked))
    assert done == ["a", "b"]

    def fail() -> None:
        raise SetupError("no network")

    with pytest.raises(SetupError):
        steps.run(1, "pack", "c", "step", fail)
    steps.run(1, "pack", "c", "step", lambda: done.append("c"))
    assert done == ["a", "b", "c"]


def test_dev_py_needs_only_the_standard_library_to_show_its_help() -> None:
    shown = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "dev.py"), "--help"], capture_output=True, text=True
    )
    assert shown.returncode == 0 and "demo" in shown.stdout, shown.stderr
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import devtools.tasks"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


# --- starting the host ---


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
pathlib.Path(__file__).with_name("port").write_text(str(port))
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
import sys
from pathlib import Path
from devtools import demo
def run(client, output, loras):
    Path("ready").touch()
demo.run, demo.DEV = run, demo.Path(sys.argv[1])
sys.argv[1:] = ["--serve", "--output", sys.argv[1]]
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
    ("command", "name"), [("demo --serve", "SIGTERM"), ("demo --serve", "SIGKILL"), ("test", "SIGTERM")]
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
    program = ["demo.py", str(tmp_path / "out")] if command == "demo --serve" else pytest_command
    code = f"ROOT, PROGRAM, FOLDER = {str(ROOT)!r}, {program!r}, {str(tmp_path)!r}\n{AS_DEV_PY}"
    env = {**os.environ, "COMFYUI_PATH": str(tmp_path / "host"), "PYTHONPATH": str(ROOT)}
    dev = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.DEVNULL)
    while not (tmp_path / "ready").exists():
        assert dev.poll() is None, "ended before its host was ready"
        time.sleep(0.1)
    port = int((tmp_path / "host" / "port").read_text())
    assert answers(port)
    if name == "SIGTERM":
        dev.terminate()
        assert dev.wait(60) == 128 + signal.SIGTERM
        assert not answers(port)  # stopped before dev.py ends
    else:
        (child,) = psutil.Process(dev.pid).children()
        child.kill()
        dev.wait(60)
        deadline = time.monotonic() + 20
        while answers(port):
            assert time.monotonic() < deadline, "the host is still there"
            time.sleep(0.1)


# --- the client, against a stub of the host ---


class StubHost(BaseHTTPRequestHandler):
    """Answers from `answers`: {path: (status, object)}; /ws speaks just enough websocket."""

    answers: dict[str, tuple[int, object]] = {}
    received: list[tuple[str, bytes]] = []
    frames: bytes = b""

    def do_GET(self) -> None:
        if self.path.startswith("/ws"):
            self._websocket()
        else:
            self.received.append((self.path, b""))
            self._answer()

    def do_POST(self) -> None:
        self.received.append((self.path, self.rfile.read(int(self.headers.get("Content-Length", 0)))))
        self._answer()

    def _answer(self) -> None:
        status, content = self.answers.get(self.path, (200, {}))
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _websocket(self) -> None:
        guid = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = hashlib.sha1(self.headers["Sec-WebSocket-Key"].encode() + guid).digest()
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(accept) + b"\r\n\r\n"
        )
        for byte in range(0, len(self.frames), 7):  # in crumbs, as a network may deliver them
            self.wfile.write(self.frames[byte : byte + 7])
            self.wfile.flush()
        while self.rfile.read(1):  # until the client goes
            pass
        self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[type[StubHost]]:
    class Handler(StubHost):
        answers: dict[str, tuple[int, object]] = {}
        received: list[tuple[str, bytes]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Handler.client = Client(f"127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Handler
    server.shutdown()
    server.server_close()


NODE_ERRORS = {
    "7": {
        "class_type": "LoraLoader",
        "errors": [{"message": "Value not in list", "details": "'a' not in []"}],
    }
}


@pytest.mark.parametrize("status", [200, 400])
def test_a_dropped_branch_raises_even_when_the_host_answers_200(stub: type, status: int) -> None:
    stub.answers["/prompt"] = (status, {"prompt_id": "p1", "node_errors": NODE_ERRORS})
    with pytest.raises(HostError, match=r"node 7 \(LoraLoader\): Value not in list: 'a' not in \[\]"):
        stub.client.queue({})


def test_the_half_accepted_prompt_is_taken_back(stub: type) -> None:
    stub.answers["/prompt"] = (200, {"prompt_id": "p1", "node_errors": NODE_ERRORS})
    with pytest.raises(HostError):
        stub.client.queue({})
    assert ("/queue", b'{"delete": ["p1"]}') in stub.received
    assert ("/interrupt", b'{"prompt_id": "p1"}') in stub.received


def history(kind: str, data: dict[str, object]) -> tuple[int, object]:
    status = "success" if kind == "execution_success" else "error"
    return 200, {
        "p1": {
            "status": {"status_str": status, "messages": [[kind, data]]},
            "outputs": {"1": {"text": ["x"]}},
        }
    }


def test_wait_tells_success_error_and_interrupt_apart(stub: type) -> None:
    stub.answers["/history/p1"] = history("execution_success", {})
    assert stub.client.wait("p1")["outputs"] == {"1": {"text": ["x"]}}
    failure = {
        "node_id": "4",
        "node_type": "DCOTrain",
        "exception_message": "rank is 0\n",
        "exception_type": "DCOError",
        "traceback": ["line 1\n", "line 2\n"],
    }
    stub.answers["/history/p1"] = history("execution_error", failure)
    with pytest.raises(HostError, match=r"node 4 \(DCOTrain\): rank is 0$") as caught:
        stub.client.wait("p1")
    assert (caught.value.exception_type, caught.value.traceback) == ("DCOError", "line 1\nline 2\n")
    assert not isinstance(caught.value, HostInterrupted)
    stub.answers["/history/p1"] = history("execution_interrupted", {"node_id": "4"})
    with pytest.raises(HostInterrupted):
        stub.client.wait("p1")


def test_a_prompt_that_never_ends_is_given_up(stub: type) -> None:
    with pytest.raises(HostError, match="did not finish within 0.2 s"):
        stub.client.wait("p1", timeout=0.2)


def test_a_host_that_is_gone_is_named() -> None:
    with pytest.raises(HostError, match="127.0.0.1:9 does not answer /object_info"):
        Client("127.0.0.1:9").object_info()


def test_upload_sends_the_bytes_and_returns_the_widget_value(stub: type, tmp_path: Path) -> None:
    content = bytes(range(256))
    (tmp_path / "a.png").write_bytes(content)
    stub.answers["/upload/image"] = (200, {"name": "b.png", "subfolder": "refs", "type": "input"})
    assert stub.client.upload_image(tmp_path / "a.png", "refs", "b.png") == "refs/b.png"
    body = stub.received[-1][1]
    assert content in body and b'filename="b.png"' in body and b"\r\nrefs\r\n" in body


def test_a_name_with_quotes_cannot_end_its_field_of_the_form(stub: type, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    stub.answers["/upload/image"] = (200, {"name": "b.png", "subfolder": "", "type": "input"})
    stub.client.upload_image(tmp_path / "a.png", name='b"; name="x.png')
    assert b'name="x' not in stub.received[-1][1]
    with pytest.raises(ValueError, match="control character"):
        stub.client.upload_image(tmp_path / "a.png", name="b\r\nX: y.png")


def test_a_name_with_signs_of_addresses_is_asked_for_as_it_is(stub: type) -> None:
    stub.client.download("a&b +c#%.png", "\u00e9/x")
    asked = urllib.parse.urlsplit(stub.received[-1][0])
    assert asked.path == "/view" and urllib.parse.parse_qs(asked.query) == {
        "filename": ["a&b +c#%.png"],
        "subfolder": ["\u00e9/x"],
        "type": ["output"],
    }


def test_a_host_that_is_silent_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(HostError, match=f"{address} does not answer /system_stats"):
            Client(address, timeout=0.3).system_stats()


def frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    size = len(payload)
    length = (
        bytes([size])
        if size < 126
        else b"\x7e" + struct.pack(">H", size)
        if size < 65536
        else b"\x7f" + struct.pack(">Q", size)
    )
    return bytes([opcode | (0x80 if final else 0)]) + length + payload


def test_progress_arrives_in_order_through_fragments_pings_and_long_frames(stub: type) -> None:
    text = json.dumps({"type": "progress", "data": {"value": 3, "max": 5, "pad": "x" * 300}}).encode()
    metadata = json.dumps({"node_id": "4", "image_type": "image/png"}).encode()
    picture = bytes(70_000)
    stub.frames = (
        frame(1, text[:50], final=False)
        + frame(9, b"are you there")
        + frame(0, text[50:])
        + frame(2, struct.pack(">II", 4, len(metadata)) + metadata + picture)
        + frame(2, struct.pack(">II", 1, 1) + b"jpeg")
        + frame(1, b'{"type": "executing", "data": {"node": null}}')
    )
    stub.answers["/prompt"] = (200, {"prompt_id": "p1", "node_errors": {}})
    stub.answers["/history/p1"] = history("execution_success", {})
    seen: list[tuple[str, dict]] = []
    stub.client.run({}, lambda kind, data: seen.append((kind, data)))
    assert [kind for kind, _ in seen] == ["progress", "preview", "preview", "executing"]
    assert seen[0][1]["value"] == 3
    assert seen[1][1] == {"node_id": "4", "image_type": "image/png", "image": picture}
    assert seen[2][1] == {"image_type": "image/jpeg", "image": b"jpeg"}
