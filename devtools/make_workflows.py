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
from .layouts import SDXL, WORKFLOWS, Layout

OWN_NODES, OWN_PACK, OWN_VERSION = "DCO", "dco-lora", "0.1.0"

_ARRANGE = """
async ({prompt, places, titles, groups, notes, own, pack, version, model}) => {
  const app = window.app;
  await app.loadApiJson(prompt, "workflow");
  await new Promise(done => setTimeout(done, 500));
  const graph = app.graph;
  for (const node of graph._nodes) {
    const [x, y, w, h] = places[node.id];
    node.pos = [x, y];
    const least = node.computeSize();
    node.setSize([Math.max(w, 200), Math.max(h, least[1])]);
    if (titles[node.id]) node.title = titles[node.id];
    const mine = node.type.startsWith(own);
    node.properties["cnr_id"] = mine ? pack : "comfy-core";
    node.properties["ver"] = mine ? version : "0.30.0";
    if (node.type === "CheckpointLoaderSimple") node.properties["models"] = [model];
    for (const widget of node.widgets ?? [])
      if (widget.name === "control_after_generate") widget.value = "fixed";
  }
  // Nodes grow with their inputs: what stands below makes room, and groups reach round what is in them.
  const gap = 60;
  const groupOf = node => groups.find(([, x, y, w, h]) =>
    node.pos[0] >= x && node.pos[0] < x + w && node.pos[1] >= y && node.pos[1] < y + h);
  const inGroup = new Map(graph._nodes.map(node => [node, groupOf(node)]));
  const sorted = [...graph._nodes].sort((a, b) => a.pos[1] - b.pos[1]);
  sorted.forEach((node, i) => {
    for (const other of sorted.slice(0, i)) {
      const apart = node.pos[0] >= other.pos[0] + other.size[0] || other.pos[0] >= node.pos[0] + node.size[0];
      if (!apart) node.pos = [node.pos[0], Math.max(node.pos[1], other.pos[1] + other.size[1] + gap)];
    }
  });
  for (const group of groups)
    for (const node of graph._nodes)
      if (inGroup.get(node) === group)
        group[4] = Math.max(group[4], node.pos[1] + node.size[1] + 20 - group[2]);
  for (const [x, y, w, h, text] of notes) {
    const note = LiteGraph.createNode("MarkdownNote");
    graph.add(note);
    note.pos = [x, y + 30];
    note.setSize([w, h - 30]);
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
            "model": SDXL,
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
