"""No input of the trainer without a host test that sets it (test_options_take_effect.py: what options change)."""

import json
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def sources(folder):
    return "\n".join(p.read_text(encoding="utf-8") for p in sorted((TESTS / folder).glob("test_*.py")))


def is_set(name, source):
    """Whether some call or dictionary gives the option a value: `name=`, `"name":` or `"parent__name":`."""
    return re.search(rf"(?<![\w.])(?:{name}=(?!=)|\"(?:\w+__)?{name}\":|\w+__{name}=(?!=))", source)


def test_every_input_of_the_trainer_is_set_in_a_host_test():
    snapshot = json.loads((TESTS / "host" / "snapshot.json").read_text(encoding="utf-8"))
    inputs = [entry[-2] for entry in snapshot["DCOLoRATrainer"]["inputs"]]
    graph = (TESTS / "host" / "host_graph.py").read_text(encoding="utf-8")
    given_by_name = {"model", "clip", "vae", "images", "captions"}  # arguments of Graph.trainer
    assert given_by_name <= set(inputs) and "def trainer(self, base" in graph
    source = sources("host")
    missing = [name for name in set(inputs) - given_by_name if not is_set(name, source)]
    assert missing == []
