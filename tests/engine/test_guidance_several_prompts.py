"""LoRAs in parts of the picture, where prompts have parts of it too: a prompt of several conditionings with masks or
areas, as the host's Conditioning (Set Mask), (Set Area) and (Combine) make them."""

import pytest
import torch
from guiding import Case, difference, equal, guided, region
from small_models import lora_for, small_model, text
from test_guidance_regions import W_RG, W_TEXT, in_cells, left, of_models, right
from test_guidance_sampling import area
from two_models import cfg, evaluate, merged, oracle, sample

LEFT_HALF, RIGHT_HALF = (8, 4, 0, 0), (8, 4, 0, 4)  # areas: height, width, y, x


def masked(prompt, mask):
    return area(prompt, mask=mask, mask_strength=1.0, set_area_to_bounds=False)


def two_prompts(kind: str, family: str = "sd15"):
    """A prompt for each side, of unequal length."""
    one, other = text(family, 7, 1), text(family, 9, 4)
    if kind == "masks":
        return masked(one, left(soft=True)) + masked(other, 1 - left(soft=True))
    if kind == "areas":
        return area(one, area=LEFT_HALF) + area(other, area=RIGHT_HALF, strength=0.7)
    return one + area(other, area=RIGHT_HALF)  # one everywhere, and an area


@pytest.mark.parametrize("kind", ["masks", "areas", "one everywhere"])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_prompt_for_each_side_and_a_lora_for_each_side(kind, own, low_memory):
    """own: each LoRA reads a prompt of its own, or both what the base model reads."""
    case = Case(batch=2)
    case.positive = two_prompts(kind)
    other = lora_for(case.phi, seed=9, rank=3)
    first, second = (text("sd15", 9, 5), text("sd15", 5, 6)) if own else (None, None)
    ours = case.ours(
        W_RG, W_TEXT, personalized=first, mask=left(), regions=region(other, right(), second),
        low_memory=low_memory,
    )  # fmt: skip
    parts = [(case.lora, W_RG, in_cells(left()), first), (other, W_RG, in_cells(right()), second)]
    expected = of_models(case, parts)
    assert difference(of_models(case, parts[:1]), expected) > 1e-3
    assert difference(ours, expected) < 1e-5


def test_two_prompts_with_pooled_outputs():
    case = Case("sdxl")
    case.positive = two_prompts("masks", "sdxl")
    own = text("sdxl", 9, 8)
    parts = [(case.lora, W_RG, in_cells(left()), own)]
    assert difference(case.ours(W_RG, W_TEXT, personalized=own, mask=left()), of_models(case, parts)) < 1e-5


def first_step(model, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """The predictions on the prompt and on the negative that the sampler had in its first step."""
    found = []

    def function(args):
        found.append((args["cond_denoised"], args["uncond_denoised"]))
        return args["denoised"]

    model = model.clone()
    model.set_model_sampler_post_cfg_function(function)
    sample(cfg(model, case.positive, case.negative, W_TEXT), case.start)
    return found[0]


@pytest.mark.parametrize("positive", ["whole", "areas"])
def test_areas_of_what_a_lora_reads_are_its_own(positive):
    """The host gives every conditioning the areas of the others; the base model's do not get those of a LoRA."""
    case = Case()
    if positive == "areas":
        case.positive = two_prompts("areas")
    other = lora_for(case.phi, seed=9)
    chain = region(other, right(), area(text("sd15", 5, 6), area=(6, 5, 1, 3)))
    own = area(text("sd15", 9, 5), area=(5, 6, 2, 1))
    model = guided(case.phi, case.lora, W_RG, personalized=own, mask=left(), regions=chain)
    conditional, negative = first_step(model, case)
    as_base, negative_of_base = first_step(case.phi, case)
    assert difference(negative, negative_of_base) < 1e-6
    assert difference(conditional[..., 3:5], as_base[..., 3:5]) < 1e-6
    assert difference(conditional[..., :3], as_base[..., :3]) > 1e-3

    alone = guided(case.phi, case.lora, W_RG, personalized=own, mask=left())
    assert difference(conditional[..., :3], first_step(alone, case)[0][..., :3]) < 1e-6


@pytest.mark.parametrize("kind", ["areas", "one everywhere"])
def test_no_guidance_is_the_base_model_with_areas_too(kind):
    case = Case()
    case.positive = two_prompts(kind)
    own = area(text("sd15", 9, 5), area=(5, 6, 2, 1))
    assert equal(case.ours(0.0, W_TEXT, personalized=own, mask=left()), case.plain())


@pytest.mark.parametrize("kind, scale", [("reward", W_RG), ("negative", 1.0), ("personalization", 0.5)])
@pytest.mark.parametrize("w_text", [W_TEXT, 0.0])
def test_the_negative_is_found_beside_areas(kind, scale, w_text):
    """The host puts a copy of an area of the prompt beside the negative; the LoRA's share of each is what it is."""
    case = Case()
    case.positive = two_prompts("one everywhere")
    weak = merged(small_model("sd15"), case.lora, scale)
    guider = oracle(case.phi, case.theta, case.positive, case.negative, None)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        both, at = [self.conds["positive"], self.conds["negative"]], (x, timestep, model_options)
        phi_c, phi_0 = evaluate(self, case.phi, both, *at)
        theta_c, _ = evaluate(self, case.theta, both, *at)
        _, weak_0 = evaluate(self, weak, both, *at)
        evaluate(self, case.phi, [None], *at)
        if kind == "reward":
            return phi_0 + w_text * (phi_c - phi_0) + W_RG * (theta_c - phi_c)
        return weak_0 + w_text * ((phi_c if kind == "negative" else theta_c) - weak_0)

    type(guider).predict_noise = predict_noise
    expected = sample(guider, case.start)
    assert difference(expected, case.plain(w_text)) > 1e-3
    assert difference(case.ours(scale, w_text, kind=kind), expected) < 1e-5
