"""What a checkpoint is found by: two runs that differ only in what hangs on MODEL, CLIP or VAE are two, and equal runs
are one, whether the host has loaded their models or not."""

import pytest
import torch
from small_models import fill, lora_for, small_model

from devtools import in_process_host as host


def model_fingerprint(model, clip, vae):
    return host.pack("nodes.host.training.model_fingerprint").model_fingerprint(model, clip, vae)


def loaded():
    """MODEL of a family that knows all patches, CLIP and VAE, each time of new objects."""
    import comfy.sd

    _, clip, toy = host.pack("nodes.host.toy_world").load(None)
    vae = comfy.sd.VAE(sd={})
    vae.first_stage_model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    fill(vae.first_stage_model, 1)
    vae.patcher = toy.patcher.__class__(vae.first_stage_model, torch.device("cpu"), torch.device("cpu"))
    return small_model("sd3"), clip, vae


def text_lora(clip, seed=0):
    name = next(k for k, v in clip.cond_stage_model.state_dict().items() if k.endswith(".weight") and v.dim() == 2)
    weight = clip.cond_stage_model.state_dict()[name]
    generator = torch.Generator().manual_seed(seed)
    stem = f"text_encoders.{name.removesuffix('.weight')}"
    return {f"{stem}.lora_down.weight": torch.randn(1, weight.shape[1], generator=generator),
            f"{stem}.lora_up.weight": torch.randn(weight.shape[0], 1, generator=generator)}  # fmt: skip


def with_text_lora(seed=0, strength=1.0, bypass=False):
    def change(model, clip, vae):
        import comfy.sd

        load = comfy.sd.load_bypass_lora_for_models if bypass else comfy.sd.load_lora_for_models
        _, changed = load(None, clip, text_lora(clip, seed), 0, strength)
        assert bypass or changed.patcher.patches
        return model, changed, vae

    return change


def with_lora(seed=5, strength=1.0, bypass=False):
    def change(model, clip, vae):
        import comfy.sd

        load = comfy.sd.load_bypass_lora_for_models if bypass else comfy.sd.load_lora_for_models
        changed, _ = load(model, None, lora_for(model, seed=seed), strength, 0)
        return changed, clip, vae

    return change


def with_layer(layer):
    def change(model, clip, vae):
        import nodes as host_nodes

        return model, host_nodes.CLIPSetLastLayer().set_last_layer(clip, layer)[0], vae

    return change


def with_shift(shift):
    def change(model, clip, vae):
        from comfy_extras.nodes_model_advanced import ModelSamplingSD3

        return ModelSamplingSD3().patch(model, shift)[0], clip, vae

    return change


def with_attention(factor):
    def change(model, clip, vae):
        changed = model.clone()
        scale = torch.tensor([factor, 1.0])

        def patch(q, k, v, extra_options):
            return q * scale[0], k, v

        changed.set_model_attn2_patch(patch)
        return changed, clip, vae

    return change


def with_option(name, value):
    def change(model, clip, vae):
        changed = model.clone()
        changed.model_options["transformer_options"][name] = value
        return changed, clip, vae

    return change


def with_wrapper(factor):
    class Wrapper:
        def __init__(self):
            self.factor = factor

        def __call__(self, executor, *args, **kwargs):
            return self.factor * executor(*args, **kwargs)

    def change(model, clip, vae):
        import comfy.patcher_extension

        changed = model.clone()
        kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
        changed.add_wrapper_with_key(kind, "test", Wrapper())
        return changed, clip, vae

    return change


def with_hook(strength):
    def change(model, clip, vae):
        import comfy.hooks

        clip = clip.clone()
        clip.patcher.forced_hooks = comfy.hooks.create_hook_lora(text_lora(clip), 0, strength)
        clip.use_clip_schedule = True
        clip.apply_hooks_to_conds = clip.patcher.forced_hooks
        return model, clip, vae

    return change


def with_vae(where):
    def change(model, clip, vae):
        if where == "buffer":
            vae.first_stage_model[1].running_mean[2] += 1e-3
        elif where == "patch":
            vae.patcher.add_patches({"0.bias": ("diff", (torch.ones(4),))})
        else:
            vae.first_stage_model[0].weight.data[0, 0, 0, 0] += 1e-3
        return model, clip, vae

    return change


def with_tokenizer(value):
    def change(model, clip, vae):
        clip = clip.clone()
        clip.set_tokenizer_option("min_length", value)
        return model, clip, vae

    return change


CHANGES = {
    "nothing": lambda model, clip, vae: (model, clip, vae),
    "a LoRA": with_lora(), "another LoRA": with_lora(6), "a weaker LoRA": with_lora(strength=0.5),
    "a LoRA beside the weights": with_lora(bypass=True), "a weaker one beside": with_lora(strength=0.5, bypass=True),
    "a LoRA on CLIP": with_text_lora(), "another on CLIP": with_text_lora(1),
    "a weaker on CLIP": with_text_lora(0, 0.5),
    "beside CLIP's weights": with_text_lora(bypass=True), "CLIP's layer": with_layer(-2), "its third": with_layer(-3),
    "a hook on CLIP": with_hook(1.0), "a weaker hook": with_hook(0.5), "the tokenizer": with_tokenizer(5),
    "shift": with_shift(2.0), "more shift": with_shift(4.0), "attention": with_attention(2.0),
    "more attention": with_attention(3.0), "an option": with_option("scale", 1.0),
    "more of it": with_option("scale", 2.0),
    "a wrapper": with_wrapper(2.0), "a stronger wrapper": with_wrapper(3.0), "the VAE": with_vae("weight"),
    "the VAE's statistics": with_vae("buffer"), "a patch of the VAE": with_vae("patch"),
}  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return {name: model_fingerprint(*change(*loaded())) for name, change in CHANGES.items()}


def test_every_change_shows(found):
    assert len(set(found.values())) == len(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_equal_runs_are_one_whatever_is_loaded(found, name):
    import comfy.model_management as management

    model, clip, vae = CHANGES[name](*loaded())
    assert model_fingerprint(model, clip, vae) == found[name]
    patchers = [model, clip.patcher, vae.patcher]
    for some in ([0], [1], [2], [0, 1, 2]):
        management.load_models_gpu([patchers[i] for i in some], force_full_load=True)
        assert model_fingerprint(model, clip, vae) == found[name]
        management.unload_all_models()
    assert model_fingerprint(model, clip, vae) == found[name]


def test_it_is_the_same_in_a_training_session(found):
    """Where the trainer asks for it."""
    network = host.pack("nodes.host.training.network")
    config = host.pack("dco_core.network.lora_layers").AdapterConfig(rank=2)
    for name in ("nothing", "a LoRA", "shift", "a LoRA on CLIP"):
        for tokens_train in (False, True):
            model, clip, vae = CHANGES[name](*loaded())
            with network.training_session(model, config, clip if tokens_train else None):
                assert model_fingerprint(model, clip, vae) == found[name]


def test_a_half_precision_model_with_a_lora_is_told_before_and_after_it_is_loaded():
    import comfy.model_management as management

    keys = set()
    for strength in (0.5, 1.0):
        model, clip, vae = loaded()
        model = with_lora(strength=strength)(small_model("sd3", dtype=torch.bfloat16), clip, vae)[0]
        before = model_fingerprint(model, clip, vae)
        management.load_models_gpu([model], force_full_load=True)
        assert model_fingerprint(model, clip, vae) == before
        management.unload_all_models()
        keys.add(before)
    assert len(keys) == 2


def test_an_embedding_file_of_the_captions_counts(tmp_path):
    from safetensors.torch import save_file

    tokens = host.pack("nodes.host.training.model_fingerprint").prompt_tokens
    found = []
    for value in (1.0, 1.0, 2.0):
        save_file({"toy_world": torch.full((1, 64), value)}, tmp_path / "pet.safetensors")
        clip = host.pack("nodes.host.toy_world").load([str(tmp_path)])[1]
        width = clip.cond_stage_model.toy_world.transformer.text_encoder.token_embedding.weight.shape[1]
        save_file({"toy_world": torch.full((1, width), value)}, tmp_path / "pet.safetensors")
        found.append(tokens(clip, ["a photo of embedding:pet", "a dog", "a dog"]))
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == 2 and found[0][1] == found[2][1]
