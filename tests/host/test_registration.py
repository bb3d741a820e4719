"""What the host knows of the pack, and the borders inside it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.environment import ROOT

SNAPSHOT = Path(__file__).with_name("snapshot.json")
NODES = (
    "DCOLoRATrainer", "DCORewardGuidance", "DCORewardGuidanceSampler", "DCOLoRAArithmeticMerge", "DCOLoadLoRA",
    "DCOToyWorldLoader", "DCOToyWorldReferences", "DCOEncodePrompt", "DCOComprehensiveCaption", "DCOCheckCaptions",
    "DCOLoadDataset", "DCORewardGuider", "DCORewardGuidanceSweep", "DCOLoRAGuidance",
    "DCOImageSimilarity", "DCOImageTextScore", "DCOToyWorldScore", "DCOEvaluationPrompts", "DCOParetoPlot",
    "DCOContactSheet", "DCOTrainingOptions", "DCOLoRAOptions", "DCODataOptions", "DCORunOptions",
    "DCORewardGuidanceOptions", "DCOMergeOptions", "DCOPhotos",
    "DCORegionalLoRA",
)  # fmt: skip


def described(inputs):
    """[(name, type)] of a node's inputs in order, dynamic ones with what they hold."""
    found = []
    for section in ("required", "optional"):
        for name, (kind, *options) in inputs.get(section, {}).items():
            found.append([section, name, "COMBO" if isinstance(kind, list) else kind])
            options = options[0] if options else {}
            for option in options.get("options", []):
                if isinstance(option, dict):
                    found += [[option["key"], *entry] for entry in described(option["inputs"])]
            if "template" in options:
                found += [["template", *entry] for entry in described(options["template"]["input"])]
    return found


@pytest.fixture(scope="module")
def info(host):
    return host.client.object_info()


def test_nodes_inputs_and_outputs_never_change_by_accident(info):
    """Ids, input names, types and order, and outputs are permanent: saved workflows depend on them. New inputs go
    last and are optional; then write the snapshot anew (delete the file and run this test)."""
    now = {
        name: {
            "inputs": described(info[name]["input"]),
            "outputs": [
                list(pair) for pair in zip(info[name]["output"], info[name]["output_name"], strict=True)
            ],
        }
        for name in NODES
    }
    if not SNAPSHOT.exists():
        SNAPSHOT.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        pytest.fail("the snapshot was missing and is written now: look at it and commit it")
    assert now == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_the_pack_has_these_nodes_and_no_others(info):
    assert sorted(n for n in info if n.startswith("DCO") and not n.startswith("DCOTest")) == sorted(NODES)


@pytest.mark.parametrize("name", NODES)
def test_every_node_and_input_explains_itself(info, name):
    node = info[name]
    assert node["description"] and node["display_name"] and node["category"] and node["search_aliases"]
    assert all(node["output_tooltips"])

    def check(inputs):
        for section in ("required", "optional"):
            for label, (kind, *options) in inputs.get(section, {}).items():
                options = options[0] if options else {}
                assert options.get("tooltip"), f"{name}.{label} has no tooltip"
                if kind in ("INT", "FLOAT"):
                    assert {"min", "max", "default"} <= set(options), (
                        f"{name}.{label} has no range or default"
                    )
                for option in options.get("options", []):
                    if isinstance(option, dict):
                        check(option["inputs"])

    check(node["input"])


def test_starting_the_host_does_not_import_peft(imported_at_start):
    assert imported_at_start == []


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def test_only_nodes_host_imports_the_host():
    for path in [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "dco_core").rglob("*.py")]:
        inside = path.relative_to(ROOT).as_posix()
        for module in imports(path):
            top = module.split(".")[0]
            if inside.startswith("nodes/host/"):
                continue
            assert top not in ("comfy", "folder_paths", "nodes", "comfy_extras", "server"), (
                f"{inside}: {module}"
            )
            if top == "comfy_api":
                assert inside.startswith("nodes/") and module == "comfy_api.latest", f"{inside}: {module}"


def test_dco_core_imports_alone_and_without_peft():
    code = (
        "import sys, pkgutil, importlib, dco_core\n"
        "for m in pkgutil.walk_packages(dco_core.__path__, 'dco_core.'): importlib.import_module(m.name)\n"
        "bad = {'comfy', 'peft', 'transformers', 'folder_paths', 'diffusers'} & set(sys.modules)\n"
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
