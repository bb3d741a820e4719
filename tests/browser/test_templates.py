"""Every template in the real frontend: it opens without a complaint, holds what it should, and goes round."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request

import pytest
from frontend_page import run, says, text_of
from PIL import Image

from devtools import browser
from devtools.environment import ROOT
from devtools.host_server import PACK_FOLDER
from devtools.layouts import BLUEPRINTS, WORKFLOWS
from devtools.make_workflows import OWN_PACK
from devtools.screenshots import VIEW, open_template
from devtools.workflow_prompt import to_prompt

# What the frontend still says of its own start, where a template is the first thing it opens: exactly these lines.
START_UP = {
    "Failed to load resource: the server responded with a status of 404 (Not Found)",  # user.css and the like
    "ComfyApp graph accessed before initialization",
}
COMPLAINTS_COME_WITHIN = 1500  # ms after the page has come to rest


def problems(page) -> list[str]:
    return [text for text in page.problems if text not in START_UP]


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


@pytest.fixture
def small_view(nodes):
    usual = nodes.viewport_size
    nodes.set_viewport_size(VIEW)
    yield nodes
    nodes.set_viewport_size(usual)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_template_is_readable_on_opening(small_view, name):
    assert open_template(small_view, name) >= 0.6
    boxes = small_view.evaluate("() => window.app.graph._nodes.map(n => [n.title, ...n.boundingRect])")
    for i, (title, x, y, w, h) in enumerate(boxes):
        for other, x2, y2, w2, h2 in boxes[:i]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y, (title, other)


def test_the_first_template_has_at_most_ten_nodes_and_one_trainer():
    types = [node["type"] for node in template(next(iter(WORKFLOWS)))["nodes"]]
    assert len(types) <= 10 and types.count("DCOLoRATrainer") == 1


@pytest.mark.parametrize("name", WORKFLOWS)
def test_app_mode_has_its_inputs_and_outputs(page, name):
    open_template(page, name)
    layout = WORKFLOWS[name]()
    found = page.evaluate(
        "() => { const s = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s"
        ".get('appMode'); return [s.selectedInputs.map(i => i[1]), s.selectedOutputs.map(String)]; }"
    )
    assert found == [[widget for _, widget in layout.app_inputs], layout.app_outputs]
    assert layout.app_inputs and layout.app_outputs


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_template_opens_without_a_complaint_and_sends_the_prompt_it_should(nodes, name):
    page = nodes
    page.problems.clear()
    browser.load_workflow(page, template(name))
    page.wait_for_timeout(COMPLAINTS_COME_WITHIN)
    assert problems(page) == []
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
        named = [v for v in node.get("widgets_values") or () if str(v).endswith(".safetensors")]
        if named and not node["type"].startswith("DCO"):  # the frontend offers to download what is missing
            assert [model["name"] for model in node["properties"]["models"]] == named


TRY_IT = next(iter(WORKFLOWS))


def set_widgets(page, kind, **values):
    page.evaluate(
        """([kind, values]) => { for (const node of window.app.graph._nodes) if (node.type === kind)
             for (const widget of node.widgets) if (widget.name in values) widget.value = values[widget.name]; }""",
        [kind, values],
    )


def test_template_0_runs_from_the_link_to_the_picture_and_can_be_cancelled(host, nodes):
    page, seed = nodes, int(nodes.evaluate("() => Number(LiteGraph.vueNodesMode)"))
    page.goto(f"http://{host.address}/?template={TRY_IT}&source={PACK_FOLDER}")
    browser.wait_until_ready(page)
    page.wait_for_function("() => window.app.graph._nodes.some(n => n.type === 'DCOLoRATrainer')")
    set_widgets(page, "DCORewardGuidanceSweep", steps=4)
    set_widgets(page, "DCOLoRATrainer", steps=2000, name=f"from_link_{seed}")
    run(page, says("DCOLoRATrainer", "/2000"), timeout=200_000)
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Interrupt')")
    page.wait_for_function(says("DCOLoRATrainer", "Stopped after step"), timeout=60_000)
    page.wait_for_function(says("DCOLoRATrainer", "_stopped_at_"), timeout=60_000)

    set_widgets(page, "DCOLoRATrainer", steps=30)
    run(page, says("DCOLoRATrainer", f"Saved loras/from_link_{seed}_0"), timeout=300_000)
    page.wait_for_function(
        "() => { const n = window.app.graph._nodes.find(n => n.type === 'SaveImage');"
        " return n.images?.length || window.app.nodeOutputs?.[n.id]?.images?.length; }",
        timeout=120_000,
    )
    assert "Recipe custom" in text_of(page, "DCOLoRATrainer")
    assert "_stopped_at_" not in text_of(page, "DCOLoRATrainer")
    box = page.evaluate(
        "() => { const b = window.app.graph._nodes.find(n => n.type === 'DCOLoRATrainer').dcoReport.root"
        ".getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; }"
    )
    assert 0 <= box[0] < box[2] <= page.viewport_size["width"]
    assert 0 <= box[1] < box[3] <= page.viewport_size["height"]


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_in_the_library_of_nodes_and_sends_its_nodes(host, page, name):
    listed = json.loads(get(host, "/api/global_subgraphs")).values()
    assert [entry for entry in listed if entry["name"] == name]
    blueprint = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text(encoding="utf-8"))
    page.problems.clear()
    browser.load_workflow(page, blueprint)
    page.wait_for_timeout(COMPLAINTS_COME_WITHIN)
    assert problems(page) == []
    shown = page.evaluate("() => window.app.graph._nodes[0].widgets.map(w => w.label ?? w.name)")
    made = BLUEPRINTS[name]()
    assert shown == ["captions", *(label for _, _, label in made.shown)]
    inputs = page.evaluate("() => window.app.graph._nodes[0].inputs.map(i => i.label ?? i.name)")
    assert inputs == [*made.sockets, *(label for _, _, label in made.shown)]
    sent = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    inside = {n: c["class_type"] for n, c in made.layout.prompt.items() if n not in made.outside}
    assert sorted(node["class_type"] for node in sent.values()) == sorted(inside.values())
