"""Reports stand on their nodes: during a run, after it, when they were cached, and when they fail. In both kinds of
nodes of the frontend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from frontend_page import open_prompt, run, says, text_of, trainer

from devtools import browser

ADVICE = "a photo of sks dog"


def visible_box(page, node_type):
    """Where the text is on the screen, and where its node's title is."""
    return page.evaluate(
        """(t) => { const n = window.app.graph._nodes.find(n => n.type === t);
             const r = n.dcoReport.element.getBoundingClientRect();
             return [r.left, r.top, r.width, r.height]; }""",
        node_type,
    )


def captions(text=ADVICE):
    return {"1": {"class_type": "DCOCheckCaptions", "inputs": {"captions": text, "kind": "auto"}}}


def test_check_captions_shows_its_advice_and_again_when_it_was_cached(nodes):
    open_prompt(nodes, captions())
    assert "appears here" not in text_of(nodes, "DCOCheckCaptions")
    run(nodes, says("DCOCheckCaptions", "sks"))
    first = text_of(nodes, "DCOCheckCaptions")
    assert "sks" in first and "<dog>" in first
    _, _, width, height = visible_box(nodes, "DCOCheckCaptions")
    assert width > 150 and height > 40
    nodes.evaluate("() => window.app.graph._nodes[0].dcoReport.element.textContent = ''")
    run(nodes, says("DCOCheckCaptions", "sks"))  # nothing has changed: the host answers from its cache
    assert text_of(nodes, "DCOCheckCaptions") == first


def test_a_report_is_no_value_of_a_saved_workflow(nodes):
    open_prompt(nodes, captions())
    run(nodes, says("DCOCheckCaptions", "sks"))
    saved = nodes.evaluate("() => window.app.graph.serialize()")
    assert saved["nodes"][0]["widgets_values"] == [ADVICE, "auto"]
    assert "sks" not in json.dumps(saved["nodes"][0]).replace(ADVICE, "")
    sent = nodes.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert set(sent["1"]["inputs"]) == {"captions", "kind"}
    browser.load_workflow(nodes, saved)
    assert nodes.evaluate("() => window.app.graph.serialize()")["nodes"][0]["widgets_values"] == [ADVICE, "auto"]


def test_the_trainer_shows_progress_previews_its_report_and_the_file(nodes):
    # another seed for the other kind of nodes: the host answers what it has run from its cache
    seed = int(nodes.evaluate("() => Number(LiteGraph.vueNodesMode)"))
    open_prompt(nodes, trainer(seed=seed))
    nodes.evaluate(
        """() => { window.seen = []; const n = window.app.graph._nodes.find(n => n.type === 'DCOLoRATrainer');
             new MutationObserver(() => window.seen.push(n.dcoReport.element.textContent))
               .observe(n.dcoReport.element, {childList: true, characterData: true, subtree: true}); }"""
    )
    run(nodes, says("DCOLoRATrainer", "Saved loras/reports"), timeout=300_000)
    steps_seen = [text for text in nodes.evaluate("() => window.seen") if text.startswith("step ")]
    assert steps_seen and all("Memory of a step" in text for text in steps_seen)  # messages stay
    shown = text_of(nodes, "DCOLoRATrainer")
    assert "40 steps in" in shown and "Press R" in shown
    state = nodes.evaluate(
        """async () => { const n = window.app.graph._nodes.find(n => n.type === 'DCOLoRATrainer');
             const pictures = [...n.dcoReport.pictures.children];
             await Promise.all(pictures.map(p => p.decode()));
             return {widgets: n.widgets.filter(w => w.name === '$$node-text-preview').length,
                     first: n.widgets[0].name, sources: pictures.map(p => p.src),
                     widths: pictures.map(p => p.naturalWidth)}; }"""
    )
    assert state["widgets"] == 1 and state["first"] == "$$node-text-preview"
    assert len(state["sources"]) == 2 and all("/view?" in source for source in state["sources"])
    assert min(state["widths"]) > 100  # the last preview and the plot
    before = nodes.evaluate("async () => (await window.app.graphToPrompt()).output")
    saved = nodes.evaluate("() => window.app.graph.serialize()")
    assert None not in next(n for n in saved["nodes"] if n["type"] == "DCOLoRATrainer")["widgets_values"]
    browser.load_workflow(nodes, saved)
    assert nodes.evaluate("async () => (await window.app.graphToPrompt()).output") == before


def test_an_error_is_on_the_node_and_in_a_toast_without_the_path_of_a_module(nodes):
    open_prompt(nodes, trainer(resolution=1024))
    run(nodes, "() => document.querySelector('.p-toast-detail')")
    toast = nodes.inner_text(".p-toast-detail")
    assert toast.startswith("The Toy World draws 256 x 256 pixels") and toast.endswith("set resolution to 256.")
    shown = text_of(nodes, "DCOLoRATrainer")
    assert shown.startswith(toast) and shown.count("The Toy World draws") == 1
    body = nodes.inner_text("body")
    assert "dco_core" not in body and "custom_nodes" not in body


def test_an_error_in_a_node_of_the_host_is_in_a_toast(nodes):
    prompt = {
        "1": {"class_type": "DCOToyWorldLoader", "inputs": {}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a toy"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
        "4": {"class_type": "KSampler", "inputs": {
            "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": 1,
            "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }  # fmt: skip
    open_prompt(nodes, prompt)
    run(nodes, "() => document.querySelector('.p-toast-detail')")
    assert "set width and height of the latent to 256" in nodes.inner_text(".p-toast-detail")


def test_guidance_and_the_dataset_loader_report_on_their_nodes(host, nodes):
    prompt = trainer(steps=2, previews=0, name="guided") | {
        "4": {"class_type": "DCORewardGuidance", "inputs": {"model": ["1", 0], "lora": ["3", 0], "w_rg": 2.0}},
        "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a toy"}},
        "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 256, "height": 256, "batch_size": 1}},
        "7": {"class_type": "KSampler", "inputs": {
            "model": ["4", 0], "positive": ["5", 0], "negative": ["5", 0], "latent_image": ["6", 0], "seed": 1,
            "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}},
        "10": {"class_type": "DCOLoadDataset", "inputs": {"folder": "my_subject"}},
        "11": {"class_type": "PreviewImage", "inputs": {"images": ["10", 0]}},
    }  # fmt: skip
    open_prompt(nodes, prompt)
    run(nodes, says("DCORewardGuidance", "UNet rows a step"), timeout=300_000)
    nodes.wait_for_function(says("DCOLoadDataset", "1 image of my_subject"))
    run(nodes, says("DCORewardGuidance", "UNet rows a step"))  # cached
    assert "LoRA on the prompt" in text_of(nodes, "DCORewardGuidance")


def screenshot(page, name: str):
    """For looking at: DCO_SCREENSHOTS names a folder."""
    import os

    folder = os.environ.get("DCO_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture(autouse=True)
def picture_afterwards(request, nodes):
    yield
    screenshot(nodes, request.node.name.replace("[", "_").replace("]", ""))
