"""Faces of the nodes: small enough for an artist, and a recipe that fills in its values."""

from __future__ import annotations

import pytest
from frontend_page import open_prompt, trainer

from dco_core.training.recipes import RECIPES
from devtools.screenshots import faces

OPTIONS = (
    "DCOTrainingOptions", "DCOLoRAOptions", "DCODataOptions", "DCORunOptions", "DCORewardGuidanceOptions",
    "DCOMergeOptions",
)  # fmt: skip


@pytest.fixture
def sizes(nodes):
    return faces(nodes, [
        "KSampler", "TrainLoraNode", "DCOLoRATrainer", "DCORewardGuidanceSampler", "DCOLoRAArithmeticMerge", *OPTIONS,
    ])  # fmt: skip


def test_the_trainer_is_as_small_as_the_hosts_own(sizes, nodes):
    classic = not nodes.evaluate("() => Boolean(LiteGraph.vueNodesMode)")
    limit = 500 if classic else 1.1 * sizes["TrainLoraNode"][1]
    assert sizes["DCOLoRATrainer"][1] <= limit
    assert sizes["DCORewardGuidanceSampler"][1] <= sizes["KSampler"][1] + 160  # six more sockets, w_rg
    assert sizes["DCOLoRAArithmeticMerge"][1] <= 400
    assert all(sizes[name][1] <= 540 for name in OPTIONS), sizes


WIDGETS = """() => Object.fromEntries(window.app.graph._nodes.find(n => n.type === 'DCOLoRATrainer').widgets
  .map(w => [w.name, w.value]))"""


@pytest.mark.parametrize("recipe", ["style", "one image", "subject"])
def test_a_recipe_fills_in_its_values(nodes, recipe):
    open_prompt(nodes, trainer(steps=7, rank=3))
    before = nodes.evaluate(WIDGETS)
    assert (before["steps"], before["rank"], before["objective.beta"]) == (7, 3, "own value")
    nodes.evaluate(
        """(recipe) => { const node = window.app.graph._nodes.find(n => n.type === 'DCOLoRATrainer');
             const widget = node.widgets.find(w => w.name === 'recipe');
             widget.value = recipe; widget.callback(recipe, window.app.canvas, node); }""",
        recipe,
    )
    shown = nodes.evaluate(WIDGETS)
    names = ("steps", "rank", "recipe.learning_rate", "recipe.offset_noise")
    assert [shown[name] for name in names] == [RECIPES[recipe].as_dict()[name.split(".")[-1]] for name in names]
    sent = nodes.evaluate("async () => (await window.app.graphToPrompt()).output['3'].inputs")
    assert [sent[name] for name in names] == [shown[name] for name in names]


def test_a_recipe_is_chosen_with_the_mouse(nodes):
    """What the user's click comes to is the frontend's: here it is a real one."""
    open_prompt(nodes, trainer(steps=7, rank=3))
    if nodes.evaluate("() => Boolean(LiteGraph.vueNodesMode)"):
        nodes.locator("[data-node-id='3'] [role=combobox]").filter(has_text="custom").first.click()
        nodes.get_by_role("option", name="style", exact=True).click()
    else:
        at = nodes.evaluate(
            """() => { const n = window.app.graph._nodes.find(n => n.type === 'DCOLoRATrainer');
                 const w = n.widgets.find(w => w.name === 'recipe');
                 const {scale, offset} = window.app.canvas.ds;
                 const box = window.app.canvas.canvas.getBoundingClientRect();
                 return [box.left + (n.pos[0] + n.size[0] / 2 + offset[0]) * scale,
                         box.top + (n.pos[1] + w.y + 12 + offset[1]) * scale]; }"""
        )
        nodes.mouse.click(*at)
        nodes.locator(".litecontextmenu .litemenu-entry", has_text="style").click()
    nodes.wait_for_timeout(500)
    shown = nodes.evaluate(WIDGETS)
    assert (shown["recipe"], shown["steps"], shown["rank"]) == ("style", 1000, 64)


def test_opening_a_workflow_does_not_fill_in_anything(nodes):
    open_prompt(nodes, trainer(steps=7, rank=3, recipe="style"))
    saved = nodes.evaluate("() => window.app.graph.serialize()")
    nodes.evaluate("async (w) => { await window.app.loadGraphData(w); }", saved)
    shown = nodes.evaluate(WIDGETS)
    assert (shown["recipe"], shown["steps"], shown["rank"]) == ("style", 7, 3)
