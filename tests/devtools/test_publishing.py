"""What the registry and the Manager show of the pack."""

from __future__ import annotations

import json
import re

import yaml
from PIL import Image

from devtools.environment import ROOT
from devtools.layouts import WORKFLOWS
from devtools.make_help_pictures import MADE
from devtools.pack_files import pack_files

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def value(name):
    (found,) = re.findall(rf'^{name} = "(.*)"$', PROJECT, re.MULTILINE)
    return found


def test_the_icon_is_square_and_small_and_the_banner_wide():
    for name, wanted in (("Icon", "icon.png"), ("Banner", "banner.png")):
        assert value(name) == f"{raw()}/docs/{wanted}"
    with Image.open(ROOT / "docs" / "icon.png") as icon, Image.open(ROOT / "docs" / "banner.png") as banner:
        assert icon.width == icon.height <= 400
        assert 21 * banner.height == 9 * banner.width


def raw():
    return value("Repository").replace("https://github.com", "https://raw.githubusercontent.com") + "/main"


def test_links_are_into_the_repository():
    assert value("Documentation").startswith(value("Repository"))
    assert value("Issues") == value("Repository") + "/issues"


def test_the_changelog_knows_the_version_and_nodes_name_it():
    assert f"## {value('version')} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_publish_workflow_runs_for_a_new_version_on_main():
    text = (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    (job,) = workflow["jobs"].values()
    assert workflow[True]["push"] == {
        "branches": ["main"],
        "paths": ["pyproject.toml"],
    }  # YAML reads "on" as True
    assert job["if"].count(value("PublisherId")) == 1
    assert any(step.get("uses", "").startswith("Comfy-Org/publish-node-action@") for step in job["steps"])


def test_the_zip_carries_what_the_frontend_serves():
    packed = {path.as_posix() for path in pack_files()}
    assert {"web/dco_report.js", "web/dco_templates.js"} <= packed
    assert {"locales/zh/nodeDefs.json", "locales/ja/nodeDefs.json"} <= packed
    assert {f"workflows/{name}.{kind}" for name in WORKFLOWS for kind in ("json", "jpg")} <= packed
    assert not any(path.startswith((".github/", "tests/", "docs/")) for path in packed)


def test_the_pictures_of_the_help_are_small_and_all_of_them_are_shown():
    docs = ROOT / "web" / "docs"
    shown = {
        docs / name
        for page in docs.glob("*.md")
        for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    made = set((docs / "pictures").iterdir())
    assert shown == made == {docs / "pictures" / f"{name}.jpg" for name in MADE}
    assert all(picture.stat().st_size < 60_000 for picture in made)
    assert {picture.relative_to(ROOT) for picture in made} <= set(pack_files())


def test_the_readme_links_to_the_first_template():
    name = next(iter(WORKFLOWS))
    assert f"/?template={name}&source=ComfyUI-DCO" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_templates_are_whole():
    for name in WORKFLOWS:
        json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
