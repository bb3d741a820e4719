"""What training is given, in the host's own classes: sizes that SDXL reads, repeats, lengths of prompts."""

import math

import pytest
import torch
from prepared import OneText, PictureVAE, examples_of, prepare
from small_models import small_model

from devtools import in_process_host as host


def embedded(numbers):
    """SDXL's size embedding [6 * 256]: sinusoids of Vaswani et al. 2017, cosines first."""
    rates = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
    angles = torch.tensor(numbers, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1).flatten().float()


@pytest.mark.parametrize(
    ("choice", "numbers"),
    # height and width before, what was cut off above and left, height and width after
    [("real", (100, 300, 0, 64, 64, 64)), ("fixed (as the authors)", (64, 64, 0, 0, 64, 64))],
)
def test_sdxl_is_told_the_real_size_and_crop_or_the_authors(choice, numbers):
    pooled = torch.randn(1, 8)
    text = [[torch.randn(1, 7, 24), {"pooled_output": pooled}]]
    pictures = host.pack("nodes.training.references").gather([torch.rand(1, 100, 300, 3)], ["a <dog>"], None)
    (example,) = examples_of(
        small_model("sdxl"), OneText(text), PictureVAE(4), pictures, crop="square", size_conditioning=choice
    )
    conds = example.conditioning
    torch.testing.assert_close(conds["y"].cond[0, :8], pooled[0])
    torch.testing.assert_close(conds["y"].cond[0, 8:], embedded(numbers), rtol=1e-4, atol=1e-3)


def test_repeats_of_a_picture_are_fitted_and_read_once_and_do_not_count_as_pictures():
    references = host.pack("nodes.training.references")
    one, two = torch.rand(1, 64, 96, 3), torch.rand(1, 64, 64, 3)
    mask = torch.ones(1, 64, 96)
    images = [one] * 1500 + [two]
    gathered = references.gather(images, ["a <dog>"] * 1501, [mask] * 1501)
    assert len(references.distinct(gathered)) == 2
    model, clip, vae = host.pack("nodes.host.toy_world").load(None)
    _, prepared = prepare(model, clip, vae, gathered, crop="square", resolution=256)
    examples = examples_of(model, clip, vae, gathered, crop="square", resolution=256)
    assert len(prepared) == 2
    assert len(examples) == 1501 and len({id(e) for e in examples}) == 2
    view = one[:, :, :64]  # begins at the same place in memory, and is another picture
    two_views = references.gather([one, view], ["a", "a"], None)
    _, prepared = prepare(model, clip, vae, two_views, crop="square", resolution=256)
    assert [e.size.original_size for e in prepared._encoded] == [(64, 96), (64, 64)]
    assert len(references.distinct(references.gather([one, one.clone()], ["a", "a"], None))) == 1
    with pytest.raises(ValueError, match="1001 images"):
        references.flatten_images([torch.rand(1, 1, 1, 3) for _ in range(1001)])


def test_learned_tokens_count_as_many_tokens_as_they_have_vectors():
    learned, toy = host.pack("nodes.host.training.learned_tokens"), host.pack("nodes.host.toy_world")
    captions = host.pack("nodes.training.captions")
    clip = toy.load(None)[1]
    text = "a large <toy> on the beach, in flat style"
    assert learned.prompt_length(clip, text) == 9
    assert learned.prompt_length(clip, text, {"toy": 10}) == 18
    assert learned.prompt_length(clip, text, {"star": 10}) == 9
    assert "no complaints" in captions.check([text], clip=clip, vectors={"toy": 10})
    assert "19 tokens" in captions.check([text], clip=clip, vectors={"toy": 11})


def test_the_host_applies_dora_to_another_norm_than_peft_trains():
    """Why DoRA is not offered: when this fails, the host has changed and DoRA can be had."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 5, bias=False)
    network = torch.nn.ModuleDict({"q": layer})
    wrapped = peft.inject_adapter_in_model(
        peft.LoraConfig(r=2, lora_alpha=2, target_modules=["q"], use_dora=True, init_lora_weights=False),
        network,
    )["q"]
    from comfy.weight_adapter.lora import LoRAAdapter

    up, down = wrapped.lora_B["default"].weight, wrapped.lora_A["default"].weight
    magnitude = wrapped.lora_magnitude_vector["default"].weight.detach()[:, None]
    parts = (up.detach(), down.detach(), 2.0, None, magnitude, None)
    weight = wrapped.base_layer.weight.detach().clone()
    by_host = LoRAAdapter(set(), parts).calculate_weight(weight, "q", 1.0, 1.0, None, lambda x: x)
    x = torch.randn(4, 6)
    with torch.no_grad():
        by_peft = wrapped(x)
    assert (x @ by_host.T - by_peft).norm() > 0.01 * by_peft.norm()
    # the host's sum, over the norm that peft takes, is peft's
    merged = wrapped.base_layer.weight.detach() + (up @ down).detach()
    torch.testing.assert_close(x @ (magnitude / merged.norm(dim=1, keepdim=True) * merged).T, by_peft)
