"""Photos and captions that the browser sends: the node that makes a training set of them."""

from __future__ import annotations

import json

import pytest
from host_graph import Graph

from devtools.api import HostError

GOOD = "a photo of a <dog> sitting on a ledge in front of a red wall, close-up view, macro style"


def rows(*captions, photos="photos"):
    return json.dumps([{"file": f"{photos}/0{i}.jpg", "caption": text} for i, text in enumerate(captions)])


def trained_on(host, sd15, *captions):
    g = Graph()
    node = g.add("DCOPhotos", photos=rows(*captions), kind="subject", name="dog")
    trainer = g.trainer(
        g.checkpoint(sd15), [node, 0], [node, 1], resolution=64, steps=1, masks=[node, 2], name="of_photos"
    )
    outputs = host.client.run(g.prompt)
    return outputs[node], outputs.get(trainer)


def test_photos_with_captions_train(host, sd15, photos):
    shown, trained = trained_on(host, sd15, GOOD, GOOD.replace("red wall", "green hedge"))
    assert shown["dco_photos"][0] == GOOD and shown["dco_captions"] == []
    assert "Saved loras/of_photos" in trained["text"][0]


def test_missing_captions_are_drafted_and_nothing_is_trained_on_them_unread(host, sd15, photos):
    shown, trained = trained_on(host, sd15, GOOD, "")
    assert trained is None
    assert shown["dco_photos"][0] == GOOD
    assert "<dog>" in shown["dco_photos"][1] and "[" in shown["dco_photos"][1]
    assert shown["text"][0].startswith("Drafted 1 of 2 captions")
    assert [entry["image"] for entry in shown["dco_captions"]] == [1]  # beside the form alone


@pytest.mark.parametrize(("text", "message"), [
    ("", "There are no photos yet"),
    ("[1]", "photos is '\\[1\\]': write a list such as"),
    ('{"file": 3}', "write a list such as"),
    (rows(GOOD, photos="../../etc"), "is not inside the input folder"),
    (rows(GOOD, photos="nowhere"), "There is no picture"),
])  # fmt: skip
def test_a_list_that_is_none(host, text, message):
    g = Graph()
    g.add("DCOPhotos", photos=text, kind="subject", name="dog")
    with pytest.raises(HostError, match=message):
        host.client.run(g.prompt)
