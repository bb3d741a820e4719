"""What browser tests do with the page: open a prompt, press Run, read what stands on a node."""

from __future__ import annotations

import json

from devtools import browser

SHOWN = "return n.dcoReport?.element.isConnected ? n.dcoReport.element.innerText : null;"


def open_prompt(page, prompt):
    page.evaluate("async (p) => await window.app.loadApiJson(p, 'test')", prompt)
    page.evaluate("() => { window.app.canvas.ds.scale = 1; window.app.canvas.ds.offset = [400, 150]; }")
    browser.wait_until_at_rest(page)


def run(page, until: str, timeout=120_000):
    """Press Run and wait for a condition of the page."""
    page.evaluate("() => window.app.queuePrompt(0)")
    page.wait_for_function(until, timeout=timeout)
    page.wait_for_timeout(500)


def says(node_type: str, text: str) -> str:
    return (
        f"() => window.app.graph._nodes.some(n => n.type === '{node_type}' && "
        f"n.dcoReport?.element.innerText.includes({json.dumps(text)}))"
    )


def text_of(page, node_type):
    return page.evaluate(
        f"(t) => {{ const n = window.app.graph._nodes.find(n => n.type === t); {SHOWN} }}", node_type
    )


def trainer(seed=0, previews=20, resume=False, **changes):
    """previews: steps between them, 0 for none."""
    world = {"class_type": "DCOToyWorldLoader", "inputs": {}}
    references = {"class_type": "DCOToyWorldReferences", "inputs": {"what": "subject"}}
    inputs = {
        "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "images": ["2", 0], "captions": ["2", 1],
        "recipe": "custom", "recipe.learning_rate": 1e-3, "recipe.offset_noise": 0.0, "steps": 40, "rank": 4,
        "objective": "DCO", "objective.beta": "own value", "objective.beta.value": 0.03, "resolution": 0,
        "name": "reports", "options": ["92", 0],
    } | changes  # fmt: skip
    run_options = {"previews": "off", "resume": resume}
    if previews:
        run_options |= {"previews": "every so many steps", "previews.preview_every": previews}
    return {
        "1": world,
        "2": references,
        "3": {"class_type": "DCOLoRATrainer", "inputs": inputs},
        "91": {"class_type": "DCOTrainingOptions", "inputs": {"seed": seed, "batch_size": 2}},
        "92": {"class_type": "DCORunOptions", "inputs": run_options | {"options": ["91", 0]}},
    }
