"""LoRAs that each act in a part of the picture, against models that are patched separately."""

import pytest
import torch
from guiding import Case, difference, equal, guided, region
from small_models import latent, lora_for, small_model, text
from torch import Tensor
from two_models import cfg, evaluate, merged, oracle, sample

from devtools import in_process_host as host

W_RG, W_TEXT = 2.0, 4.0
LEFT, RIGHT = slice(0, 3), slice(5, 8)  # columns of the latent; those between them belong to no mask


def left(soft: bool = False, size: tuple[int, int] = (64, 64)) -> Tensor:
    """MASK in pixels: white on the left, for latents of 8 x 8."""
    mask = torch.zeros(1, *size)
    mask[..., : 24 * size[1] // 64] = 1
    if soft:
        mask[..., 16 * size[1] // 64 : 24 * size[1] // 64] = 0.3
    return mask


def right() -> Tensor:
    mask = torch.zeros(1, 64, 64)
    mask[..., 40:] = 1
    mask[:, 48:] *= 0.5
    return mask


def in_cells(mask: Tensor) -> Tensor:
    """The mean of every 8 x 8 pixels, one by one."""
    rows = [[mask[:, y : y + 8, x : x + 8].mean() for x in range(0, 64, 8)] for y in range(0, 64, 8)]
    return torch.tensor(rows)


def of_models(case: Case, parts, w_text: float = W_TEXT, **sampling) -> Tensor:
    """The formula by hand, of the base and of one more model for each part: (LoRA, w_rg, mask in cells, prompt)."""
    thetas = [(merged(small_model(case.family), lora), w, mask, prompt) for lora, w, mask, prompt in parts]
    guider = oracle(case.phi, case.theta, case.positive, case.negative, None)
    made = {f"own {k}": prompt for k, (*_, prompt) in enumerate(thetas) if prompt is not None}
    guider.inner_set_conds({"positive": case.positive, "negative": case.negative} | made)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        conds, at = self.conds, (x, timestep, model_options)
        phi_c, phi_0 = evaluate(self, case.phi, [conds["positive"], conds["negative"]], *at)
        result = phi_0 + w_text * (phi_c - phi_0)
        for k, (theta, w_rg, mask, _) in enumerate(thetas):
            (theta_c,) = evaluate(self, theta, [conds.get(f"own {k}", conds["positive"])], *at)
            result = result + w_rg * mask * (theta_c - phi_c)
        evaluate(self, case.phi, [None], *at)
        return result

    type(guider).predict_noise = predict_noise
    return sample(guider, case.start, **sampling)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd2-v", "flux", "wan", "qwen-image"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_two_loras_in_two_parts_are_two_models_by_hand(family, low_memory):
    """Each with its own mask, its own prompt and its own w_rg; the first soft, the second weaker."""
    case = Case(family, batch=2)
    other = lora_for(case.phi, seed=9, rank=3)
    own, others = text(family, 9, 4), text(family, 11, 5)
    chain = region(other, right(), others, factor=0.7)
    ours = case.ours(
        W_RG, W_TEXT, personalized=own, mask=left(soft=True), regions=chain, low_memory=low_memory
    )
    expected = of_models(
        case,
        [(case.lora, W_RG, in_cells(left(soft=True)), own), (other, 0.7 * W_RG, in_cells(right()), others)],
    )
    for changed in (
        of_models(case, [(case.lora, W_RG, in_cells(left(soft=True)), own)]),
        of_models(case, [(case.lora, W_RG, 1, own), (other, 0.7 * W_RG, 1, others)]),
    ):
        assert difference(changed, expected) > 1e-3
    assert difference(ours, expected) < 1e-5


@pytest.mark.parametrize("w_text", [1.0, 0.0, W_RG])
def test_any_text_scale(w_text):
    """cfg 1 (no negative row), 0 (the negative prediction alone) and w_rg (where theta would take phi's place)."""
    case = Case()
    other = lora_for(case.phi, seed=9)
    ours = case.ours(W_RG, w_text, mask=left(), regions=region(other, right()))
    parts = [(case.lora, W_RG, in_cells(left()), None), (other, W_RG, in_cells(right()), None)]
    expected = of_models(case, parts, w_text)
    assert difference(expected, case.plain(w_text)) > 1e-3
    assert difference(ours, expected) < 1e-5


def test_three_regions_one_of_them_everywhere():
    case = Case()
    second, third = lora_for(case.phi, seed=9), lora_for(case.phi, seed=10)
    chain = region(third, None, factor=0.4, before=region(second, right()))
    parts = [
        (case.lora, W_RG, in_cells(left()), None), (second, W_RG, in_cells(right()), None),
        (third, 0.4 * W_RG, 1, None),
    ]  # fmt: skip
    assert difference(case.ours(W_RG, W_TEXT, mask=left(), regions=chain), of_models(case, parts)) < 1e-5


def seen(case: Case, **options) -> list[dict[str, Tensor]]:
    """What each evaluation of a run gave to the sampler and what its rows were, by what they are."""
    found, taken = [], []

    def rows(apply_model, args):
        out = apply_model(args["input"], args["timestep"], **args["c"])
        real = args["c"]["transformer_options"].get("dco_indices") or args["cond_or_uncond"]
        taken.append(dict(zip(real, out.chunk(len(real)), strict=True)))
        return out

    def function(args):
        found.append({"given": args["cond_denoised"], "uncond": args["uncond_denoised"], **taken[-1]})
        return args["denoised"]

    model = guided(case.phi, case.lora, W_RG, **options)
    model.set_model_unet_function_wrapper(rows)
    model.set_model_sampler_post_cfg_function(function)
    sample(cfg(model, case.positive, case.negative, W_TEXT), case.start)
    assert len(taken) >= len(found) == 3
    return found


@pytest.mark.parametrize("family", ["sd15", "flux", "wan"])
def test_outside_of_every_mask_the_prediction_is_the_base_models_to_the_bit(family):
    """And inside, where one mask is 1 and the other 0, that of one LoRA without masks, to the bit."""
    case = Case(family, batch=2)
    case.negative = text(family, 7, 2)  # as long as the prompt, so that all rows are one batch
    other = lora_for(case.phi, seed=9)
    reward_guidance = host.pack("dco_core.guidance").reward_guidance
    for step in seen(case, mask=left(), regions=region(other, right()), self_check=False):
        base, first = step[0], step[2]
        assert set(step) == {"given", "uncond", 0, 1, 2, 3}  # one call of four rows
        assert equal(step["given"][..., 3:5], base[..., 3:5])
        alone = reward_guidance(first, base, None, W_RG / W_TEXT, 1.0)
        assert equal(step["given"][..., LEFT], alone[..., LEFT])
        assert not equal(step["given"][..., RIGHT], base[..., RIGHT])
        assert equal(step["uncond"], step[1])


@pytest.mark.parametrize(
    "options", [{}, {"low_memory": True}, {"self_check": False}, {"w_rg_schedule": "cosine"}]
)
def test_a_mask_of_ones_is_no_mask_to_the_bit(options):
    case = Case(batch=2)
    ones, almost = torch.ones(1, 40, 24), torch.ones(1, 64, 64)
    without = case.ours(W_RG, W_TEXT, **options)
    assert equal(case.ours(W_RG, W_TEXT, mask=ones, **options), without)
    assert equal(case.ours(W_TEXT, W_TEXT, mask=ones, **options), case.ours(W_TEXT, W_TEXT, **options))
    almost[0, 0, 0] = 0  # one pixel of a corner: every other cell still is 1
    cornered = case.ours(W_RG, W_TEXT, mask=almost, sampling={"steps": 1}, **options)
    same = (cornered == case.ours(W_RG, W_TEXT, sampling={"steps": 1}, **options)).all(1)
    assert same.flatten(1).sum(1).tolist() == [63, 63] and not same[:, 0, 0].any()


def test_regions_that_do_nothing_change_nothing_and_cost_nothing():
    case = Case()
    other = lora_for(case.phi, seed=9)
    nothing = region(
        other, torch.zeros(1, 8, 8), before=region(other, factor=0.0, before=region(other, strength=0.0))
    )
    assert equal(case.ours(), case.ours(regions=nothing))
    assert equal(case.plain(), case.ours(mask=torch.zeros(1, 9, 9)))
    guided_by = host.pack("nodes.guidance.guided").Guided
    report = guided_by(case.phi, case.lora, regions=nothing).reward_report(W_RG, W_TEXT)
    assert report.startswith(
        "3 UNet rows a step: LoRA on the prompt, base on the prompt, base on the negative. 3 of 4 "
    )
    empty = guided_by(case.phi, case.lora, mask=torch.zeros(1, 9, 9))
    assert empty.reward_report(W_RG, W_TEXT).endswith("The LoRA takes no part.")


@pytest.mark.parametrize("w_text, rows", [(4.0, 4), (2.0, 4), (1.0, 3)])
def test_the_report_says_the_rows_that_run(w_text, rows):
    case = Case()
    chain = region(lora_for(case.phi, seed=9), right())
    model, counts = guided(case.phi, case.lora, W_RG, mask=left(), regions=chain, self_check=False), []

    def count(apply_model, args):
        counts.append(len(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(count)
    sample(cfg(model, case.positive, text("sd15", 7, 2), w_text), case.start)
    assert counts == [rows] * 3
    made = host.pack("nodes.guidance.guided").Guided(case.phi, case.lora, mask=left(), regions=chain)
    assert made.reward_report(W_RG, w_text).startswith(f"{rows} UNet rows a step: LoRA 1 on the prompt, LoRA 2 on")
    report = made.reward_report(W_RG, None)
    assert report.startswith("4 UNet rows a step: LoRA 1 on the prompt") and "; 3 where cfg is 1" in report


def test_loras_that_rows_cannot_tell_apart_run_one_after_the_other():
    """A parameter that belongs to no layer (SD3's query norm) is swapped in for the row of its own LoRA alone."""
    case = Case("sd3")
    found = case.phi.model.diffusion_model.named_parameters()
    name, parameter = next((n, p) for n, p in found if n.endswith("ln_q.weight"))
    change = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    other = lora_for(case.phi, seed=9) | {f"diffusion_model.{name.removesuffix('.weight')}.diff": change}
    ours = case.ours(W_RG, W_TEXT, mask=left(), regions=region(other, right()))
    parts = [(case.lora, W_RG, in_cells(left()), None), (other, W_RG, in_cells(right()), None)]
    assert difference(ours, of_models(case, parts)) < 1e-5


@pytest.mark.parametrize("check", [False, True])
def test_patches_that_relate_rows_to_each_other_are_on_every_lora(check):
    """NAGuidance: the base model and each LoRA run on both prompts together."""
    from comfy_extras.nodes_nag import NAGuidance

    case = Case(batch=2)
    case.negative = text("sd15", 7, 2)
    case.phi = NAGuidance.execute(case.phi, 5.0, 0.5, 1.5).args[0]
    other = lora_for(case.phi, seed=9)
    ours = case.ours(W_RG, W_TEXT, mask=left(), regions=region(other, right()), self_check=check)
    fresh = [NAGuidance.execute(small_model("sd15"), 5.0, 0.5, 1.5).args[0] for _ in range(2)]
    thetas = [merged(model, lora) for model, lora in zip(fresh, (case.lora, other), strict=True)]
    guider = oracle(case.phi, thetas[0], case.positive, case.negative, None)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        both, at = [self.conds["positive"], self.conds["negative"]], (x, timestep, model_options)
        (one, _), (two, _), (phi_c, phi_0) = (evaluate(self, m, both, *at) for m in (*thetas, case.phi))
        changes = in_cells(left()) * (one - phi_c) + in_cells(right()) * (two - phi_c)
        return phi_0 + W_TEXT * (phi_c - phi_0) + W_RG * changes

    type(guider).predict_noise = predict_noise
    expected = sample(guider, case.start)
    assert difference(expected, case.plain()) > 1e-3
    assert difference(ours, expected) < 1e-5


def test_one_mask_for_each_image_of_a_batch():
    case = Case(batch=3)
    masks = torch.cat([left(), right(), torch.zeros(1, 64, 64)])
    cells = torch.stack([in_cells(mask[None]) for mask in masks])[:, None]
    ours = case.ours(W_RG, W_TEXT, mask=masks)
    assert difference(ours, of_models(case, [(case.lora, W_RG, cells, None)])) < 1e-5
    assert difference(ours[2:], case.plain()[2:]) < 1e-5


@pytest.mark.parametrize("per_frame", [1, 4])
def test_masks_of_a_videos_frames(per_frame):
    """Of the latent's frames, or of the pixels': then the first is alone and the others come in groups."""
    case = Case("wan", batch=2)
    frames = case.start["samples"].shape[2]
    masks = torch.rand(1 + per_frame * (frames - 1), 64, 64, generator=torch.Generator().manual_seed(0))
    cells = torch.stack([in_cells(mask[None]) for mask in masks])
    rest = cells[1:].reshape(frames - 1, per_frame, 8, 8).mean(1)
    expected = of_models(case, [(case.lora, W_RG, torch.cat([cells[:1], rest])[None, None], None)])
    assert difference(case.ours(W_RG, W_TEXT, mask=masks), expected) < 1e-5


@pytest.mark.parametrize("family, dim", [("wan", 2), ("sd15", 0)])
@pytest.mark.parametrize("anchored", [False, True])
def test_context_windows_have_their_part_of_the_masks(family, dim, anchored):
    from comfy import context_windows

    case = Case(family, batch=3 if dim == 0 else 1)
    count = 5 if dim == 2 else 3
    case.start = {"samples": torch.zeros(*((1, 16, 5, 8, 8) if dim == 2 else (3, 4, 8, 8)))}
    case.phi.model_options["context_handler"] = context_windows.IndexListContextHandler(
        context_schedule=context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=context_windows.get_matching_fuse_method("pyramid"), context_length=count - 1, context_overlap=1,
        dim=dim, causal_window_fix=anchored,
    )  # fmt: skip
    context_windows.create_prepare_sampling_wrapper(case.phi)
    masks = torch.rand(count, 64, 64, generator=torch.Generator().manual_seed(0)).round()
    cells = torch.stack([in_cells(mask[None]) for mask in masks])
    cells = cells[None, None] if dim == 2 else cells[:, None]
    expected = of_models(case, [(case.lora, W_RG, cells, None)])
    assert difference(case.ours(W_RG, W_TEXT, mask=masks), expected) < 1e-4
    assert difference(of_models(case, [(case.lora, W_RG, cells.flip(dim), None)]), expected) > 1e-3


@pytest.mark.parametrize(
    "shape, family, words",
    [
        (
            (1, 64, 48),
            "sd15",
            "is 48 x 64 and the latent 8 x 8: give the mask the proportions of the picture",
        ),
        (
            (3, 64, 64),
            "sd15",
            "There are 3 masks of a LoRA and 2 images: give one mask for all, or one for each",
        ),
        ((1, 64, 64, 3), "sd15", r"has shape \(1, 64, 64, 3\): connect a MASK"),
        ((0, 64, 64), "sd15", r"has shape \(0, 64, 64\): connect a MASK"),
        (
            (4, 64, 64),
            "wan",
            "has 4 frames and the latent video 3: give one mask for all, or one for each frame",
        ),
        ((3, 64, 64), "qwen-image", "There are 3 masks of a LoRA and 2 images"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_before_anything_runs(shape, family, words):
    case = Case(family, batch=2)
    mask = torch.rand(shape)
    with pytest.raises(host.pack("dco_core.errors").DCOError, match=words):
        case.ours(mask=mask)
    with pytest.raises(host.pack("dco_core.errors").DCOError, match=words):
        case.ours(regions=region(case.lora, mask))


@pytest.mark.parametrize("value", [255.0, -1.0, float("nan")])
def test_values_that_are_no_mask_are_refused(value):
    mask = torch.zeros(1, 64, 64)
    mask[0, 3, 4] = value
    with pytest.raises(host.pack("dco_core.errors").DCOError, match="mask of a LoRA has values from"):
        Case().ours(mask=mask)


def test_a_lora_of_another_model_in_a_region_is_refused():
    case = Case()
    with pytest.raises(host.pack("dco_core.errors").DCOError, match="does not belong to this model"):
        case.ours(regions=region(lora_for(small_model("flux")), left()))


def test_conditioning_of_another_model_in_a_region_is_refused():
    case = Case()
    with pytest.raises(
        host.pack("dco_core.errors").DCOError, match="personalized 2 conditioning is of another model"
    ):
        case.ours(regions=region(case.lora, left(), [[torch.zeros(1, 7, 40), {}]]))


def test_masks_of_two_and_four_dimensions_are_read_too():
    case = Case()
    three = case.ours(mask=left())
    assert equal(case.ours(mask=left()[0]), three) and equal(case.ours(mask=left()[None]), three)


def test_an_inpainting_mask_and_a_lora_mask():
    case = Case()
    noise_mask = torch.zeros(1, 1, 8, 8)
    noise_mask[..., 2:6, :] = 1
    case.start = latent("sd15") | {"noise_mask": noise_mask}
    case.start["samples"] = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = of_models(case, [(case.lora, W_RG, in_cells(left()), None)])
    assert difference(case.ours(W_RG, W_TEXT, mask=left()), expected) < 1e-5
