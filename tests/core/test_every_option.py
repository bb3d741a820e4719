"""No input of the trainer without a host test that sets it (test_options_take_effect.py: what options change)."""

import json
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def sources(folder):
    return "\n".join(p.read_text(encoding="utf-8") for p in sorted((TESTS / folder).glob("test_*.py")))


def is_set(name, source):
    """Whether some call or dictionary gives the option a value: `name=`, `"name":` or `"parent__name":`."""
    return re.search(rf"(?<![\w.])(?:{name}=(?!=)|\"(?:\w+__)?{name}\":|\w+__{name}=(?!=))", source)


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
