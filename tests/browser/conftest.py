"""A host with the files that the templates name, and the real frontend on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from devtools import browser
from devtools.host_server import HostServer
from devtools.screenshots import show_mode
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


@pytest.fixture(scope="module", params=["classic", "nodes_2"])
def mode(request, host, page) -> Iterator[str]:
    """One of the two kinds of nodes that the frontend has."""
    show_mode(page, f"http://{host.address}", request.param == "nodes_2", "dark")
    yield request.param
    if request.param == "nodes_2":
        show_mode(page, f"http://{host.address}", False, "dark")


@pytest.fixture
def nodes(mode, page) -> Any:
    """The page with one of the two kinds of nodes, no graph and nothing that it was told before."""
    page.evaluate("async () => { window.app.graph.clear(); window.app.extensionManager.toast.removeAll(); }")
    page.wait_for_function("() => !document.querySelector('.p-toast-detail')")
    return page
