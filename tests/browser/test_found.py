"""What people type finds the pack: node search, template search, links to templates."""

from __future__ import annotations

import re

import pytest

from devtools import browser
from devtools.host_server import PACK_FOLDER
from devtools.layouts import WORKFLOWS

TRY_IT = next(iter(WORKFLOWS))
STORES = "document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s"


@pytest.mark.parametrize(("words", "node", "at_most"), [
    ("train lora", "DCOLoRATrainer", 2),  # the host's own node has exactly this name
    ("lora training", "DCOLoRATrainer", 1),
    ("lora trainer", "DCOLoRATrainer", 1),
    ("dreambooth", "DCOLoRATrainer", 1),
    ("prior preservation", "DCOLoRATrainer", 1),
    ("textual inversion", "DCOLoRATrainer", 2),
    ("dino", "DCOImageSimilarity", 1),
    ("xyz plot", "DCORewardGuidanceSweep", 1),
    ("consistency guidance", "DCORewardGuidance", 1),
    ("reward guidance", "DCORewardGuidance", 1),
    ("training images", "DCOLoadDataset", 1),
    ("merge lora", "DCOLoRAArithmeticMerge", 1),
])  # fmt: skip
def test_words_find_their_node_in_the_frontends_search(page, words, node, at_most):
    found = page.evaluate(
        f"(words) => {STORES}.get('nodeDef').nodeSearchService.searchNode(words).map(n => n.name)", words
    )
    assert node in found[:at_most], found[:5]


@pytest.fixture
def templates(page):
    """The open dialog of templates: a function that searches in it and gives the titles of the pack's, in order."""
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    box = page.locator("[role=dialog] input").first
    box.wait_for(timeout=30_000)

    def search(words):
        box.fill(words)
        page.wait_for_timeout(1500)
        text = page.locator("[role=dialog]").inner_text()
        return [line for line in text.splitlines() if re.fullmatch(r"\d_DCO_\w+", line)]

    yield search
    page.keyboard.press("Escape")
    page.wait_for_timeout(500)


def test_templates_are_found_by_what_people_search_for_and_stand_in_order(templates):
    names = list(WORKFLOWS)
    assert list(dict.fromkeys(templates("DCO"))) == names
    assert names[4] in templates("dreambooth")
    assert set(names[:2]) <= set(templates("lora training"))


def test_names_fit_into_a_link():
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in WORKFLOWS)


def test_the_link_opens_the_first_template(host, page):
    page.goto(f"http://{host.address}/?template={TRY_IT}&source={PACK_FOLDER}")
    browser.wait_until_ready(page)
    page.wait_for_function("() => window.app.graph._nodes.some(n => n.type === 'DCOLoRATrainer')")
