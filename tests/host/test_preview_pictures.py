"""Previews in the real host: what latents look like, and what of it reaches the browser."""

from __future__ import annotations

import io

import numpy as np
from host_graph import Graph, facts
from PIL import Image


def pictures(host, g, base, image):
    node = g.add("DCOTestPreviewPictures", model=base["model"], vae=base["vae"], image=image)
    return facts(host.client.run(g.prompt), node)


def test_the_toy_world_is_seen_as_it_is(host):
    g = Graph()
    base = g.toy()
    references = g.add("DCOToyWorldReferences", what="subject")
    found = pictures(host, g, base, [references, 0])
    assert found["shape"] == found["image"] == [512, 512, 3]
    assert found["to_image"] < 6
    assert (found["methods"], found["host"]) == (0, 0)
    assert found["decoded"] <= 0.5
    assert found["scales"] == [1.4, 2.0]


def test_a_latent_is_seen_without_a_vae_by_whatever_the_host_has(host, family, photos):
    g = Graph()
    base = g.checkpoint(family)
    picture = g.add("LoadImage", image="photos/00.jpg")
    found = pictures(host, g, base, [picture, 0])
    assert (found["shape"], found["dtype"]) == ([64, 96, 3], "uint8")
    assert found["spread"] > 1
    assert (
        found["methods"] == 0
    )  # "none" is the host's default: a trainer that is asked for previews shows them
    assert found["methods_kept"]
    assert found["host"] == 0
    assert found["taesd"] < 1.5  # the host rounds down
    assert (found["decoded"] <= 0.5, found["decoded_dtype"]) == (True, "uint8")
    assert found["scales"] == [3.0, 7.5]


def test_a_latent_format_that_cannot_be_seen_has_no_previews(host, sdxl):
    g = Graph()
    node = g.add("DCOTestPreviewNoFormat", model=g.checkpoint(sdxl)["model"])
    assert facts(host.client.run(g.prompt), node)["none"]


def test_a_picture_reaches_its_running_node_and_the_bar_goes_on(host):
    g = Graph()
    node = g.add("DCOTestPreviewShow")
    messages = []
    host.client.run(g.prompt, lambda kind, data: messages.append((kind, data)))
    seen = [data for kind, data in messages if kind == "preview"]
    assert [data["node_id"] for data in seen] == [node, node]
    for data, red in zip(seen, (300, 600), strict=True):
        image = np.asarray(Image.open(io.BytesIO(data["image"])).convert("RGB")).astype(int)
        assert image.shape == (300, 800, 3)  # captions stay readable: not shrunk to the host's --preview-size
        assert abs((image[..., 0] > 128).sum() / 300 - red) <= 2
    values = [data["value"] for kind, data in messages if kind == "progress" and data["node"] == node]
    assert values == sorted(values) and values[-1] == 9
