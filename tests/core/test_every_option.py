"""No option of training without a test that sets it: what such a test finds out is in its own file."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from dco_core.network.lora_layers import AdapterConfig
from dco_core.training.config import TrainingConfig

TESTS = Path(__file__).parents[1]


def sources(folder):
    return "\n".join(p.read_text(encoding="utf-8") for p in sorted((TESTS / folder).glob("test_*.py")))


def is_set(name, source):
    """Whether some call or dictionary gives the option a value: `name=`, `"name":` or `"parent__name":`."""
    return re.search(rf"(?<![\w.])(?:{name}=(?!=)|\"(?:\w+__)?{name}\":|\w+__{name}=(?!=))", source)


FIELDS = [f.name for config in (TrainingConfig, AdapterConfig) for f in dataclasses.fields(config)]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_a_configuration_is_set_in_a_core_test(name):
    assert is_set(name, sources("core"))


@pytest.mark.parametrize("node", [
    "DCOLoRATrainer", "DCOTrainingOptions", "DCOLoRAOptions", "DCODataOptions", "DCORunOptions",
])  # fmt: skip
def test_every_input_of_the_trainer_and_its_options_is_set_in_a_host_test(node):
    snapshot = json.loads((TESTS / "host" / "snapshot.json").read_text(encoding="utf-8"))
    inputs = {entry[-2] for entry in snapshot[node]["inputs"]}
    graph = (TESTS / "host" / "host_graph.py").read_text(encoding="utf-8")
    # arguments of Graph.trainer, or what it makes of them: numbers given as beta and previews
    given_by_name = {"model", "clip", "vae", "images", "captions", "options", "value", "preview_every"}
    assert "def trainer(self, base" in graph and "beta__value" in graph and "preview_every" in graph
    source = sources("host")
    assert [name for name in sorted(inputs - given_by_name) if not is_set(name, source)] == []
