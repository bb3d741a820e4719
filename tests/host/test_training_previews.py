"""Previews of the trainer, in the real host."""

from __future__ import annotations

import io

import numpy as np
import pytest
from host_graph import Graph, saved_file
from PIL import Image

TWO_PROMPTS = "a photo of a <dog> on the beach\n\na photo of a <dog> in a forest\n"


def trained(host, name, seen=None, **changes):
    """(the saved file's bytes, the preview sheets, everything) of a short run on the Toy World."""
    g = Graph()
    trainer = g.toy_trainer(g.toy(), steps=6, name=f"{name}", **changes)
    saver = g.add("SaveImage", images=[trainer, 4], filename_prefix=name)

    def on_message(kind, data):
        if seen is not None and kind == "preview":
            seen.append(data)

    outputs = host.client.run(g.prompt, on_message)
    images = outputs.get(saver, {}).get("images", [])
    sheets = [
        np.asarray(Image.open(host.base_dir / "output" / i["subfolder"] / i["filename"])) for i in images
    ]
    return (host.base_dir / "output" / saved_file(outputs, trainer)).read_bytes(), sheets, outputs[trainer]


TOKENS = {
    "learned_tokens": "with the LoRA", "learned_tokens__token_learning_rate": 1e-2,
    "learned_tokens__initializers": "", "learned_tokens__vectors": 0,
}  # fmt: skip


@pytest.mark.parametrize("tokens", [{}, TOKENS], ids=["LoRA", "LoRA and tokens"])
def test_previews_are_shown_while_training_and_change_nothing(host, tokens):
    seen = []
    shown, sheets, _ = trained(
        host,
        "shown",
        seen,
        previews=2,
        preview_prompts="a photo of a <dog>",
        learning_rate=1e-2,
        **tokens,
    )
    plain, none, _ = trained(host, "plain", learning_rate=1e-2, **tokens)
    assert none == []  # and what is connected to it has not run
    assert len(seen) == len(sheets) == 3  # after steps 2, 4 and 6
    live = np.asarray(Image.open(io.BytesIO(seen[0]["image"])).convert("RGB"))
    assert live.shape == sheets[0].shape
    first, second = (s[100:-20].astype(int) for s in sheets[:2])  # without titles and labels
    third = first.shape[1] // 3
    changed = np.abs(first - second)
    assert changed[:, :third].max() == 0  # the base stays
    assert changed[:, third:].mean() > 1  # theta learns
    assert _weights(shown) == _weights(plain)


def test_without_a_prompt_the_first_caption_is_previewed_once(host):
    _, sheets, _ = trained(host, "caption", previews=100)
    assert len(sheets) == 1  # in the end
    _, two, _ = trained(host, "prompts", previews=100, preview_prompts=TWO_PROMPTS)
    assert two[0].shape[0] == 2 * sheets[0].shape[0]


def _weights(file):
    """The bytes after the header, which has the date in it."""
    return file[8 + int.from_bytes(file[:8], "little") :]
