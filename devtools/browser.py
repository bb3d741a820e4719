"""Find, and on Debian as root install, the Chromium that the browser tests drive."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CANDIDATES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# A returning user's settings: the first-run tour and the minimap would cover the graph.
_SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
MISSING = (
    "no Chromium or Chrome found: install one (Debian: apt-get install chromium) or name it in CHROMIUM_PATH"
)


def find_chromium() -> str | None:
    """Path of a Chromium-like browser: `CHROMIUM_PATH`, the search path, then the usual places."""
    named = os.environ.get("CHROMIUM_PATH")
    if named:
        return named
    on_path = (shutil.which(name) for name in CANDIDATES)
    return next((path for path in on_path if path), None) or next(
        (p for p in PLACES if Path(p).is_file()), None
    )


def install_if_possible() -> None:
    """On Linux as root with apt-get, install Debian's chromium where no browser is found.

    Failure is told and not fatal: the browser tests are then skipped with `MISSING` as the reason.
    """
    if find_chromium():
        return
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"browser tests will be skipped: {MISSING}", flush=True)
        return
    print("installing chromium for the browser tests ...", flush=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"],
    ):
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=quiet,
        )
        if done.returncode != 0:
            tail = "\n".join(done.stdout.splitlines()[-10:])
            print(f"browser tests will be skipped: {' '.join(command)} failed:\n{tail}", flush=True)
            return


@contextmanager
def open_frontend(address: str) -> Iterator[Any]:
    """A headless page with ComfyUI's frontend at `address`, ready. page.problems collects console warnings and
    errors and failed scripts of the page; page.under_way holds its requests that are not answered."""
    from playwright.sync_api import sync_playwright

    executable = find_chromium()
    if executable is None:
        raise RuntimeError(MISSING)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        page: Any = chromium.new_page(viewport={"width": 1800, "height": 1000})
        page.problems = []
        page.under_way = set()
        page.on("request", lambda request: page.under_way.add(request))
        page.on("requestfinished", lambda request: page.under_way.discard(request))
        page.on("requestfailed", lambda request: page.under_way.discard(request))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda m: page.problems.append(m.text) if m.type in ("error", "warning") else None)
        for setting, value in _SETTINGS.items():
            page.request.post(f"{address}/settings/{setting}", data=json.dumps(value))
        page.goto(address)
        wait_until_ready(page)
        try:
            yield page
        finally:
            chromium.close()


# `spinner` is on until the frontend has set up its extensions and opened its first workflow
_STARTED = "() => window.app?.graph && window.LiteGraph && !window.app.extensionManager?.spinner"
_SEEN = """async () => { await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  const {scale, offset} = window.app.canvas.ds;
  const boxes = [...document.querySelectorAll('[data-node-id]')].map(e => e.getBoundingClientRect());
  return JSON.stringify([scale, ...offset, window.app.graph._nodes.map(n => [n.id, ...n.pos, ...n.size]),
    boxes.map(b => [b.x, b.y, b.width, b.height])]); }"""
_AT_REST_S, _REST_LIMIT_S = 0.4, 3.0


def wait_until_ready(page: Any) -> None:
    """Wait for the frontend, its extensions and its first workflow, after a page was opened or loaded anew."""
    page.wait_for_function(_STARTED, timeout=120_000)
    wait_until_at_rest(page, 1.0)


def wait_until_at_rest(page: Any, rest: float = _AT_REST_S) -> None:
    """Wait until no request has been under way, and view and nodes have stood still, for `rest` seconds; 3 s at
    most."""
    before, since = None, time.monotonic()
    deadline = since + _REST_LIMIT_S
    while time.monotonic() < min(since + rest, deadline):
        page.wait_for_timeout(50)
        seen = page.evaluate(_SEEN)
        if seen != before or page.under_way:
            before, since = seen, time.monotonic()


def load_workflow(page: Any, workflow: dict[str, Any]) -> None:
    """Open a workflow as a user would, and bring all of it into view."""
    page.evaluate("async (w) => { await window.app.loadGraphData(w); }", workflow)
    wait_until_at_rest(page)
    page.evaluate(
        "() => { window.app.canvas.fitViewToSelectionAnimated?.(); window.app.canvas.setDirty(true, true); }"
    )
    wait_until_at_rest(page)
