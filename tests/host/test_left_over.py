"""Nothing of a training stays in the host's memory, however it ends."""

from __future__ import annotations

import json
import threading

import pytest
from host_graph import Graph

from devtools.api import HostError, HostInterrupted


def left_over(host, number):
    g = Graph()
    node = g.add("DCOTestLeftOver", run=number)
    return json.loads(host.client.run(g.prompt)[node]["text"][0])


def trained(host, prefix, on_progress=None, base=None, **changes):
    g = Graph()
    base = {**g.toy(), **({} if base is None else base(g))}
    g.toy_trainer(base, name=f"{prefix}", **changes)
    return host.client.run(g.prompt, on_progress)


def test_neither_success_nor_interrupt_nor_an_error_leaves_anything(host):
    trained(host, "left_before", steps=2)  # what is loaded once and for all is loaded
    at_rest = left_over(host, 0)
    assert at_rest.get("adapted layers", 0) == at_rest.get("optimizers", 0) == 0

    trained(host, "left_success", steps=4, validation_steps=2, keep="best", ema_decay=0.9, resume=True, previews=2)
    assert left_over(host, 1) == at_rest

    pressed = threading.Event()

    def on_progress(kind, data):
        if kind == "progress" and data["value"] >= 2 and not pressed.is_set():
            pressed.set()
            host.client.interrupt()

    with pytest.raises(HostInterrupted):
        trained(host, "left_interrupted", on_progress, steps=5000)
    assert left_over(host, 2) == at_rest

    with pytest.raises(HostError, match="not finite in 5 steps in a row"):
        trained(host, "left_error", base=lambda g: {"clip": [g.add("DCOTestBrokenClip"), 0]}, steps=12)
    assert left_over(host, 3) == at_rest
