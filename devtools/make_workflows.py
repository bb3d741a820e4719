"""Write workflows/*.json and subgraphs/*.json with the real frontend, from devtools/layouts.

    .dev/venv/bin/python -m devtools.make_workflows

The frontend builds the graph from the API prompt, so every widget and link is where it expects them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import uuid
from typing import Any

from . import browser
from .environment import ROOT
from .host_server import HostServer
from .layouts import BLUEPRINTS, WORKFLOWS, Blueprint, Layout

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
    """The UI-format workflow of a layout, made in an open frontend: a fresh page, which keeps no values of another."""
    page.reload()
    browser.wait_until_ready(page)
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


_TO_SUBGRAPH = """
async ({id, name, outside, sockets, shown}) => {
  const graph = window.app.graph;
  const inside = graph._nodes.filter(node => !outside.includes(String(node.id)));
  const {subgraph, node} = graph.convertToSubgraph(new Set(inside));
  for (const outer of [...graph._nodes]) if (outer !== node) graph.remove(outer);
  // the frontend puts some widgets on the outside by itself
  for (const input of [...subgraph.inputs]) if (!sockets.includes(input.name)) subgraph.removeInput(input);
  for (const [inner, widget, label] of shown) {
    const source = subgraph.getNodeById(Number(inner));
    const slot = source.inputs.find(input => input.widget?.name === widget);
    subgraph.addInput(label, String(slot.type)).connect(slot, source);
  }
  subgraph.name = node.title = name;
  await new Promise(done => setTimeout(done, 500));
  node.pos = [0, 0];
  node.setSize(node.computeSize());
  const text = JSON.stringify(graph.serialize()).replaceAll(subgraph.id, id);
  graph.clear();
  return JSON.parse(text);
}
"""


def build_blueprint(page: Any, name: str, blueprint: Blueprint) -> dict[str, Any]:
    """A workflow that is one subgraph node, as the frontend's library of blueprints takes it."""
    build(page, blueprint.layout)
    found = page.evaluate(
        _TO_SUBGRAPH,
        {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{OWN_PACK}/{name}")),
            "name": name,
            "outside": sorted(blueprint.outside),
            "sockets": blueprint.sockets,
            "shown": blueprint.shown,
        },
    )
    found.pop("id", None)
    (subgraph,) = found["definitions"]["subgraphs"]
    subgraph |= {"category": "DCO", "description": blueprint.description}
    found["extra"] = {
        "workflowRendererVersion": "LG",
        "BlueprintDescription": blueprint.description,
        "BlueprintSearchAliases": blueprint.aliases,
    }
    return found


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory() as folder, HostServer(folder) as host:
        with browser.open_frontend(f"http://{host.address}") as page:
            found = {f"workflows/{name}": build(page, make()) for name, make in WORKFLOWS.items()}
            found |= {
                f"subgraphs/{name}": build_blueprint(page, name, make()) for name, make in BLUEPRINTS.items()
            }
    for name, workflow in found.items():
        path = ROOT / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}: {len(workflow['nodes'])} nodes", flush=True)


if __name__ == "__main__":
    main()
