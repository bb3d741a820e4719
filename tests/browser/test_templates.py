"""Every template in the real frontend: it opens without a complaint, holds what it should, and goes round."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request

import pytest
from PIL import Image

from devtools import browser
from devtools.environment import ROOT
from devtools.host_server import PACK_FOLDER
from devtools.layouts import WORKFLOWS
from devtools.make_workflows import OWN_PACK
from devtools.workflow_prompt import to_prompt

# What the page itself says without any workflow, on a machine that reaches nothing but loopback.
NOISE = (
    "net::ERR",
    "Failed to load resource",
    "favicon",
    "WebGL",
    "GPU stall",
    "[Deprecated]",
    "registry",
    "fetch",
)


def template(name: str) -> dict:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def get(host, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{host.address}{urllib.parse.quote(path)}") as answer:
        return answer.read()


def test_the_host_lists_exactly_these_templates(host):
    listed = json.loads(get(host, "/api/workflow_templates"))[PACK_FOLDER]
    assert sorted(listed) == sorted(WORKFLOWS)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_template_has_a_thumbnail_that_the_host_serves(host, name):
    served = get(host, f"/api/workflow_templates/{PACK_FOLDER}/{name}.jpg")
    assert served[:3] == b"\xff\xd8\xff"
    with Image.open(ROOT / "workflows" / f"{name}.jpg") as picture:
        assert min(picture.size) >= 200


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_template_opens_without_a_complaint_and_sends_the_prompt_it_should(page, name):
    page.problems.clear()
    browser.load_workflow(page, template(name))
    problems = [text for text in page.problems if not any(noise in text for noise in NOISE)]
    assert problems == []
    shown = page.inner_text("body")
    assert "errors found" not in shown
    assert "Missing" not in shown
    sent = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    sent = {node: {"class_type": n["class_type"], "inputs": n["inputs"]} for node, n in sent.items()}
    expected = WORKFLOWS[name]().prompt
    assert {n: c["class_type"] for n, c in sent.items()} == {n: c["class_type"] for n, c in expected.items()}
    for node, content in expected.items():
        got = {k: v for k, v in sent[node]["inputs"].items() if k in content["inputs"]}
        assert got == content["inputs"], content["class_type"]
    assert to_prompt(template(name)) == sent


def contents(workflow: dict) -> list[str]:
    """What a workflow's nodes hold, without places and sizes."""
    keys = ("id", "type", "widgets_values", "inputs", "outputs", "title", "properties")
    return sorted(
        json.dumps({key: node.get(key) for key in keys}, sort_keys=True) for node in workflow["nodes"]
    )


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_template_survives_saving_and_opening(page, name):
    browser.load_workflow(page, template(name))
    first = page.evaluate("() => window.app.graph.serialize()")
    browser.load_workflow(page, first)
    second = page.evaluate("() => window.app.graph.serialize()")
    assert contents(first) == contents(second)
    assert first["links"] == second["links"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_node_says_where_it_comes_from(name):
    for node in template(name)["nodes"]:
        assert node["properties"]["cnr_id"] == (OWN_PACK if node["type"].startswith("DCO") else "comfy-core")
        if node["type"] == "CheckpointLoaderSimple":
            assert node["properties"]["models"][0]["directory"] == "checkpoints"


@pytest.mark.parametrize("node", ["DCOLoRATrainer", "DCORewardGuidanceSampler"])
def test_the_help_page_of_a_node_is_shown(host, page, node):
    text = get(host, f"/extensions/{PACK_FOLDER}/docs/{node}.md").decode()
    assert text.startswith("# ")


def test_template_0_runs_from_the_browser_to_a_picture(host, page):
    browser.load_workflow(page, template("0_DCO_LoRA_training_Toy_World"))
    page.evaluate(
        """() => { for (const node of window.app.graph._nodes)
             for (const widget of node.widgets ?? [])
               if (widget.name === "steps") widget.value = node.type === "DCOLoRATrainer" ? 6 : 2; }"""
    )
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    outputs = host.client.run(prompt, timeout=300)
    (saved,) = [node for node, content in prompt.items() if content["class_type"] == "SaveImage"]
    assert len(outputs[saved]["images"]) == 4
    assert host.client.download(**outputs[saved]["images"][0])[:4] == b"\x89PNG"
