"""Both bases of the Toy World in the host's own sampling: they draw what the core draws."""

import pytest
import torch

from benchmarks import host
from dco_core.adapters import AdapterConfig
from dco_core.schedules import Schedule
from dco_core.toy_world.model import encode, load_text_encoder, load_unet
from dco_core.toy_world.model import sample as toy_sample
from dco_core.toy_world.unet import BASES, schedule_of


@pytest.mark.parametrize("base", BASES)
def test_the_host_draws_what_the_core_draws(base):
    import comfy.sample

    model, clip, vae = host.pack("nodes.host.toy_world").load(None, base)
    prompt = "a small toy on the left, at night, in flat style"
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, ""))
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    latent = comfy.sample.sample(
        model,
        noise,
        5,
        2.0,
        "euler",
        "simple",
        positive,
        negative,
        torch.zeros_like(noise),
        disable_pbar=True,
    )
    text_encoder = load_text_encoder(base)
    read = [encode(text_encoder, [text]) for text in (prompt, "")]
    expected = toy_sample(load_unet(base), *read, noise, 0.0, 2.0, steps=5)
    torch.testing.assert_close(latent.cpu(), expected, atol=2e-3, rtol=1e-3)
    assert vae.decode(latent).shape == (1, 512, 512, 3)


@pytest.mark.parametrize("base", BASES)
def test_the_host_trains_a_base_on_its_own_schedule(base):
    model, _, _ = host.pack("nodes.host.toy_world").load(None, base)
    own = schedule_of(base)
    with host.pack("nodes.host.training").training_session(model, AdapterConfig(rank=1)) as denoiser:
        schedule: Schedule = denoiser.schedule
        assert schedule.prediction == base
        torch.testing.assert_close(schedule.sigma, own.sigma, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(schedule.alpha, own.alpha, atol=1e-5, rtol=1e-3)
