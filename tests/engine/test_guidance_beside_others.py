"""What the host and other packs do around guidance: caches, memory, quantised layers, hooks of others, two models."""

import gc
import json
import logging
import weakref

import pytest
import torch
from guiding import Case, difference, equal, guided
from small_models import FAMILIES, fill, lora_for, small_model, text
from two_models import cfg, evaluate, oracle, sample

from devtools import in_process_host as host

W_RG, W_TEXT = 2.0, 4.0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_all_rows_in_one_call(family, caplog):
    """A LoRA on all layers, and none of them has to leave the batch."""
    host.pack("nodes.host.guidance.notices")._shown.clear()
    case, calls = Case(family), []

    def count(apply_model, args):
        calls.append(len(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    case.positive, case.negative = text(family, 7, 1), text(family, 7, 2)
    model = guided(case.phi, case.lora, self_check=False)
    model.set_model_unet_function_wrapper(count)
    sample(cfg(model, case.positive, case.negative, W_TEXT), case.start)
    assert calls == [3, 3, 3]
    assert "slower" not in caplog.text


def test_a_step_cache_keeps_theta_and_phi_apart(monkeypatch):
    """The host's EasyCache skips steps and adds what it kept, by the id of a prompt: theta and phi read one prompt."""
    from comfy_extras.nodes_easycache import EasyCacheNode

    case, apart, calls = Case(), [], []
    guidance = host.pack("nodes.host.guidance.engine")
    genuine = guidance.regional_guidance

    def spy(thetas, phi, *rest):
        apart.append(difference(thetas[0], phi))
        return genuine(thetas, phi, *rest)

    def count(module, args):
        calls.append(1)

    monkeypatch.setattr(guidance, "regional_guidance", spy)
    cached = EasyCacheNode.execute(case.phi, 3.0, 0.0, 1.0, False).args[0]  # skips whatever it may
    handle = case.phi.model.diffusion_model.out.register_forward_pre_hook(count)
    case.negative = text("sd15", 7, 2)  # as long as the prompt: one call a step
    ours = case.ours(model=cached, self_check=False, sampling={"steps": 6})
    handle.remove()
    assert ours.isfinite().all()
    assert len(apart) == 6 and len(calls) < 6  # some steps were skipped,
    assert min(apart) > 1e-4  # and the LoRA counted in those, too


@pytest.mark.parametrize("low_memory", [False, True])
def test_image_prompts_as_ip_adapter_patches_them_in(low_memory):
    """Attention to two more keys, of the picture for the prompt and of none for the negative, looked up in a pair by
    cond_or_uncond: a third index would be an IndexError."""
    from comfy.ldm.modules.attention import optimized_attention

    keys = [torch.randn(1, 2, 24, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    case, seen = Case(batch=2), []
    to_k = torch.randn(64, 24, generator=torch.Generator().manual_seed(3)) / 5

    def attention(q, k, v, options):
        cond_or_uncond = options["cond_or_uncond"]
        seen.append(tuple(cond_or_uncond))
        batch = len(q) // len(cond_or_uncond)
        picture = torch.cat([(keys[0], keys[1])[i].repeat(batch, 1, 1) for i in cond_or_uncond]) @ to_k.T
        heads = options["n_heads"]
        return optimized_attention(q, k, v, heads) + 0.5 * optimized_attention(q, picture, picture, heads)

    without = case.ours()
    for name in ("phi", "theta"):
        setattr(case, name, getattr(case, name).clone())
        getattr(case, name).set_model_attn2_replace(attention, "middle", 0, 0)
    case.negative = text("sd15", 7, 2)
    case.check(low_memory=low_memory)
    assert difference(case.ours(), without) > 1e-3
    rows = {tuple(sorted(indices)) for indices in seen}
    assert rows <= {(0,), (1,), (0, 0), (0, 1), (0, 0, 1)} and (low_memory or (0, 0, 1) in rows)


def test_the_host_is_asked_for_the_loras_memory_and_for_one_more_row(monkeypatch):
    import comfy.model_management as management

    case, asked = Case(batch=2), []
    genuine = management.load_models_gpu

    def load(models, memory_required=0, **more):
        asked.append(memory_required)
        return genuine(models, memory_required=memory_required, **more)

    monkeypatch.setattr(management, "load_models_gpu", load)
    case.plain()
    plain = max(asked)
    asked.clear()
    case.ours()
    need = case.phi.model.memory_required
    size = sum(t.numel() * 4 for k, t in case.lora.items() if not k.endswith("alpha"))
    assert max(asked) == pytest.approx(plain + size + need([6, 4, 8, 8]) - need([4, 4, 8, 8]))
    asked.clear()
    case.ours(low_memory=True)
    assert max(asked) == pytest.approx(plain + size)


def test_memory_of_the_run_is_given_back():
    """Copies of the LoRA in the network's dtype live as long as the run."""
    case = Case(dtype=torch.float16)
    case.lora = {k: t.double() for k, t in case.lora.items()}  # so that a copy is needed
    adapters, seen = host.pack("nodes.host.guidance.adapter_hooks"), []
    model = guided(case.phi, case.lora)
    genuine = adapters.BatchRows.indices

    def indices(rows, batch):
        seen.extend(weakref.ref(t) for t in rows.moved.values())
        return genuine(rows, batch)

    adapters.BatchRows.indices = indices
    try:
        sample(cfg(model, case.positive, case.negative, W_TEXT), case.start)
    finally:
        adapters.BatchRows.indices = genuine
    gc.collect()
    assert len(seen) > 10 and not any(ref() is not None for ref in seen)


def test_hooks_of_another_pack_that_come_and_go_meanwhile_stay_right():
    """Hooks come off in reverse order, and those of others are not touched."""
    case = Case()
    network = case.phi.model.diffusion_model
    layer = network.middle_block[1].transformer_blocks[0].attn1.to_q
    before, later = case.ours(), []

    def others(module, args, output):
        if not later:  # in the middle of the run another pack hooks the same layer
            later.append(layer.register_forward_hook(lambda module, args, output: output * 1.0))

    handle = layer.register_forward_hook(others)
    assert equal(case.ours(), before)
    assert list(layer._forward_hooks) == [handle.id, later[0].id]
    for one in (handle, *later):
        one.remove()
    assert not any(m._forward_hooks for m in network.modules())


@torch.inference_mode()
def quantised(model, family: str = "flux"):
    """The same weights through the host's mixed precision layers: fp8 with a scale where blocks have matrices."""
    import comfy.supported_models as supported
    from comfy.model_patcher import ModelPatcher

    tensors = {}
    for name, tensor in model.model.diffusion_model.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer != name and tensor.dim() == 2 and "blocks." in name:
            scale = tensor.abs().max() / 448
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[f"{layer}.weight_scale"] = scale
            conf = json.dumps({"format": "float8_e4m3fn"}).encode()
            tensors[f"{layer}.comfy_quant"] = torch.tensor(list(conf), dtype=torch.uint8)
        else:
            tensors[name] = tensor.clone()
    config = getattr(supported, FAMILIES[family].supported)(dict(FAMILIES[family].config))
    config.unet_config.update(FAMILIES[family].config)
    config.quant_config = {"mixed_ops": True}
    config.set_inference_dtype(torch.float32, torch.float32)
    made = config.get_model({}, "")
    made.diffusion_model.load_state_dict(tensors, strict=False)
    made.eval().requires_grad_(False)
    return ModelPatcher(made, model.load_device, model.offload_device)


@pytest.mark.parametrize("dora", [False, True])
def test_layers_of_a_quantised_checkpoint(dora, caplog):
    """fp8 with scales, as *_fp8_scaled files: no nn.Linear of torch, but rows all the same. theta is unmerged."""
    import comfy.quant_ops
    import comfy.sd

    case = Case("flux")
    case.phi, case.theta = quantised(case.phi), quantised(small_model("flux"))
    weights = [m.weight for m in case.phi.model.diffusion_model.modules() if hasattr(m, "quant_format")]
    assert len(weights) > 8 and all(isinstance(w, comfy.quant_ops.QuantizedTensor) for w in weights)
    host.pack("nodes.host.guidance.notices")._shown.clear()
    if dora:
        name = next(k for k in case.lora if "double_blocks" in k).removesuffix(".lora_down.weight")
        out = len(case.lora[f"{name}.lora_up.weight"])
        case.lora = {k: v for k, v in case.lora.items() if k.startswith(name + ".")}
        norms = dict(case.phi.model.named_modules())[name].weight.dequantize().norm(dim=1)
        plain_lora = case.ours()
        case.lora[f"{name}.dora_scale"] = (1.5 * norms).reshape(out, 1)
        assert difference(case.ours(), plain_lora) > 1e-4  # W' = 1.5 (W + dW)
    else:
        case.theta, _ = comfy.sd.load_bypass_lora_for_models(case.theta, None, dict(case.lora), 1.0, 0)
        case.check()
    assert "call of its own" not in caplog.text


def test_nested_dual_guidance():
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    case, middle = Case(), text("sd15", 6, 7)

    class Oracle(Guider_DualCFG):
        def predict_noise(self, x, timestep, model_options={}, seed=None):
            at = (x, timestep, model_options)
            names = ("negative", "middle", "positive")
            phi_0, phi_m, phi_c = evaluate(self, case.phi, [self.conds[n] for n in names], *at)
            (theta_c,) = evaluate(self, case.theta, [self.conds["positive"]], *at)
            evaluate(self, case.phi, [None], *at)
            inner = phi_m + 3.0 * (phi_c - phi_m)
            return phi_0 + 1.5 * (inner - phi_0) + W_RG * (theta_c - phi_c)

    def made(kind, model):
        guider = kind(model)
        guider.set_conds(case.positive, middle, case.negative)
        guider.set_cfg(3.0, 1.5, nested=True)
        return sample(guider, case.start)

    assert difference(made(Guider_DualCFG, guided(case.phi, case.lora, W_RG)), made(Oracle, case.phi)) < 1e-5


def test_two_models_that_share_their_modules_do_not_leak():
    """The host's dual-model guider: the prompt on the guided model, the negative on the plain one it was made from."""
    from comfy_extras.nodes_custom_sampler import Guider_DualModel

    case = Case()
    guider = Guider_DualModel(guided(case.phi, case.lora, W_RG), case.phi.clone())
    guider.set_conds(case.positive, case.negative)
    guider.set_cfg(W_TEXT)
    assert difference(sample(guider, case.start), case.expected(W_RG, W_TEXT)) < 1e-5


def test_loras_of_conditioning_hooks_are_part_of_the_base():
    """Create Hook LoRA on the positive prompt: it counts for theta and phi on that prompt, not for the negative."""
    import comfy.hooks
    import comfy.sd

    case = Case()
    user = lora_for(case.phi, seed=9, names=["middle_block.1.transformer_blocks.0.attn1.to_q", "out.2"])
    without = case.ours()
    case.positive = comfy.hooks.set_hooks_for_conditioning(
        case.positive, comfy.hooks.create_hook_lora(lora=user, strength_model=0.7, strength_clip=0.0)
    )
    ours = case.ours()
    both = [
        comfy.sd.load_lora_for_models(m, None, dict(user), 0.7, 0)[0]
        for m in (small_model("sd15"), case.theta)
    ]
    guider = oracle(case.phi, case.theta, case.positive, case.negative, None)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        plain = [{k: v for k, v in c.items() if k != "hooks"} for c in self.conds["positive"]]
        at = (x, timestep, model_options)
        phi_c, theta_c = (evaluate(self, m, [plain], *at)[0] for m in both)
        (phi_0,) = evaluate(self, case.phi, [self.conds["negative"]], *at)
        return W_RG * (theta_c - phi_c) + W_TEXT * (phi_c - phi_0) + phi_0

    type(guider).predict_noise = predict_noise
    assert difference(ours, without) > 1e-3
    assert difference(ours, sample(guider, case.start)) < 1e-5


def test_the_slower_ways_are_told_once(caplog):
    host.pack("nodes.host.guidance.notices")._shown.clear()
    name = "middle_block.1.transformer_blocks.0.attn1.to_q"
    case = Case()
    case.lora = {f"diffusion_model.{name}.set_weight": torch.zeros(64, 64)}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            case.ours()
    assert caplog.text.count("need their weight made anew in every step") == 1


def test_the_weights_of_the_test_are_what_they_seem():
    """fill() is what makes the small models equal: the oracle's two copies must not share storage."""
    a, b = small_model("sd15"), small_model("sd15")
    for (n, p), (_, q) in zip(a.model.named_parameters(), b.model.named_parameters(), strict=True):
        assert equal(p, q) and p.data_ptr() != q.data_ptr(), n
    fill(b.model.diffusion_model, 1)
    assert not equal(a.model.diffusion_model.out[2].weight, b.model.diffusion_model.out[2].weight)
