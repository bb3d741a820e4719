"""The client, against a stub of the host."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from devtools.api import Client, HostError, HostInterrupted


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
        while self._opcode() not in (None, 8):  # until the client goes, or says that it will
            pass
        self.wfile.write(b"\x88\x00")  # whose farewell is answered: it waits for that
        self.wfile.flush()
        self.close_connection = True

    def _opcode(self) -> int | None:
        """Of the client's next frame, which is read whole: what it hides behind its mask may be any bytes. None at the
        end."""
        head = self.rfile.read(2)
        if len(head) < 2:
            return None
        length = head[1] & 0x7F
        if length > 125:
            length = int.from_bytes(self.rfile.read(2 if length == 126 else 8), "big")
        self.rfile.read(4 + length)  # mask and payload
        return head[0] & 0x0F

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
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
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
