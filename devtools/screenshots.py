"""Pictures of every template as it opens, and of every node's face: classic nodes and Nodes 2.0, dark and light.

    .dev/venv/bin/python -m devtools.screenshots FOLDER [--only templates|faces]

Prints the zoom of each template at 1600 x 900 and the size of each face, and writes them to FOLDER/measured.json.
Nothing is run: what nodes report is in the browser tests.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from . import browser
from .environment import ROOT
from .host_server import HostServer
from .layouts import WORKFLOWS
from .stand_ins import put_template_files

VIEW = {"width": 1600, "height": 900}
_MODES = {"classic": False, "nodes_2": True}
_PALETTES = ("dark", "light")
_GAP = 60
_ROOM = {"width": 2600, "height": 1500}  # for the faces, at their own size

_FACES = """
async (types) => {
  const app = window.app;
  app.graph.clear();
  let x = 0, y = 0, row = 0;
  for (const type of types) {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    if (x + node.size[0] > WIDTH) [x, y, row] = [0, y + row + GAP, 0];
    node.pos = [x, y];
    x += node.size[0] + GAP;
    row = Math.max(row, node.size[1]);
  }
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [80, 150];
  app.canvas.setDirty(true, true);
}
"""
_SIZES = """
() => Object.fromEntries(window.app.graph._nodes.map(node => {
  const seen = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
  const scale = window.app.canvas.ds.scale;
  return [node.type, seen ? [seen.width / scale, seen.height / scale] : [node.size[0], node.size[1] + 30]];
}))
"""


def show_mode(page: Any, address: str, nodes_2: bool, palette: str) -> None:
    """Reload the page with one of the two kinds of nodes and a colour palette."""
    for setting, value in {"Comfy.VueNodes.Enabled": nodes_2, "Comfy.ColorPalette": palette}.items():
        page.request.post(f"{address}/settings/{setting}", data=json.dumps(value))
    page.reload()
    browser.wait_until_ready(page)


def open_template(page: Any, name: str) -> float:
    """Open a template as the dialog of templates does; returns its zoom."""
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    page.evaluate(
        "async ([w, name]) => { await window.app.loadGraphData(w, true, true, name, {openSource: 'template'}); }",
        [workflow, name],
    )
    browser.wait_until_at_rest(page)
    return page.evaluate("() => window.app.canvas.ds.scale")


def faces(page: Any, types: list[str]) -> dict[str, list[float]]:
    """Put one node of each type on an empty graph; returns {type: [width, height]}, with the title."""
    page.evaluate(_FACES.replace("WIDTH", str(_ROOM["width"] - 300)).replace("GAP", str(_GAP)), types)
    browser.wait_until_at_rest(page)
    return page.evaluate(_SIZES)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("templates", "faces"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as base:
        put_template_files(Path(base))
        with HostServer(base) as host, browser.open_frontend(f"http://{host.address}") as page:
            info = host.client.object_info()
            rooms: dict[str, list[str]] = {}
            for name, node in sorted(info.items()):
                if name.startswith("DCO"):
                    rooms.setdefault(node["category"].replace("/", "_"), []).append(name)
            rooms["core"] = ["KSampler", "TrainLoraNode"]  # to compare with
            for (mode, nodes_2), palette in itertools.product(_MODES.items(), _PALETTES):
                show_mode(page, f"http://{host.address}", nodes_2, palette)
                found: dict[str, Any] = measured.setdefault(mode, {"zoom": {}, "faces": {}})
                if args.only != "faces":
                    page.set_viewport_size(VIEW)
                    for name in WORKFLOWS:
                        found["zoom"][name] = round(open_template(page, name), 3)
                        page.screenshot(path=args.folder / f"template_{name[0]}_{mode}_{palette}.png")
                if args.only != "templates":
                    page.set_viewport_size(_ROOM)
                    for room, types in rooms.items():
                        found["faces"] |= faces(page, types)
                        page.screenshot(path=args.folder / f"faces_{room}_{mode}_{palette}.png")
    (args.folder / "measured.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
