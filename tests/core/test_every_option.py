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


def test_every_input_of_the_trainer_is_set_in_a_host_test():
    snapshot = json.loads((TESTS / "host" / "snapshot.json").read_text(encoding="utf-8"))
    inputs = [entry[-2] for entry in snapshot["DCOLoRATrainer"]["inputs"]]
    graph = (TESTS / "host" / "host_graph.py").read_text(encoding="utf-8")
    given_by_name = {"model", "clip", "vae", "images", "captions"}  # arguments of Graph.trainer
    assert given_by_name <= set(inputs) and "def trainer(self, base" in graph
    source = sources("host")
    missing = [name for name in set(inputs) - given_by_name if not is_set(name, source)]
    assert missing == []
