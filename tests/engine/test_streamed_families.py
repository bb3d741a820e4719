"""Streamed weights on every family of the host: the bits of resident ones, and no byte of the MODEL changed."""

import pytest
import torch
from small_models import FAMILIES, small_model, text
from test_guidance_beside_others import quantised

from devtools import in_process_host as host
from tests.core.test_weight_stream import CountedCopies


def step(model, family, copies=None, checkpointed=False, precision="auto"):
    """(phi's and theta's prediction, gradients, the stream) of one step on MODEL."""
    network = host.pack("nodes.host.training.network")
    config = host.pack("dco_core.network.lora_layers").AdapterConfig(rank=2, layers="all linear and convolution")
    shape = FAMILIES[family].latent
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, *shape, generator=generator)
    with network.training_session(model, config) as plain:
        conds = [plain.model_conditions(text(family, 7, seed), torch.zeros(shape)) for seed in (1, 2)]
        denoiser = network.HostDenoiser(model, config, precision, copies) if copies or precision != "auto" else plain
        if checkpointed:
            denoiser.checkpoint_blocks()
        parameters = denoiser.trainable()
        for name in sorted(parameters):
            if name.endswith(".up"):
                parameters[name].data.copy_(0.1 * torch.randn(parameters[name].shape, generator=generator))
        t = torch.tensor([300, 700])
        with torch.no_grad():
            phi = denoiser.predict(x, t, conds, adapter=False)
        theta = denoiser.predict(x, t, conds, adapter=True)
        grads = torch.autograd.grad(theta.float().square().mean(), list(parameters.values()), allow_unused=True)
    return [phi, theta.detach(), *grads], denoiser.weight_stream


def equal(a, b):
    assert len(a) == len(b)
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert (x is None) == (y is None) and (x is None or torch.equal(x, y)), i


def bits(model):
    return {name: value.clone() for name, value in model.model.diffusion_model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_streams_to_the_same_bits(family):
    model = small_model(family)
    before = bits(model)
    plain, nothing = step(model, family)
    assert nothing is None
    copies = CountedCopies()
    streamed, stream = step(model, family, copies, checkpointed=True)
    equal(plain, streamed)
    assert 0 < copies.most <= stream.resident_bytes and stream.nbytes > 0
    after = bits(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_quantised_weights_stream_as_they_are_stored(precision):
    model = quantised(small_model("flux"))
    plain, _ = step(model, "flux", precision=precision)
    copies = CountedCopies()
    streamed, _ = step(model, "flux", copies, precision=precision)
    equal(plain, streamed)
    assert copies.waits > 0


def test_weights_in_half_precision_are_copied_before_they_are_cast():
    model = small_model("sdxl")
    for module in model.model.diffusion_model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            module.to(torch.float16)
    copies = CountedCopies()
    plain, _ = step(model, "sdxl", precision="bf16")
    streamed, stream = step(model, "sdxl", copies, precision="bf16")
    equal(plain, streamed)
    fp32 = sum(4 * p.numel() for p in model.model.diffusion_model.parameters())
    assert stream.nbytes < 0.6 * fp32


@pytest.mark.parametrize("choice", ["auto", "on", "off"])
def test_on_streams_every_block_where_all_would_fit(choice):
    """Through the trainer's own session and the host's own loader; the CPU stands in for the device."""
    network = host.pack("nodes.host.training.network")
    config = host.pack("dco_core.network.lora_layers").AdapterConfig(rank=2)
    model, shape = small_model("sd15-whole"), FAMILIES["sd15-whole"].latent
    before = bits(model)
    copies = CountedCopies()
    session = network.training_session(
        model, config, stream_weights=choice, step_shape=(1, *shape), copies=copies
    )
    with session as denoiser:
        stream, loaded = denoiser.weight_stream, model.loaded_size()
        conds = [denoiser.model_conditions(text("sd15-whole", 7, 1), torch.zeros(shape))]
        x, t = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1)), torch.tensor([300])
        for _ in range(2):
            denoiser.predict(x, t, conds, adapter=True).square().mean().backward()
    if choice == "on":
        sizes = sorted((sum(w.nbytes for w in unit) for unit in stream._units), reverse=True)
        assert len(sizes) > 8 and stream.resident_bytes == sum(sizes[:3])
        assert 0 < copies.most <= stream.resident_bytes < 0.5 * stream.nbytes
        assert loaded < 0.05 * model.model_size()  # the host knows that they are gone
    else:
        assert stream is None and copies.waits == 0 and loaded == model.model_size()
    network.comfy.model_management.load_models_gpu([model], force_full_load=True)
    assert model.loaded_size() == model.model_size()  # and brings them back
    after = bits(model)
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in after)
