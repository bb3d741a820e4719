"""HTTP and websocket client of a running ComfyUI."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from .progress_socket import ProgressSocket, done

# on_progress(kind, data): kind is the host's message type ("progress", "progress_state", "executing", ...)
# or "preview" for a binary preview image; see ProgressSocket.receive.
OnProgress = Callable[[str, dict[str, Any]], None]


class HostError(RuntimeError):
    """The host refused or failed a prompt.

    After a failed node also: node_id, exception_type, traceback.
    """

    def __init__(self, message: str, details: dict[str, Any] | None = None):
        super().__init__(message)
        self.details = details or {}
        self.node_id = self.details.get("node_id")
        self.exception_type = self.details.get("exception_type")
        self.traceback = "".join(self.details.get("traceback") or [])


class HostInterrupted(HostError):
    """The prompt was interrupted before it finished."""


class Client:
    """Talks to the ComfyUI at `address` ("127.0.0.1:8188"). Every prompt carries `client_id`."""

    def __init__(self, address: str, timeout: float = 60.0):
        self.address = address.removeprefix("http://").rstrip("/")
        self.timeout = timeout
        self.client_id = uuid.uuid4().hex

    def object_info(self) -> dict[str, Any]:
        """Every node id with its inputs and outputs."""
        return self._json("/object_info")

    def system_stats(self) -> dict[str, Any]:
        """Versions and devices of the host."""
        return self._json("/system_stats")

    def upload_image(self, path: str | Path, subfolder: str = "", name: str | None = None) -> str:
        """Upload into the input folder (replacing a namesake); returns the value for a LoadImage input."""
        form = aiohttp.FormData({"overwrite": "true", "subfolder": subfolder, "type": "input"})
        form.add_field("image", Path(path).read_bytes(), filename=name or Path(path).name)
        saved = self._json("/upload/image", data=form)
        return f"{saved['subfolder']}/{saved['name']}" if saved.get("subfolder") else saved["name"]

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue an API-format prompt and return its id.

        Raises HostError for any node error, also when the host answers 200 and would drop only that branch.
        """
        answer = self._json("/prompt", json={"prompt": prompt, "client_id": self.client_id})
        if answer.get("node_errors"):
            self._cancel(answer.get("prompt_id"))
            raise HostError(_node_errors_text(answer["node_errors"]), {"node_errors": answer["node_errors"]})
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600.0) -> dict[str, Any]:
        """Block until the prompt ended and return its history entry.

        Raises HostError with the failing node's message or after `timeout` seconds, HostInterrupted
        after an interrupt.
        """
        return self._wait(prompt_id, None, None, timeout)

    def run(
        self, prompt: dict[str, Any], on_progress: OnProgress | None = None, timeout: float = 600.0
    ) -> dict[str, Any]:
        """Queue a prompt, wait for it and return the outputs.

        They are {node id: {"images": [...], "text": [...], ...}}; errors as in `queue` and `wait`.
        """
        if on_progress is None:
            return self.wait(self.queue(prompt), timeout)["outputs"]
        with self.listen() as messages:
            return self._wait(self.queue(prompt), messages, on_progress, timeout)["outputs"]

    def listen(self) -> ProgressSocket:
        """Open the websocket on which the host reports this client's prompts; one at a time per client."""
        return ProgressSocket(self.address, self.client_id)

    def interrupt(self) -> None:
        """Stop the running prompt."""
        self._json("/interrupt", json={})

    def download(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        """Content of a file as named in a prompt's outputs."""
        return self._request("/view", params={"filename": filename, "subfolder": subfolder, "type": type})

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The history entry of a finished prompt, else None."""
        return self._json(f"/history/{prompt_id}").get(prompt_id)

    def _cancel(self, prompt_id: str | None) -> None:
        """Take a prompt out of the queue, or interrupt it where it already runs."""
        if prompt_id is not None:
            self._json("/queue", json={"delete": [prompt_id]})
            self._json("/interrupt", json={"prompt_id": prompt_id})

    def _wait(
        self, prompt_id: str, messages: ProgressSocket | None, on_progress: OnProgress | None, timeout: float
    ) -> dict[str, Any]:
        started = time.monotonic()
        deadline = started + timeout
        while time.monotonic() < deadline:
            entry = self.history(prompt_id)
            # what a prompt takes is told at most a twentieth too late, and a long one is not asked about all the time
            pause = min(max(0.05 * (time.monotonic() - started), 0.03), 0.25)
            # what was sent before the entry appeared is still to be read
            while messages is not None and on_progress is not None and time.monotonic() < deadline:
                message = _receive(messages, 0.1 if entry else pause)
                if message is None:
                    break
                on_progress(*message)
                if message[0] == "executing" and message[1].get("node") is None:
                    break
            if entry is not None:
                _raise_if_failed(entry)
                return entry
            if messages is None:
                time.sleep(pause)
        raise HostError(f"prompt {prompt_id} did not finish within {timeout:g} s")

    def _json(self, path: str, **content: Any) -> dict[str, Any]:
        """The answer to a POST of `json` or `data`, or to a GET without them."""
        answer = self._request(path, **content)
        return json.loads(answer) if answer else {}

    def _request(self, path: str, **content: Any) -> bytes:
        try:
            status, body = done(self._answered(path, content))
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            reason = str(error) or f"nothing within {self.timeout:g} s"
            raise HostError(f"the host at {self.address} does not answer {path}: {reason}") from error
        if status >= 400:
            raise _refusal(path, status, body)
        return body

    async def _answered(self, path: str, content: dict[str, Any]) -> tuple[int, bytes]:
        method = "POST" if {"json", "data"} & set(content) else "GET"
        limit = aiohttp.ClientTimeout(total=None, sock_connect=self.timeout, sock_read=self.timeout)
        async with (
            aiohttp.ClientSession(timeout=limit) as session,
            session.request(method, f"http://{self.address}{path}", **content) as answer,
        ):
            return answer.status, await answer.read()


def _receive(messages: ProgressSocket, timeout: float) -> tuple[str, dict[str, Any]] | None:
    try:
        return messages.receive(timeout)
    except OSError as error:
        raise HostError(f"the host went away while the prompt ran: {error}") from error


def _refusal(path: str, status: int, body: bytes) -> HostError:
    text = body.decode("utf-8", "replace")
    try:
        answer = json.loads(text)
    except ValueError:
        return HostError(f"the host answered {status} to {path}: {text[:500]}")
    if answer.get("node_errors"):
        return HostError(_node_errors_text(answer["node_errors"]), {"node_errors": answer["node_errors"]})
    reason = answer.get("error", answer)
    if isinstance(reason, dict):
        reason = f"{reason.get('message', reason)} {reason.get('details') or ''}".strip()
    return HostError(f"the host answered {status} to {path}: {reason}")


def _node_errors_text(node_errors: dict[str, Any]) -> str:
    return "; ".join(
        f"node {node_id} ({node.get('class_type')}): {error.get('message')}: {error.get('details')}"
        for node_id, node in node_errors.items()
        for error in node.get("errors", [])
    )


def _raise_if_failed(entry: dict[str, Any]) -> None:
    status = entry.get("status") or {}
    for kind, data in status.get("messages", []):
        if kind == "execution_interrupted":
            raise HostInterrupted(
                f"interrupted in node {data.get('node_id')} ({data.get('node_type')})", data
            )
        if kind == "execution_error":
            where = f"node {data.get('node_id')} ({data.get('node_type')})"
            raise HostError(f"{where}: {str(data.get('exception_message')).strip()}", data)
    if status.get("status_str") == "error":
        raise HostError(f"the prompt failed without naming a node: {status}")
