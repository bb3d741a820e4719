"""A minimal websocket client (RFC 6455) for the host's progress messages."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import time
from types import TracebackType
from typing import Any

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
# the host's protocol.py
PREVIEW_IMAGE, TEXT_MESSAGE, PREVIEW_WITH_METADATA = 1, 3, 4


class ProgressSocket:
    """The host's /ws for one client id; a context manager.

    Announces support for previews with metadata, so that each preview names its node.
    """

    def __init__(self, address: str, client_id: str):
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=30)
        self._buffer = bytearray()
        self._fragments = bytearray()
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            (
                f"GET /ws?clientId={client_id} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
            ).encode()
        )
        while b"\r\n\r\n" not in self._buffer:
            self._read_more()
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if b" 101 " not in head.splitlines()[0]:
            raise ConnectionError(f"{address}/ws refused the websocket: {head.splitlines()[0].decode()}")
        self._buffer = bytearray(rest)
        self._send(
            TEXT, json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}).encode()
        )

    def receive(self, timeout: float) -> tuple[str, dict[str, Any]] | None:
        """The next message as (kind, data), or None when none arrives within `timeout` seconds.

        JSON messages keep the host's type and data. A preview is ("preview", {"image": encoded bytes,
        "image_type": "image/jpeg" or "image/png", "node_id": ..., ...}); binary progress text is
        ("text", {"raw": bytes}).
        Raises ConnectionError when the host closes the connection.
        """
        deadline = time.monotonic() + timeout
        while True:
            frame = self._take_frame()
            if frame is None:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                self._socket.settimeout(remaining)
                try:
                    self._read_more()
                except TimeoutError:
                    return None
                continue
            final, opcode, payload = frame
            if opcode == CLOSE:
                raise ConnectionError("the host closed the websocket")
            if opcode == PING:
                self._send(PONG, payload)
            elif opcode != PONG:
                if opcode:  # 0 continues the fragments before it
                    self._opcode = opcode
                self._fragments += payload
                if final:
                    whole, self._fragments = bytes(self._fragments), bytearray()
                    return _decode(self._opcode, whole)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> ProgressSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_more(self) -> None:
        received = self._socket.recv(65536)
        if not received:
            raise ConnectionError("the host closed the websocket")
        self._buffer += received

    def _take_frame(self) -> tuple[bool, int, bytes] | None:
        """Cut one complete server frame (never masked) off the buffer: (final, opcode, payload)."""
        if len(self._buffer) < 2:
            return None
        size, start = self._buffer[1] & 0x7F, 2
        if size >= 126:
            layout = ">H" if size == 126 else ">Q"
            start += struct.calcsize(layout)
            if len(self._buffer) < start:
                return None
            (size,) = struct.unpack_from(layout, self._buffer, 2)
        if len(self._buffer) < start + size:
            return None
        first, payload = self._buffer[0], bytes(self._buffer[start : start + size])
        del self._buffer[: start + size]
        return bool(first & 0x80), first & 0x0F, payload

    def _send(self, opcode: int, payload: bytes) -> None:
        """Send one frame; a client must mask. Payloads here stay below 126 bytes (flags, pongs)."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._socket.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)


def _decode(opcode: int, payload: bytes) -> tuple[str, dict[str, Any]]:
    if opcode == TEXT:
        message = json.loads(payload)
        return message["type"], message.get("data") or {}
    (event,) = struct.unpack_from(">I", payload)
    if event == PREVIEW_WITH_METADATA:
        (length,) = struct.unpack_from(">I", payload, 4)
        return "preview", {**json.loads(payload[8 : 8 + length]), "image": payload[8 + length :]}
    if event == PREVIEW_IMAGE:
        (form,) = struct.unpack_from(">I", payload, 4)
        return "preview", {"image_type": "image/png" if form == 2 else "image/jpeg", "image": payload[8:]}
    return ("text" if event == TEXT_MESSAGE else f"binary_{event}"), {"raw": payload[4:]}
