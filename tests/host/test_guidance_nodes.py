"""The doors to the guidance engine as nodes: guider, sweep, relatives; what they report and refuse."""

import io

import numpy as np
import pytest
from host_graph import Graph, facts
from PIL import Image

from devtools.api import HostError


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

    def said(self, text):
        return self.add("PreviewAny", source=text)


def picture(host, shown):
    return np.asarray(Image.open(io.BytesIO(host.client.download(**shown))).convert("RGB"))


def sampling(**changes):
    return {
        "seed": 3, "steps": 4, "w_text": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        "lora_strength": 1.0,
    } | changes  # fmt: skip


def test_the_guider_makes_the_samplers_image_and_tells_the_rows(host):
    g = Toy()
    guider = g.add("DCORewardGuider", **g.conditions(), w_rg=1.4, w_text=2.0, lora_strength=1.0)
    sampler = g.guided(g.base["model"], g.lora, g.c, g.empty, g.start, 1.4, 2.0)
    same = g.compare(g.advanced([guider, 0]), sampler)
    said = [g.said([guider, 1]), g.said([sampler[0], 1])]
    fewer = g.guided(g.base["model"], g.lora, g.c, g.empty, g.start, 2.0, 2.0)
    fewer_said = g.said([fewer[0], 1])
    outputs = host.client.run(g.prompt)
    assert facts(outputs, same)["equal"]
    for node in said:
        assert outputs[node]["text"][0].startswith(
            "3 UNet rows a step: LoRA on the prompt, base on the prompt"
        )
    assert outputs[fewer_said]["text"][0].startswith(
        "2 UNet rows a step: LoRA on the prompt, base on the negative"
    )


@pytest.mark.parametrize("across", ["w_rg alone", "and w_text", "and LoRA strength"])
def test_a_sweep_is_the_pictures_one_by_one(host, across):
    g = Toy()
    values = {
        "and w_text": {"across__w_text_values": "1.5, 2"},
        "and LoRA strength": {"across__strength_values": "0.5;1"},
    }
    node = g.add(
        "DCORewardGuidanceSweep", **g.conditions(), latent_image=g.start, vae=g.base["vae"], w_rg_values="0, 1.4",
        across=across, **values.get(across, {}), **sampling(),
    )  # fmt: skip
    shown = g.add("PreviewImage", images=[node, 0])
    sheet = g.add("PreviewImage", images=[node, 1])
    w_text, strength = {"and w_text": (1.5, 1.0), "and LoRA strength": (2.0, 0.5)}.get(across, (2.0, 1.0))
    alone = g.guided(g.base["model"], g.lora, g.c, g.empty, g.start, 1.4, w_text, lora_strength=strength)
    decoded = g.add("VAEDecode", samples=alone, vae=g.base["vae"])
    expected = g.add("PreviewImage", images=[decoded, 0])
    outputs = host.client.run(g.prompt)
    pictures = [picture(host, image) for image in outputs[shown]["images"]]
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
    node = g.add(
        "DCORewardGuidanceSweep", **g.conditions(), latent_image=g.start, vae=g.base["vae"], across="w_rg alone",
        **values, **sampling(),
    )  # fmt: skip
    g.add("PreviewImage", images=[node, 0])
    with pytest.raises(HostError, match=message):
        host.client.run(g.prompt)


def test_relatives_run_in_any_sampler(host):
    g = Toy()
    plain = g.ksample(g.base["model"], g.c, g.empty, g.start, 2.0)
    differ = []
    for method, values in (
        ("AutoGuidance", {"method__w_auto": 2.0}),
        ("Personalization guidance", {"method__weak_strength": 0.5}),
        ("LoRA on the negative only", {}),
    ):
        node = g.add(
            "DCOLoRAGuidance", model=g.base["model"], lora=g.lora, method=method, **values, lora_strength=1.0
        )
        differ.append(g.compare(g.ksample([node, 0], g.c, g.empty, g.start, 2.0), plain))
        g.said([node, 1])
    off = g.add(
        "DCOLoRAGuidance", model=g.base["model"], lora=g.lora, method="AutoGuidance", method__w_auto=1.0,
        lora_strength=1.0,
    )  # fmt: skip
    same = g.compare(g.ksample([off, 0], g.c, g.empty, g.start, 2.0), plain)
    outputs = host.client.run(g.prompt)
    assert all(facts(outputs, node)["relative"] > 1e-3 for node in differ)
    assert facts(outputs, same)["equal"]


def test_a_stack_of_loras(host):
    g = Toy()
    style = [g.toy_trainer(g.base, "style", filename_prefix="loras/style", layers="all linear"), 0]
    stacked = g.guided(
        g.base["model"], g.lora, g.c, g.empty, g.start, 1.4, 2.0, more_loras="1 more", more_loras__lora_2=style,
        more_loras__strength_2=0.7,
    )  # fmt: skip
    merge = g.add(
        "DCOLoRAArithmeticMerge", loras__lora_0=g.lora, loras__lora_1=style, weights="1, 0.7",
        filename_prefix="loras/stack",
    )  # fmt: skip
    summed = g.guided(g.base["model"], [merge, 0], g.c, g.empty, g.start, 1.4, 2.0)
    alone = g.guided(g.base["model"], g.lora, g.c, g.empty, g.start, 1.4, 2.0)
    same, other = g.compare(stacked, summed), g.compare(stacked, alone)
    outputs = host.client.run(g.prompt)
    assert facts(outputs, same)["relative"] < 1e-4
    assert facts(outputs, other)["relative"] > 1e-3
