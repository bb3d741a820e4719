"""Reward guidance in the real sampling loop, against two separately loaded models."""

from __future__ import annotations

import pytest
from host_graph import Graph, facts

TOLERANCE = 1e-5
STEPS = 3  # the first of which checks itself


class Setup(Graph):
    """phi, a trained LoRA, and theta: a second, separately loaded model with the LoRA merged by the core loader."""

    def __init__(self, family: str, positive: str, negative: str = "", batch: int = 1, size: int = 64):
        super().__init__()
        self.phi = self.toy() if family == "toy" else self.checkpoint(family)
        second = self.add("DCOTestSecondModel", family=family)
        if family == "toy":
            trainer = self.toy_trainer(self.phi, layers="all linear")
        else:
            references = self.add("DCOToyWorldReferences", what="subject")
            trainer = self.trainer(
                self.phi, [references, 0], [references, 1], resolution=64, objective__beta=0.001, steps=4,
                learning_rate=3e-3,
            )  # fmt: skip
        self.lora = [trainer, 0]
        merged = self.add(
            "LoraModelLoader", model=[second, 0], lora=self.lora, strength_model=1.0, bypass=False
        )
        self.theta = [merged, 0]
        self.c, self.empty = self.text(self.phi["clip"], positive), self.text(self.phi["clip"], negative)
        self.start = self.latent(256 if family == "toy" else size, batch)

    def ours(self, w_rg, w_text, model=None, **changes):
        return self.guided(
            model or self.phi["model"], self.lora, self.c, self.empty, self.start, w_rg, w_text,
            **{"steps": STEPS} | changes,
        )  # fmt: skip

    def patched(self, w_rg, w_text, **changes):
        patch = self.guidance(
            "DCORewardGuidance", model=self.phi["model"], lora=self.lora, w_rg=w_rg, lora_strength=1.0
        )
        return self.ksample([patch, 0], self.c, self.empty, self.start, w_text, **{"steps": STEPS} | changes)

    def plain(self, model, w_text, **changes):
        return self.ksample(model, self.c, self.empty, self.start, w_text, **{"steps": STEPS} | changes)

    def oracle(self, w_rg, w_text, **more):
        node = self.add(
            "DCOTestOracleSampler", phi=self.phi["model"], theta=self.theta, positive=self.c, negative=self.empty,
            latent=self.start, seed=3, steps=STEPS, w_rg=w_rg, w_text=w_text, **more,
        )  # fmt: skip
        return [node, 0]


LONG = "a large toy on the left, at night, in flat style and " * 4
TOY = "a large toy on the left, at night, in flat style"


def check(host, graph, pairs, tolerance=TOLERANCE):
    nodes = [graph.compare(a, b) for a, b in pairs]
    outputs = host.client.run(graph.prompt)
    for node in nodes:
        found = facts(outputs, node)
        assert found["finite"]
        assert found["relative"] < tolerance
    return outputs


@pytest.mark.parametrize("batch", [1, 2])
def test_the_toy_world_matches_two_models_as_sampler_and_as_patch(host, batch):
    g = Setup("toy", TOY, batch=batch)
    pairs = [
        (make(w, v), g.oracle(w, v)) for w, v in ((1.0, 2.0), (3.0, 2.0)) for make in (g.ours, g.patched)
    ]
    different = g.compare(g.ours(3.0, 2.0), g.plain(g.phi["model"], 2.0))
    outputs = check(host, g, pairs)
    assert facts(outputs, different)["relative"] > 0.01


def test_a_checkpoint_matches_two_models_also_with_prompts_of_unequal_length(host, family):
    g = Setup(family, LONG, "blurry")
    outputs_pairs = [(g.ours(3.0, 7.5), g.oracle(3.0, 7.5)), (g.patched(5.0, 7.5), g.oracle(5.0, 7.5))]
    different = g.compare(g.ours(3.0, 7.5), g.plain(g.phi["model"], 7.5))
    outputs = check(host, g, outputs_pairs)
    assert facts(outputs, different)["relative"] > 1e-3


def test_w_rg_zero_and_strength_zero_are_the_base_bit_for_bit(host):
    g = Setup("toy", TOY, batch=2)
    plain = g.plain(g.phi["model"], 2.0)
    nodes = [
        g.compare(g.ours(0.0, 2.0), plain),
        g.compare(g.patched(0.0, 2.0), plain),
    ]
    silent = g.compare(g.ours(2.0, 2.0, lora_strength=0.0), plain)
    outputs = host.client.run(g.prompt)
    assert all(facts(outputs, node)["equal"] for node in nodes)
    assert facts(outputs, silent)["equal"]


def test_equal_weights_guide_between_lora_conditional_and_base_unconditional(host):
    g = Setup("toy", TOY)
    check(host, g, [(g.ours(2.0, 2.0), g.oracle(2.0, 2.0))])


def test_unit_weights_are_the_lora_model_without_guidance(host):
    g = Setup("toy", TOY)
    check(host, g, [(g.ours(1.0, 1.0), g.plain(g.theta, 1.0))])


def test_without_text_guidance_the_lora_still_counts(host):
    g = Setup("toy", TOY)
    check(host, g, [(g.ours(1.5, 0.0), g.oracle(1.5, 0.0)), (g.ours(3.0, 1.0), g.oracle(3.0, 1.0))])


def test_modules_that_mix_rows_fall_back_to_two_calls(host):
    g = Setup("toy", TOY, batch=2)
    expected = g.oracle(3.0, 2.0)
    forced = g.add("DCOTestTwoCalls", model=g.phi["model"], on=True)
    try:
        check(
            host,
            g,
            [(g.ours(3.0, 2.0, [forced, 0]), expected), (g.ours(2.0, 2.0, [forced, 0]), g.oracle(2.0, 2.0))],
        )
    finally:
        reset = Graph()
        back = reset.add("DCOTestTwoCalls", model=reset.toy()["model"], on=False)
        reset.add("DCOTestWeightHash", model=[back, 0], when=0)
        host.client.run(reset.prompt)


def test_regional_prompts_keep_their_regions(host, sd15):
    g = Setup(sd15, "a dog", size=128)
    area = g.add("ConditioningSetArea", conditioning=g.c, width=64, height=128, x=0, y=0, strength=1.0)
    other = g.text(g.phi["clip"], "a cat on grass")
    g.c = [g.add("ConditioningCombine", conditioning_1=[area, 0], conditioning_2=other), 0]
    check(host, g, [(g.ours(3.0, 7.5), g.oracle(3.0, 7.5))])


def test_a_lora_on_the_model_becomes_part_of_the_base(host):
    g = Setup("toy", TOY)
    style = g.toy_trainer(g.phi, "style", name="style_below")
    load = {"lora": [style, 0], "strength_model": 1.0, "bypass": False}
    g.phi["model"] = [g.add("LoraModelLoader", model=g.phi["model"], **load), 0]
    g.theta = [g.add("LoraModelLoader", model=g.theta, **load), 0]
    check(host, g, [(g.ours(1.0, 2.0), g.oracle(1.0, 2.0))])


def test_a_patch_that_knows_only_positive_and_negative_keeps_working(host, sd15):
    g = Setup(sd15, "a dog")
    unpatched = g.ours(3.0, 7.5)
    g.phi["model"] = [g.add("DCOTestIndexingPatch", model=g.phi["model"]), 0]
    g.theta = [g.add("DCOTestIndexingPatch", model=g.theta), 0]
    ours = g.ours(3.0, 7.5)
    acts = g.compare(ours, unpatched)
    outputs = check(host, g, [(ours, g.oracle(3.0, 7.5))])
    assert facts(outputs, acts)["relative"] > 1e-6


def test_nothing_is_left_behind_on_the_model(host):
    g = Setup("toy", TOY)
    before = g.add("DCOTestWeightHash", model=g.phi["model"], when=1)
    first = g.plain(g.phi["model"], 2.0, seed=11)
    guided = g.ours(3.0, 2.0)
    g.compare(guided, first)
    start = facts(host.client.run(g.prompt), before)
    again = g.plain(g.phi["model"], 2.0, seed=11, denoise=0.99999)  # another prompt, so that it is not cached
    after = g.add("DCOTestWeightHash", model=g.phi["model"], when=2, after=again)
    same = g.compare(again, first)
    outputs = host.client.run(g.prompt)
    assert facts(outputs, after) == start
    assert start["hooks"] == 0
    assert facts(outputs, same)["equal"]


@pytest.mark.parametrize("w_rg, w_text", [(3.0, 7.5), (2.0, 1.0), (3.0, 3.0), (2.0, 0.0)])
def test_theta_reads_a_prompt_of_its_own(host, family, w_rg, w_text):
    """Learned tokens: the personalised conditioning, of another length too, goes to theta alone."""
    g = Setup(family, "a photo of a dog")
    own = g.text(g.phi["clip"], LONG)
    ours = g.ours(w_rg, w_text, personalized=own)
    patch = g.guidance(
        "DCORewardGuidance", model=g.phi["model"], lora=g.lora, w_rg=w_rg, lora_strength=1.0, personalized=own
    )
    patched = g.ksample([patch, 0], g.c, g.empty, g.start, w_text, steps=STEPS)
    oracle = g.oracle(w_rg, w_text, personalized=own)
    without = g.compare(ours, g.ours(w_rg, w_text))
    outputs = check(host, g, [(ours, oracle), (patched, oracle)])
    assert facts(outputs, without)["relative"] > 1e-3


def test_what_is_set_on_the_prompt_holds_for_thetas_prompt_too(host):
    """A mask on the positive prompt reaches theta's, as if it had been set on both."""
    g = Setup("toy", TOY)
    own = g.text(g.phi["clip"], "a large star at night")
    left = g.add("SolidMask", value=1.0, width=128, height=256)
    black = g.add("SolidMask", value=0.0, width=256, height=256)
    mask = g.add("MaskComposite", destination=[black, 0], source=[left, 0], x=0, y=0, operation="add")

    def area(text):
        node = g.add(
            "ConditioningSetMask", conditioning=text, mask=[mask, 0], strength=1.0, set_cond_area="default"
        )
        return [node, 0]

    both = g.guided(g.phi["model"], g.lora, area(g.c), g.empty, g.start, 2.0, 3.0, personalized=area(own))
    one = g.guided(g.phi["model"], g.lora, area(g.c), g.empty, g.start, 2.0, 3.0, personalized=own)
    unmasked = g.compare(
        one, g.guided(g.phi["model"], g.lora, g.c, g.empty, g.start, 2.0, 3.0, personalized=own)
    )
    outputs = check(host, g, [(one, both)])
    assert facts(outputs, unmasked)["relative"] > 1e-3
