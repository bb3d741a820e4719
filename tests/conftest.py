"""Shared hooks: say which host and browser this run uses, so that nothing is skipped in silence."""

from __future__ import annotations

import gc
import signal

import pytest

from devtools import browser, environment
from devtools.host_launcher import declare_torchvision_schemas
from tests.order import place

# peft imports torchvision through transformers; kept alive here for the whole run
TORCHVISION = declare_torchvision_schemas()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the order of tests within a file, and of the other files, stays."""
    items.sort(key=lambda item: place(item.path))


def pytest_configure() -> None:
    """`kill` ends a run as Ctrl-C does: fixtures stop their hosts. And garbage is looked for less often: what the big
    libraries hold all the time is not garbage, and looking through it took a tenth of the time of many tests."""
    gc.set_threshold(20_000, 20, 20)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_report_header() -> list[str]:
    found = browser.find_chromium() or browser.MISSING
    return [f"ComfyUI: {environment.comfyui_path()}", f"browser: {found}"]
