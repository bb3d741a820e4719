"""The Toy World's bases in the host: they predict and draw what they do in the core."""

import pytest
import torch

from dco_core.network.lora_layers import AdapterConfig
from dco_core.toy_world.bases import BASES, schedule_of
from dco_core.toy_world.model import ToyDenoiser, encode, load_text_encoder, load_unet
from devtools import in_process_host as host
from tests.toy_sampler import toy_sample

PROMPT = "a small toy on the left, at night, in flat style"


def start(n=1):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("base", BASES)
def test_the_host_draws_what_the_core_draws(base):
    import comfy.sample

    model, clip, vae = host.pack("nodes.host.toy_world").load(None, base)
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, ""))
    noise, empty = start(), torch.zeros(1, 3, 32, 32)
    latent = comfy.sample.sample(
        model, noise, 5, 2.0, "euler", "simple", positive, negative, empty, disable_pbar=True
    )
    read = [encode(load_text_encoder(), [text]) for text in (PROMPT, "")]
    expected = toy_sample(load_unet(base), *read, noise, 0.0, 2.0, steps=5)
    torch.testing.assert_close(latent.cpu(), expected, atol=4e-3, rtol=1e-3)
    assert vae.decode(latent).shape == (1, 256, 256, 3)


@pytest.mark.parametrize("base", BASES)
def test_the_host_trains_a_base_on_its_own_schedule_and_prediction(base):
    model, _, _ = host.pack("nodes.host.toy_world").load(None, base)
    core = ToyDenoiser(None, base=base)
    times, x = torch.tensor([2, 301, 777, 999]), start(4)
    read = encode(load_text_encoder(), [PROMPT])
    text = [[read, {}]]
    with host.pack("nodes.host.training.network").training_session(model, AdapterConfig(rank=1)) as denoiser:
        assert denoiser.schedule.prediction == base
        torch.testing.assert_close(denoiser.schedule.sigma, schedule_of(base).sigma, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(denoiser.schedule.alpha, schedule_of(base).alpha, atol=1e-5, rtol=1e-3)
        conditioning = [denoiser.model_conditions(text, x[0])] * 4
        theta = denoiser.predict(x, times, conditioning, adapter=True)
        theta.sum().backward()  # what the host has made in inference mode takes no part in it
        assert any(p.grad.abs().max() > 0 for p in denoiser.trainable().values())
        phi = denoiser.predict(x, times, conditioning, adapter=False)
    expected = core.predict(x, times, list(read.expand(4, -1, -1)), adapter=False)
    torch.testing.assert_close(phi.detach().cpu(), expected, atol=1e-3, rtol=1e-3)


def test_checkpoints_of_the_bases_are_told_apart_and_other_names_are_refused():
    toy = host.pack("nodes.host.toy_world")
    fingerprint = host.pack("nodes.host.training.model_fingerprint").model_fingerprint
    found = [fingerprint(*toy.load(None, base)) for base in (*BASES, *BASES)]
    assert found[0] != found[1] and found[:2] == found[2:]
    with pytest.raises(host.pack("dco_core.errors").DCOError, match='no base "v": use epsilon or flow'):
        toy.load(None, "v")


def test_the_loader_takes_the_base_and_has_the_papers_by_default():
    loader = host.pack("nodes.training.toy_world").DCOToyWorldLoader
    assert loader.execute().args[0].model.model_type.name == "EPS"
    assert loader.execute(base="flow").args[0].model.model_type.name == "FLOW"
