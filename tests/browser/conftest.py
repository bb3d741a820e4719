"""A host with the files that the templates name, and the real frontend on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from devtools import browser
from devtools.host_server import HostServer
from devtools.stand_ins import put_template_files


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    base = tmp_path_factory.mktemp("browser_host")
    put_template_files(base)
    with HostServer(base) as server:
        yield server


@pytest.fixture(scope="session")
def page(host: HostServer) -> Iterator[Any]:
    if browser.find_chromium() is None:
        pytest.skip(browser.MISSING)
    with browser.open_frontend(f"http://{host.address}") as page:
        yield page
