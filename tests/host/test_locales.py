"""Translations name what is there: every node and input of a language file exists, and every node is translated."""

from __future__ import annotations

import json

import pytest

from devtools.environment import ROOT

LANGUAGES = ("zh", "ja")


def definitions(language):
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_is_translated_and_no_other(host, language):
    info = {name: node for name, node in host.client.object_info().items() if node["name"].startswith("DCO")}
    ours = {name for name in info if not name.startswith("DCOTest")}
    found = definitions(language)
    assert set(found) == ours
    for name, node in found.items():
        assert node["display_name"] and node["description"]
        sections = info[name]["input"]
        inputs = {label for section in ("required", "optional") for label in sections.get(section, {})}
        assert set(node.get("inputs", {})) <= inputs, name
        required = set(sections.get("required", {}))
        assert required <= set(node.get("inputs", {})), name
        for label, translated in node.get("inputs", {}).items():
            assert translated["name"] and translated["tooltip"], f"{name}.{label}"


def test_the_languages_say_the_same_things():
    shapes = [
        {name: set(node.get("inputs", {})) for name, node in definitions(one).items()} for one in LANGUAGES
    ]
    assert shapes[0] == shapes[1]


def test_the_host_serves_them(host):
    import urllib.request

    with urllib.request.urlopen(f"http://{host.address}/i18n") as answer:
        served = json.load(answer)
    for language in LANGUAGES:
        assert served[language]["nodeDefs"]["DCOCheckCaptions"]["display_name"] == (
            definitions(language)["DCOCheckCaptions"]["display_name"]
        )
