"""Reward guidance in whatever the host's sampling does, against two separately patched models."""

import pytest
import torch
from guiding import Case, difference, equal, guided
from small_models import fill, latent, lora_for, small_model, text
from two_models import cfg, formula, merged, oracle, sample

W_RG, W_TEXT = 2.0, 4.0


def test_a_batch_of_four():
    Case(batch=4).check()


@pytest.mark.parametrize("tokens", [77, 154])
def test_prompts_of_unequal_length(tokens):
    case = Case("sdxl")
    case.positive = text("sdxl", tokens, 1)
    case.negative = text("sdxl", 77, 2)
    case.check(personalized=text("sdxl", 231, 3))


def area(conditioning, **values):
    return [[cross, {**options, **values}] for cross, options in conditioning]


def test_regional_prompts():
    case = Case()
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    left = area(case.positive, mask=mask, mask_strength=1.0, set_area_to_bounds=False)
    right = area(text("sd15", 9, 4), area=(8, 4, 0, 4), strength=0.7, set_area_to_bounds=False)
    case.positive = left + right + text("sd15", 5, 5)
    case.check()


def test_prompts_that_change_on_the_way():
    case = Case()
    case.positive = area(case.positive, start_percent=0.0, end_percent=0.5) + area(
        text("sd15", 9, 4), start_percent=0.5, end_percent=1.0
    )
    case.check(sampling={"steps": 4})


def control_net():
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.model_management

    network = comfy.cldm.cldm.ControlNet(
        image_size=8, in_channels=4, model_channels=32, hint_channels=3, num_res_blocks=[1, 1], channel_mult=(1, 2),
        transformer_depth=[1, 1], transformer_depth_middle=1, context_dim=24, num_heads=2, use_spatial_transformer=True,
        legacy=False,
    )  # fmt: skip
    fill(network, 1)
    control = comfy.controlnet.ControlNet(
        network.eval().requires_grad_(False), load_device=comfy.model_management.get_torch_device(),
    )  # fmt: skip
    hint = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    return control.set_cond_hint(hint, 0.5, (0.0, 1.0))


@pytest.mark.parametrize("uncond", [True, False])
def test_controlnet(uncond):
    case = Case()
    without = case.ours()
    values = {"control": control_net(), "control_apply_to_uncond": uncond}
    case.positive = area(case.positive, **values)
    if not uncond:
        case.negative = area(case.negative, **values)
    case.check()
    assert difference(case.ours(), without) > 1e-3


def test_inpainting_with_a_mask():
    case = Case(batch=2)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6] = 1
    case.start = latent("sd15", 2) | {"noise_mask": mask}
    case.start["samples"] = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    case.check()


def test_image_to_image():
    case = Case()
    case.start = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    case.check(sampling={"denoise": 0.5})


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "euler_ancestral", "uni_pc", "ddim", "heun"])
def test_multistep_and_stochastic_samplers(sampler):
    Case().check(sampling={"sampler": sampler, "steps": 4})


@pytest.mark.parametrize("family, dim", [("wan", 2), ("sd15", 0)])
def test_context_windows(family, dim):
    from comfy import context_windows

    case = Case(family, batch=3 if dim == 0 else 1)
    if dim == 2:
        case.start = {"samples": torch.zeros(1, 16, 5, 8, 8)}
    case.phi.model_options["context_handler"] = context_windows.IndexListContextHandler(
        context_schedule=context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=context_windows.get_matching_fuse_method("pyramid"),
        context_length=3 if dim == 2 else 2, context_overlap=1, dim=dim,
    )  # fmt: skip
    context_windows.create_prepare_sampling_wrapper(case.phi)
    case.check()


def test_calls_split_by_the_user_and_by_the_host(monkeypatch):
    Case(batch=2).check(low_memory=True)
    import comfy.model_management

    def little(device=None, torch_free_too=False):  # for one condition after the other
        return (1, 1) if torch_free_too else 1

    monkeypatch.setattr(comfy.model_management, "get_free_memory", little)
    Case(batch=2).check()


@pytest.mark.parametrize("bypass", [False, True])
def test_a_lora_that_is_on_the_model_is_part_of_the_base(bypass):
    import comfy.sd

    load = comfy.sd.load_bypass_lora_for_models if bypass else comfy.sd.load_lora_for_models
    case = Case()
    user = lora_for(case.phi, seed=9, names=["middle_block.1.transformer_blocks.0.attn1.to_q", "out.2"])
    before = case.ours()
    case.phi, case.theta = (load(m, None, dict(user), 0.7, 0)[0] for m in (case.phi, case.theta))
    case.check()
    assert difference(case.ours(), before) > 1e-3


def unmerged(model, lora):
    import comfy.sd

    return comfy.sd.load_bypass_lora_for_models(model, None, dict(lora), 1.0, 0)[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_weights_of_half_precision(family, dtype):
    """theta unmerged: merging would round its weights once more."""
    rounded = {key: t.to(dtype) for key, t in lora_for(small_model(family)).items()}
    case = Case(family, dtype=dtype, lora=rounded)
    assert next(case.phi.model.diffusion_model.parameters()).dtype == dtype
    case.theta = unmerged(small_model(family, dtype=dtype), case.lora)
    case.check()


def guided_prediction(case):
    """theta and phi on the prompt, blended as the patch does it for whoever works on top."""
    return lambda theta_c, phi_c: phi_c + W_RG / W_TEXT * (theta_c - phi_c)


@pytest.mark.parametrize("on_top", ["CFGZeroStar", "RescaleCFG", "PerturbedAttentionGuidance"])
def test_guidance_of_others_on_top(on_top, monkeypatch):
    import comfy.model_patcher
    import comfy.samplers
    from comfy_extras import nodes_cfg, nodes_pag

    case = Case()
    if on_top == "CFGZeroStar":
        model = nodes_cfg.CFGZeroStar.execute(case.phi).args[0]
    elif on_top == "PerturbedAttentionGuidance":
        model = nodes_pag.PerturbedAttentionGuidance.execute(case.phi, 3.0).args[0]
    else:
        from comfy_extras.nodes_model_advanced import RescaleCFG

        (model,) = RescaleCFG().patch(case.phi, 0.7)
    ours = sample(cfg(guided(model, case.lora, W_RG), case.positive, case.negative, W_TEXT), case.start)

    class OnTop(comfy.samplers.CFGGuider):
        """What is on top sees [guided prediction, phi(0)]; where it evaluates again, that is guided as well."""

        def predict_noise(self, x, timestep, model_options={}, seed=None):
            from two_models import evaluate

            positive, negative = self.conds["positive"], self.conds["negative"]

            def blended(conds, options):
                phi = evaluate(self, case.phi, conds, x, timestep, options)
                theta = evaluate(self, case.theta, conds[:1], x, timestep, options)
                return [phi[0] + W_RG / W_TEXT * (theta[0] - phi[0]), *phi[1:]]

            cond, uncond = blended([positive, negative], model_options)
            again = comfy.samplers.calc_cond_batch
            comfy.samplers.calc_cond_batch = lambda model, conds, x, t, options: blended(conds, options)
            try:
                return comfy.samplers.cfg_function(
                    self.inner_model, cond, uncond, W_TEXT, x, timestep, model_options, positive, negative
                )
            finally:
                comfy.samplers.calc_cond_batch = again

    guider = OnTop(model)
    guider.set_conds(case.positive, case.negative)

    import two_models

    genuine = comfy.samplers.calc_cond_batch
    monkeypatch.setattr(
        two_models,
        "evaluate",
        lambda guider, patcher, conds, x, t, options: _evaluate(genuine, patcher, conds, x, t, options),
    )
    expected = sample(guider, case.start)
    assert difference(expected, case.expected(W_RG, W_TEXT)) > 1e-3
    assert difference(ours, expected) < 1e-5


def _evaluate(calc_cond_batch, patcher, conds, x, t, options):
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher])
    patcher.pre_run()
    return calc_cond_batch(patcher.model, conds, x, t, options)


def test_patches_that_know_positive_and_negative_only():
    case = Case()
    seen = set()

    def indexed(q, k, v, options):
        seen.update(options["cond_or_uncond"])
        shift = torch.tensor([[0.1, 0.2][i] for i in options["cond_or_uncond"]])
        return q + shift.repeat_interleave(len(q) // len(shift))[:, None, None], k, v

    without = case.ours()
    for name in ("phi", "theta"):
        setattr(case, name, getattr(case, name).clone())
        getattr(case, name).set_model_attn2_patch(indexed)

    # the oracle evaluates theta with the model options of phi: the same patch
    def combine(theta_c, phi_c, phi_0):
        return formula(W_RG, W_TEXT)(theta_c, phi_c, phi_0)

    case.check(combine=combine)
    assert seen == {0, 1}
    assert difference(case.ours(), without) > 1e-4


def test_a_wrapper_around_the_model_call_sees_positive_and_negative_only():
    case = Case()
    seen = []

    def wrapper(apply_model, args):
        seen.append(tuple(args["cond_or_uncond"]))
        assert args["c"]["transformer_options"]["cond_or_uncond"] == args["cond_or_uncond"]
        return apply_model(args["input"], args["timestep"], **args["c"])

    wrapped = case.phi.clone()
    wrapped.set_model_unet_function_wrapper(wrapper)
    assert difference(case.ours(model=wrapped), case.expected()) < 1e-5
    assert seen and all(set(rows) <= {0, 1} for rows in seen)


def test_no_lora_is_off_too():
    case = Case()
    model = guided(case.phi, {}, 4.0)
    assert equal(sample(cfg(model, case.positive, case.negative, 4.0), case.start), case.plain())


@pytest.mark.parametrize("w_rg, strength", [(0.0, 1.0), (2.0, 0.0), (4.0, 0.0)])
def test_off_is_the_plain_sampler_bit_for_bit(w_rg, strength):
    case = Case(batch=2)
    model = guided(case.phi, [(case.lora, strength)], w_rg)
    assert equal(sample(cfg(model, case.positive, case.negative, 4.0), case.start), case.plain())


@pytest.mark.parametrize("where", ["step", "layer"])
def test_after_an_interrupt_the_next_plain_image_is_the_same_bit_for_bit(where):
    import comfy.model_management
    import comfy.sample
    import comfy.samplers

    case = Case()
    before = case.plain()
    weights = {n: p.clone() for n, p in case.phi.model.diffusion_model.named_parameters()}
    guider = cfg(guided(case.phi, case.lora), case.positive, case.negative, 4.0)

    class Stop(Exception):
        pass

    def stop(*args):
        raise comfy.model_management.InterruptProcessingException() if where == "step" else Stop

    handle = None
    if where == "layer":
        handle = case.phi.model.diffusion_model.middle_block[1].register_forward_hook(stop)
    sigmas = comfy.samplers.calculate_sigmas(case.phi.get_model_object("model_sampling"), "normal", 3)
    with pytest.raises((Stop, comfy.model_management.InterruptProcessingException)), torch.inference_mode():
        guider.sample(
            torch.randn(1, 4, 8, 8), case.start["samples"], comfy.samplers.sampler_object("euler"), sigmas,
            callback=stop if where == "step" else None, disable_pbar=True, seed=1,
        )  # fmt: skip
    if handle is not None:
        handle.remove()
    modules = case.phi.model.diffusion_model.modules()
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in modules)
    assert all(equal(weights[n], p) for n, p in case.phi.model.diffusion_model.named_parameters())
    assert equal(case.plain(), before)


def test_other_guiders_of_the_host():
    """DualCFG is text guidance between two prompts: the first is the one the LoRA follows."""
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    case = Case()
    middle = text("sd15", 6, 7)

    def made(model):
        guider = Guider_DualCFG(model)
        guider.set_conds(case.positive, middle, case.negative)
        guider.set_cfg(4.0, 2.0, nested=False)
        return guider

    ours = sample(made(guided(case.phi, case.lora)), case.start)

    class Oracle(Guider_DualCFG):
        def predict_noise(self, x, timestep, model_options={}, seed=None):
            from two_models import evaluate

            base = super().predict_noise(x, timestep, model_options, seed)
            (phi,) = evaluate(self, case.phi, [self.conds["positive"]], x, timestep, model_options)
            (theta,) = evaluate(self, case.theta, [self.conds["positive"]], x, timestep, model_options)
            evaluate(self, case.phi, [None], x, timestep, model_options)
            return base + 2.0 * (theta - phi)

    expected_guider = Oracle(case.phi)
    expected_guider.set_conds(case.positive, middle, case.negative)
    expected_guider.set_cfg(4.0, 2.0, nested=False)
    assert difference(ours, sample(expected_guider, case.start)) < 1e-5


def test_the_basic_guider_has_no_negative():
    from comfy_extras.nodes_custom_sampler import Guider_Basic

    case = Case()
    guider = Guider_Basic(guided(case.phi, case.lora))
    guider.set_conds(case.positive)
    expected = oracle(
        case.phi, case.theta, case.positive, case.negative, lambda theta, phi, _: phi + 2 * (theta - phi)
    )
    assert difference(sample(guider, case.start), sample(expected, case.start)) < 1e-5


def test_merged_loras_and_the_model_given_are_untouched():
    case = Case()
    options = dict(case.phi.model_options)
    patches = dict(case.phi.patches)
    guided(case.phi, case.lora)
    assert case.phi.model_options == options and case.phi.patches == patches
    assert merged(case.phi, case.lora).patches
