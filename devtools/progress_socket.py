"""The host's progress messages over its websocket."""

from __future__ import annotations

import asyncio
import functools
import json
import struct
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

import aiohttp

_T = TypeVar("_T")

# the host's protocol.py
PREVIEW_IMAGE, TEXT_MESSAGE, PREVIEW_WITH_METADATA = 1, 3, 4


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """An event loop in a thread of its own: the caller's thread may have one that runs already (Playwright's)."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def done(work: Coroutine[Any, Any, _T]) -> _T:
    """Wait for a coroutine and return its result."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:  # Ctrl-C included
        future.cancel()
        raise


class ProgressSocket:
    """The host's /ws for one client id; a context manager.

    Announces support for previews with metadata, so that each preview names its node.
    """

    def __init__(self, address: str, client_id: str):
        """Raises ConnectionError where the host does not answer or refuses."""
        self._session, self._socket = done(self._opened(address, client_id))

    @staticmethod
    async def _opened(
        address: str, client_id: str
    ) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse[bool]]:
        session = aiohttp.ClientSession()
        try:
            url = f"http://{address}/ws?clientId={client_id}"
            socket = await session.ws_connect(url, max_msg_size=0)  # 0: previews of any size
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        except BaseException as error:
            await session.close()
            if isinstance(error, aiohttp.ClientError):
                raise ConnectionError(f"{address}/ws refused the websocket: {error}") from error
            raise
        return session, socket

    def receive(self, timeout: float) -> tuple[str, dict[str, Any]] | None:
        """The next message as (kind, data), or None when none arrives within `timeout` seconds.

        JSON messages keep the host's type and data. A preview is ("preview", {"image": encoded bytes,
        "image_type": "image/jpeg" or "image/png", "node_id": ..., ...}); binary progress text is
        ("text", {"raw": bytes}).
        Raises ConnectionError when the host closes the connection.
        """
        deadline = time.monotonic() + timeout
        while (remaining := deadline - time.monotonic()) > 0:
            try:
                message = done(self._socket.receive(remaining))
            except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
                return None
            if message.type is aiohttp.WSMsgType.TEXT:
                content = json.loads(message.data)
                return content["type"], content.get("data") or {}
            if message.type is aiohttp.WSMsgType.BINARY:
                return _decoded(message.data)
            raise ConnectionError("the host closed the websocket")
        return None

    def close(self) -> None:
        done(self._closed())

    async def _closed(self) -> None:
        await self._socket.close()
        await self._session.close()

    def __enter__(self) -> ProgressSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _decoded(payload: bytes) -> tuple[str, dict[str, Any]]:
    (event,) = struct.unpack_from(">I", payload)
    if event == PREVIEW_WITH_METADATA:
        (length,) = struct.unpack_from(">I", payload, 4)
        return "preview", {**json.loads(payload[8 : 8 + length]), "image": payload[8 + length :]}
    if event == PREVIEW_IMAGE:
        (form,) = struct.unpack_from(">I", payload, 4)
        return "preview", {"image_type": "image/png" if form == 2 else "image/jpeg", "image": payload[8:]}
    return ("text" if event == TEXT_MESSAGE else f"binary_{event}"), {"raw": payload[4:]}
