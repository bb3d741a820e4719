"""Write workflows/*.json with the real frontend, from devtools/layouts.

    .dev/venv/bin/python -m devtools.make_workflows [--screenshots DIR]

The frontend builds the graph from the API prompt, so every widget and link is where it expects them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from . import browser
from .environment import ROOT
from .host_server import HostServer
from .layouts import WORKFLOWS, Layout

OWN_NODES, OWN_PACK, OWN_VERSION = "DCO", "dco-lora", "0.1.0"

_ARRANGE = """
async ({prompt, places, titles, groups, notes, own, pack, version, models, collapsed, app}) => {
  const {app: frontend} = window;
  await frontend.loadApiJson(prompt, "workflow");
  await new Promise(done => setTimeout(done, 500));
  const graph = frontend.graph;
  for (const node of graph._nodes) {
    const [x, y, w, h] = places[node.id];
    node.pos = [x, y];
    const least = node.computeSize();
    node.setSize([Math.max(w, 200), Math.max(h, least[1])]);
    if (titles[node.id]) node.title = titles[node.id];
    if (collapsed.includes(String(node.id))) node.collapse();
    const mine = node.type.startsWith(own);
    node.properties["cnr_id"] = mine ? pack : "comfy-core";
    node.properties["ver"] = mine ? version : "0.30.0";
    if (models[node.id]) node.properties["models"] = models[node.id];
    for (const widget of node.widgets ?? [])
      if (widget.name === "control_after_generate") widget.value = "fixed";
  }
  for (const [x, y, w, h, text] of notes) {
    const note = LiteGraph.createNode("MarkdownNote");
    graph.add(note);
    note.pos = [x, y];
    note.setSize([w, h]);
    note.title = "Read me";
    note.widgets[0].value = text;
    note.properties["cnr_id"] = "comfy-core";
    note.properties["ver"] = "0.30.0";
  }
  for (const [title, x, y, w, h, colour] of groups) {
    const group = new LiteGraph.LGraphGroup(title);
    group.pos = [x, y];
    group.size = [w, h];
    group.color = colour;
    graph.add(group);
  }
  graph.extra = {workflowRendererVersion: "LG", linearMode: false, linearData: app};
  return graph.serialize();
}
"""


def build(page: Any, layout: Layout) -> dict[str, Any]:
    """The UI-format workflow of a layout, made in an open frontend."""
    workflow = page.evaluate(
        _ARRANGE,
        {
            "prompt": layout.prompt,
            "places": layout.places,
            "titles": layout.titles,
            "groups": layout.groups,
            "notes": layout.notes,
            "own": OWN_NODES,
            "pack": OWN_PACK,
            "version": OWN_VERSION,
            "models": layout.models,
            "collapsed": sorted(layout.collapsed),
            "app": {"inputs": layout.app_inputs, "outputs": layout.app_outputs},
        },
    )
    workflow.pop("id", None)  # a fresh one each time: it would change the file without a change
    return workflow


def screenshots(page: Any, workflow: dict[str, Any], path: Path) -> None:
    """PATH.png of the whole workflow, and "PATH near.png" of its beginning."""
    browser.load_workflow(page, workflow)
    page.screenshot(path=f"{path}.png")
    page.evaluate("() => { const d = window.app.canvas.ds; d.scale = 1; d.offset = [520, 60]; }")
    page.evaluate("() => window.app.canvas.setDirty(true, true)")
    page.wait_for_timeout(800)
    page.screenshot(path=f"{path} near.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screenshots", type=Path, help="folder for a picture of each workflow")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, HostServer(folder) as host:
        with browser.open_frontend(f"http://{host.address}") as page:
            workflows = {name: build(page, make()) for name, make in WORKFLOWS.items()}
            for name, workflow in workflows.items():
                path = ROOT / "workflows" / f"{name}.json"
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")
                print(f"wrote {path.relative_to(ROOT)}: {len(workflow['nodes'])} nodes", flush=True)
            if args.screenshots:  # after all of them: a moved view would stay for the next one's file
                args.screenshots.mkdir(parents=True, exist_ok=True)
                for name, workflow in workflows.items():
                    screenshots(page, workflow, args.screenshots / name[0])


if __name__ == "__main__":
    main()
