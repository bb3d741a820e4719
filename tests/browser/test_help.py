"""The help of every node, opened as a user does: select the node, press its info button, read the page."""

from __future__ import annotations

import json
import re

import pytest

from devtools.environment import ROOT

NODES = sorted(json.loads((ROOT / "tests" / "host" / "snapshot.json").read_text(encoding="utf-8")))


def words(text: str) -> str:
    """Letters and figures alone: what stays of a page when its markup is drawn."""
    return " ".join(re.findall(r"\w+", re.sub(r"\]\([^)]*\)", "]", text)))


@pytest.mark.parametrize("node", NODES)
def test_the_help_page_of_a_node_is_shown(page, node):
    page.evaluate(
        """(type) => { window.app.graph.clear();
             const node = window.LiteGraph.createNode(type);
             window.app.graph.add(node);
             node.pos = [300, 300];
             window.app.canvas.selectNode(node, false); }""",
        node,
    )
    page.locator('[data-testid="info-button"]').click()
    source = (ROOT / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    title = source.splitlines()[0].removeprefix("# ")
    shown = page.locator(".node-help-content")
    shown.locator("h1", has_text=title).wait_for(timeout=20_000)
    assert words(shown.inner_text()).endswith(words(source)[-200:])
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", source)
    page.wait_for_function(
        """(count) => { const drawn = [...document.querySelectorAll('.node-help-content img')];
             return drawn.length === count && drawn.every(i => i.complete && i.naturalWidth > 300); }""",
        arg=len(pictures),
    )
