"""The nodes of the guidance engine: guider, sweep, other methods; what they report and refuse."""

import io
import threading

import numpy as np
import pytest
from host_graph import Graph, facts
from PIL import Image

from devtools.api import HostError, HostInterrupted


class Toy(Graph):
    """The Toy World, a LoRA trained in it and two prompts."""

    def __init__(self):
        super().__init__()
        self.base = self.toy()
        self.lora = [self.toy_trainer(self.base, layers="all linear"), 0]
        self.c = self.text(self.base["clip"], "a large toy on the left, at night, in flat style")
        self.empty = self.text(self.base["clip"], "")
        self.start = self.latent(256)

    def conditions(self):
        return {"model": self.base["model"], "lora": self.lora, "positive": self.c, "negative": self.empty}

    def advanced(self, guider):
        noise = self.add("RandomNoise", noise_seed=3)
        sampler = self.add("KSamplerSelect", sampler_name="euler")
        sigmas = self.add(
            "BasicScheduler", model=self.base["model"], scheduler="normal", steps=4, denoise=1.0
        )
        node = self.add(
            "SamplerCustomAdvanced", noise=[noise, 0], guider=guider, sampler=[sampler, 0], sigmas=[sigmas, 0],
            latent_image=self.start,
        )  # fmt: skip
        return [node, 0]

    def shown_text(self, text):
        return self.add("PreviewAny", source=text)


def picture(host, shown):
    return np.asarray(Image.open(io.BytesIO(host.client.download(**shown))).convert("RGB"))


def sampling(**changes):
    return {
        "seed": 3, "steps": 4, "w_text": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        "lora_strength": 1.0,
    } | changes  # fmt: skip


def three_nodes(g, w_rg, w_text=2.0, **options):
    """The image through each of the three nodes, and their reports: (latents, reports)."""
    patch = g.guidance(
        "DCORewardGuidance", model=g.base["model"], lora=g.lora, w_rg=w_rg, lora_strength=1.0, **options
    )
    guider = g.guidance(
        "DCORewardGuider", **g.conditions(), w_rg=w_rg, w_text=w_text, **({"lora_strength": 1.0} | options)
    )
    sampler = g.guided(g.base["model"], g.lora, g.c, g.empty, g.start, w_rg, w_text, **options)
    core = g.add(
        "CFGGuider", model=[patch, 0], positive=g.c, negative=g.empty, cfg=w_text
    )  # any guider that takes a MODEL
    latents = [
        sampler, g.advanced([guider, 0]), g.ksample([patch, 0], g.c, g.empty, g.start, w_text), g.advanced([core, 0]),
    ]  # fmt: skip
    return latents, [g.shown_text([sampler[0], 1]), g.shown_text([guider, 1]), g.shown_text([patch, 1])]


@pytest.mark.parametrize(
    "w_rg, options, rows",
    [
        (1.4, {}, "3 UNet rows a step: LoRA on the prompt, base on the prompt, base on the negative"),
        (2.0, {}, "2 UNet rows a step: LoRA on the prompt, base on the negative"),
        (0.0, {}, "2 UNet rows a step: base on the prompt, base on the negative. The LoRA takes no part."),
        (
            1.4, {"start_percent": 0.2, "end_percent": 0.8, "w_rg_schedule": "cosine", "low_memory": True},
            "3 UNet rows a step: LoRA on the prompt, base on the prompt, base on the negative. Outside of 20% to 80% "
            "of the noise schedule: 2 UNet rows a step: base on the prompt, base on the negative. One row at a time.",
        ),
    ],
)  # fmt: skip
def test_three_nodes_make_one_image_bit_for_bit(host, w_rg, options, rows):
    g = Toy()
    (first, *others), reports = three_nodes(g, w_rg, **options)
    same = [g.compare(other, first) for other in others]
    plain = g.compare(first, g.ksample(g.base["model"], g.c, g.empty, g.start, 2.0))
    outputs = host.client.run(g.prompt)
    assert all(facts(outputs, node)["equal"] for node in same)
    assert facts(outputs, plain)["equal"] == (w_rg == 0)
    sampler, guider, patch = (outputs[node]["text"][0] for node in reports)
    assert sampler.startswith(rows) and guider.startswith(rows)
    where = "1 where cfg is 1" if w_rg == 0 else f"2 where cfg is 1 or w_rg ({w_rg:g})"
    assert ("2 where cfg is 1" if options else where) in patch


def test_interrupted_in_the_middle_the_next_plain_image_is_the_same_bit_for_bit(host):
    g = Toy()
    first = g.ksample(g.base["model"], g.c, g.empty, g.start, 2.0, seed=21)
    before = g.compare(first, first)
    weights = g.add("DCOTestWeightHash", model=g.base["model"], when=31)
    outputs = host.client.run(g.prompt)
    sha, hashed = facts(outputs, before)["sha256"], facts(outputs, weights)

    guided = g.guided(g.base["model"], g.lora, g.c, g.empty, g.start, 1.4, 2.0, seed=22, steps=60)
    g.compare(guided, guided)
    pressed = threading.Event()

    def on_progress(kind, data):
        if kind == "progress" and data["node"] == guided[0] and data["value"] >= 5 and not pressed.is_set():
            pressed.set()
            host.client.interrupt()

    with pytest.raises(HostInterrupted):
        host.client.run(g.prompt, on_progress)
    assert pressed.is_set()

    after = Toy()
    again = after.ksample(
        after.base["model"], after.c, after.empty, after.start, 2.0, seed=21, denoise=0.99999
    )
    same = after.compare(again, again)
    weights = after.add("DCOTestWeightHash", model=after.base["model"], when=32, after=again)
    outputs = host.client.run(after.prompt)
    assert facts(outputs, same)["sha256"] == sha
    assert facts(outputs, weights) == hashed and hashed["hooks"] == 0


@pytest.mark.parametrize("across", ["w_rg alone", "and w_text", "and LoRA strength"])
def test_a_sweep_is_the_pictures_one_by_one(host, across):
    g = Toy()
    values = {
        "and w_text": {"across__w_text_values": "1.5, 2"},
        "and LoRA strength": {"across__strength_values": "0.5;1"},
    }
    node = g.guidance(
        "DCORewardGuidanceSweep", **g.conditions(), latent_image=g.start, vae=g.base["vae"], w_rg_values="0, 1.4",
        across=across, **values.get(across, {}), **sampling(),
    )  # fmt: skip
    shown = g.add("PreviewImage", images=[node, 0])
    sheet = g.add("PreviewImage", images=[node, 1])
    w_text, strength = {"and w_text": (1.5, 1.0), "and LoRA strength": (2.0, 0.5)}.get(across, (2.0, 1.0))
    alone = g.guided(g.base["model"], g.lora, g.c, g.empty, g.start, 1.4, w_text, lora_strength=strength)
    decoded = g.add("VAEDecode", samples=alone, vae=g.base["vae"])
    expected = g.add("PreviewImage", images=[decoded, 0])
    reports, told = g.shown_text([node, 3]), []

    def on_progress(kind, data):
        if kind == "text":
            told.append(data["raw"].decode(errors="replace"))

    outputs = host.client.run(g.prompt, on_progress)
    pictures = [picture(host, image) for image in outputs[shown]["images"]]
    for n in range(len(pictures)):
        assert any(f"Picture {n + 1} of {len(pictures)}: w_rg {(0, 1.4)[n % 2]:g}" in text for text in told)
    lines = outputs[reports]["text"][0].splitlines()
    assert len(lines) == len(pictures)
    assert "w_rg 0" in lines[0] and "2 UNet rows a step" in lines[0]
    assert "w_rg 1.4" in lines[1] and "3 UNet rows a step" in lines[1] and "self-check" in lines[1]
    assert not any("self-check" in line for line in lines[2:])
    assert len(pictures) == (2 if across == "w_rg alone" else 4)
    assert np.array_equal(pictures[1], picture(host, outputs[expected]["images"][0]))
    assert not np.array_equal(pictures[0], pictures[1])
    (drawn,) = [picture(host, image) for image in outputs[sheet]["images"]]
    assert drawn.shape[1] > 2 * 256 and drawn.shape[0] > 256 * len(pictures) // 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"w_rg_values": "0, two"}, 'w_rg_values has "two", which is no number'),
        ({"w_rg_values": " , "}, "w_rg_values is empty"),
        ({"w_rg_values": "nan"}, 'w_rg_values has "nan"'),
        ({"w_rg_values": ",".join(map(str, range(300)))}, "= 300 pictures, more than 256"),
        ({"start_percent": 0.5, "end_percent": 0.2}, "interval of w_rg is empty"),
    ],
)
def test_bad_values_are_told_before_anything_is_sampled(host, changes, message):
    g = Toy()
    values = {"w_rg_values": "0, 2"} | changes
    node = g.guidance(
        "DCORewardGuidanceSweep", **g.conditions(), latent_image=g.start, vae=g.base["vae"], across="w_rg alone",
        **values, **sampling(),
    )  # fmt: skip
    g.add("PreviewImage", images=[node, 0])
    with pytest.raises(HostError, match=message):
        host.client.run(g.prompt)


def test_other_methods_run_in_any_sampler(host):
    g = Toy()
    plain = g.ksample(g.base["model"], g.c, g.empty, g.start, 2.0)
    differ, reports = [], []
    for method, values in (
        ("AutoGuidance", {"method__w_auto": 2.0}),
        ("Personalization guidance", {"method__weak_strength": 0.5}),
        ("LoRA on the negative only", {}),
    ):
        node = g.guidance(
            "DCOLoRAGuidance", model=g.base["model"], lora=g.lora, method=method, **values, lora_strength=1.0
        )
        differ.append(g.compare(g.ksample([node, 0], g.c, g.empty, g.start, 2.0), plain))
        reports.append(g.shown_text([node, 1]))
    off = g.guidance(
        "DCOLoRAGuidance", model=g.base["model"], lora=g.lora, method="AutoGuidance", method__w_auto=1.0,
        lora_strength=1.0,
    )  # fmt: skip
    same = g.compare(g.ksample([off, 0], g.c, g.empty, g.start, 2.0), plain)
    outputs = host.client.run(g.prompt)
    assert all(facts(outputs, node)["relative"] > 1e-3 for node in differ)
    assert facts(outputs, same)["equal"]
    for node, words in zip(
        reports,
        ("3 UNet rows a step: LoRA on the prompt, base on the prompt, base on the negative; 2 where cfg is 1",
         "2 UNet rows a step: LoRA on the prompt, part of the LoRA on the negative; 1 where cfg is 1",
         "2 UNet rows a step: base on the prompt, LoRA on the negative; 1 where cfg is 1"),
        strict=True,
    ):  # fmt: skip
        assert outputs[node]["text"][0].startswith(words)


def test_a_stack_of_loras(host):
    g = Toy()
    style = [g.toy_trainer(g.base, "style", name="style", layers="all linear"), 0]
    stacked = g.guided(
        g.base["model"], g.lora, g.c, g.empty, g.start, 1.4, 2.0, more_loras="1 more", more_loras__lora_2=style,
        more_loras__strength_2=0.7,
    )  # fmt: skip
    merge = g.merge([g.lora, style], weights="1, 0.7", name="stack")
    summed = g.guided(g.base["model"], [merge, 0], g.c, g.empty, g.start, 1.4, 2.0)
    alone = g.guided(g.base["model"], g.lora, g.c, g.empty, g.start, 1.4, 2.0)
    same, other = g.compare(stacked, summed), g.compare(stacked, alone)
    outputs = host.client.run(g.prompt)
    assert facts(outputs, same)["relative"] < 1e-4
    assert facts(outputs, other)["relative"] > 1e-3
