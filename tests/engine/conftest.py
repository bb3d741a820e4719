"""The host in the test's own process: its samplers and model classes, no server."""

from __future__ import annotations

import pytest

from devtools import in_process_host as host


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    host.start()
