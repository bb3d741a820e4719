"""Two subjects side by side in the real host: each its own LoRA, its own learned token and its own mask."""

import pytest
from host_graph import Graph, facts

from devtools.api import HostError

TOKENS = {
    "learned_tokens": "with the LoRA", "learned_tokens__token_learning_rate": 5e-3, "learned_tokens__initializers": "",
    "learned_tokens__vectors": 0, "layers": "all linear",
}  # fmt: skip
SIZE = 256


class TwoToys(Graph):
    """The Toy World, two LoRAs with a token each, and what each of them and the base model read of one prompt."""

    def __init__(self):
        super().__init__()
        self.base = self.toy()
        self.loras = [
            [self.toy_trainer(self.base, what, name=f"region_{what}", **TOKENS), 0]
            for what in ("subject", "style")
        ]
        encoded = [
            self.add("DCOEncodePrompt", clip=self.base["clip"], lora=lora, text=text)
            for lora, text in zip(
                self.loras, ("a large <toy> at night", "a toy at night in <flat> style"), strict=True
            )
        ]
        self.personalized = [[node, 0] for node in encoded]
        self.prompt_of_base, self.empty = [encoded[0], 1], self.text(self.base["clip"], "")
        self.start = self.latent(SIZE)

    def solid(self, value, width, height=SIZE):
        return [self.add("SolidMask", value=value, width=width, height=height), 0]

    def column(self, x, width):
        """White from x on, for `width` pixels."""
        node = self.add(
            "MaskComposite",
            destination=self.solid(0.0, SIZE),
            source=self.solid(1.0, width),
            x=x,
            y=0,
            operation="add",
        )
        return [node, 0]

    def common(self):
        return {
            "model": self.base["model"], "lora": self.loras[0], "w_rg": 1.4, "personalized": self.personalized[0],
        }  # fmt: skip

    def region(self, mask, **changes):
        values = {"w_rg_factor": 0.8, "lora_strength": 1.0, "personalized": self.personalized[1]} | changes
        return [self.add("DCORegionalLoRA", lora=self.loras[1], mask=mask, **values), 0]

    def sampled(self, steps=4, **options):
        return self.guided(
            self.base["model"], self.loras[0], self.prompt_of_base, self.empty, self.start, 1.4, 2.0, steps=steps,
            personalized=self.personalized[0], **options,
        )  # fmt: skip

    def part(self, latent, x, width):
        return [self.add("LatentCrop", samples=latent, width=width, height=SIZE, x=x, y=0), 0]


def test_two_subjects_side_by_side_in_one_sampling(host):
    """After one step: the base model's picture in the middle, and on each side that of one LoRA alone."""
    g = TwoToys()
    left, right = g.column(0, 96), g.column(160, 96)
    both = g.sampled(steps=1, mask=left, regions=g.region(right))
    first = g.sampled(steps=1)
    second = g.guided(
        g.base["model"], g.loras[1], g.prompt_of_base, g.empty, g.start, 1.4 * 0.8, 2.0, steps=1,
        personalized=g.personalized[1],
    )  # fmt: skip
    plain = g.ksample(g.base["model"], g.prompt_of_base, g.empty, g.start, 2.0, steps=1)
    parts = {(0, 96): first, (96, 64): plain, (160, 96): second}
    same = [g.compare(g.part(both, *where), g.part(one, *where)) for where, one in parts.items()]
    other = [g.compare(g.part(both, *where), g.part(plain, *where)) for where in ((0, 96), (160, 96))]
    report = g.add("PreviewAny", source=[both[0], 1])
    outputs = host.client.run(g.prompt)
    assert all(facts(outputs, node)["relative"] < 1e-4 for node in same)
    assert all(facts(outputs, node)["relative"] > 1e-3 for node in other)
    assert outputs[report]["text"][0].startswith(
        "4 UNet rows a step: LoRA 1 on the prompt, LoRA 2 on the prompt, base on the prompt, base on the negative"
    )


def test_the_doors_take_masks_and_regions_alike(host):
    g = TwoToys()
    regional = {"mask": g.column(0, 128), "regions": g.region(g.column(128, 128))}
    sampler = g.sampled(**regional)
    patch = g.guidance("DCORewardGuidance", **g.common(), **regional)
    patched = g.ksample([patch, 0], g.prompt_of_base, g.empty, g.start, 2.0)
    guider = g.guidance(
        "DCORewardGuider", **g.common(), **regional, positive=g.prompt_of_base, negative=g.empty, w_text=2.0
    )
    sigmas = g.add("BasicScheduler", model=g.base["model"], scheduler="normal", steps=4, denoise=1.0)
    advanced = g.add(
        "SamplerCustomAdvanced", noise=[g.add("RandomNoise", noise_seed=3), 0], guider=[guider, 0],
        sampler=[g.add("KSamplerSelect", sampler_name="euler"), 0], sigmas=[sigmas, 0], latent_image=g.start,
    )  # fmt: skip
    swept = g.guidance(
        "DCORewardGuidanceSweep", **{k: v for k, v in g.common().items() if k != "w_rg"}, **regional, seed=3, steps=4,
        positive=g.prompt_of_base, negative=g.empty, latent_image=g.start, vae=g.base["vae"], w_rg_values="1.4",
        across="w_rg alone", w_text=2.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    report = g.add("PreviewAny", source=[swept, 3])
    same = [g.compare(other, sampler) for other in (patched, [advanced, 0])]
    without = g.compare(g.sampled(), sampler)
    ones = g.compare(g.sampled(mask=g.solid(1.0, 64, 64)), g.sampled())
    zeros = g.compare(
        g.sampled(mask=g.solid(0.0, 64, 64)),
        g.ksample(g.base["model"], g.prompt_of_base, g.empty, g.start, 2.0),
    )
    outputs = host.client.run(g.prompt)
    assert all(facts(outputs, node)["equal"] for node in (*same, ones, zeros))
    assert facts(outputs, without)["relative"] > 1e-3
    assert "4 UNet rows a step" in outputs[report]["text"][0]


@pytest.mark.parametrize("where", ["mask", "regions"])
def test_a_mask_of_another_shape_is_one_sentence(host, where):
    g = TwoToys()
    narrow = g.add(
        "MaskComposite", destination=g.solid(0.0, 128), source=g.solid(1.0, 64), x=0, y=0, operation="add"
    )
    value = [narrow, 0] if where == "mask" else g.region([narrow, 0])
    latent = g.sampled(**{where: value})
    g.compare(latent, latent)
    with pytest.raises(
        HostError, match="mask of a LoRA is 128 x 256 and the latent 32 x 32: give the mask the "
    ):
        host.client.run(g.prompt)
