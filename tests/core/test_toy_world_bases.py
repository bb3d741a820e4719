"""The Toy World's two bases: one network, read exactly as a flow and as an epsilon model."""

import pytest
import torch

from dco_core.errors import DCOError
from dco_core.losses import dco_loss, weights_at
from dco_core.models.loading import load_model
from dco_core.network.lora_layers import AdapterConfig, add_adapter
from dco_core.sampling import sample as any_sample
from dco_core.schedules import Schedule
from dco_core.toy_world import scorer
from dco_core.toy_world.bases import BASES, schedule_of
from dco_core.toy_world.model import ToyDenoiser, encode, load_text_encoder, load_unet
from dco_core.toy_world.renderer import render
from dco_core.toy_world.world import caption, sample_scenes
from dco_core.training.draws import Draw
from dco_core.training.examples import Example
from dco_core.training.objectives import batch_errors
from tests.toy_sampler import toy_sample

TIMES = [3, 200, 491, 998]  # indices of the epsilon base, not evenly spread


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def flow_schedule():
    """The flow schedule whose noise levels are those of the epsilon base, index by index."""
    epsilon = schedule_of("epsilon")
    return Schedule.from_sigmas("flow", epsilon.sigma / (epsilon.alpha + epsilon.sigma))


def scenes(n):
    made = sample_scenes(n, generator(6))
    return render(made), [caption(made, i) for i in range(n)]


def moved(denoiser):
    """The denoiser with a LoRA that does something, the same for both bases."""
    draws = generator(12)
    for p in denoiser.trainable().values():
        p.data = torch.randn(p.shape, generator=draws) * 0.02
    return denoiser


def both():
    """(epsilon, flow) with the same LoRA; flow on the noise levels of epsilon."""
    pair = [moved(ToyDenoiser(AdapterConfig(rank=2, layers="all linear"), base=base)) for base in BASES]
    pair[1].schedule = flow_schedule()
    return pair


def test_the_epsilon_base_has_the_timesteps_of_stable_diffusion_and_the_weights_of_flow():
    schedule, plain = schedule_of("epsilon"), Schedule.stable_diffusion()
    assert schedule.prediction == "epsilon" and len(schedule) == 1000
    torch.testing.assert_close(schedule.sigma, plain.sigma)
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(1000))
    one, other = (load_unet(base).state_dict() for base in BASES)
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    levels = flow_schedule().sigma
    assert 0.02 < levels[0] and levels[-1] < 0.95  # what the network was trained on


@pytest.mark.parametrize("prediction", BASES)
def test_a_loras_names_are_the_same_on_both(prediction):
    lora = ToyDenoiser(AdapterConfig(rank=2, layers="all linear"), base=prediction).lora()
    assert list(lora) == list(ToyDenoiser(AdapterConfig(rank=2, layers="all linear"), base="flow").lora())


def test_predictions_imply_the_same_noise_and_the_same_picture():
    epsilon, flow = both()
    x0, texts = scenes(len(TIMES))
    t, read = torch.tensor(TIMES), list(encode(load_text_encoder(), texts))
    noise = torch.randn(x0.shape, generator=generator(3))
    x_epsilon, x_flow = epsilon.schedule.noised(x0, noise, t), flow.schedule.noised(x0, noise, t)
    for adapter in (False, True):
        eps = epsilon.predict(x_epsilon, t, read, adapter=adapter)
        v = flow.predict(x_flow, t, read, adapter=adapter)
        assert not torch.allclose(eps, v, atol=0.1)
        implied = x_flow + flow.schedule.at(t, x0)[0] * v
        torch.testing.assert_close(eps, implied, atol=1e-4, rtol=1e-4)
        # x0 = (x_t - sigma eps) / alpha: where there is little signal, rounding counts most
        torch.testing.assert_close(
            epsilon.schedule.denoised(x_epsilon, eps, t), flow.schedule.denoised(x_flow, v, t), atol=2e-3, rtol=1e-3
        )
    # and it is a prediction of the noise: better than nothing at every level
    assert (eps - noise).square().flatten(1).mean(1).lt(0.9).all()


@pytest.mark.parametrize("w_rg", [0.0, 1.4])
def test_both_draw_the_same_pictures_along_the_same_noise_levels(w_rg):
    epsilon, flow = both()
    read = encode(load_text_encoder(), ["a large toy on the left, at night, in flat style", "a red star on grass", ""])
    start = torch.randn(2, 3, 32, 32, generator=generator(4))
    alpha, sigma = epsilon.schedule.alpha[-1], epsilon.schedule.sigma[-1]
    pictures = [
        any_sample(d, list(read[:2]), None, [read[2]] * 2, x, w_rg=w_rg, w_text=2.0, steps=7)
        for d, x in ((epsilon, start), (flow, start / (alpha + sigma)))
    ]
    torch.testing.assert_close(*pictures, atol=2e-3, rtol=1e-3)


def test_losses_of_the_noise_and_their_gradients_are_those_of_flow_with_epsilon_weighting():
    x0, texts = scenes(len(TIMES))
    read = encode(load_text_encoder(), texts)
    noise = torch.randn(x0.shape, generator=generator(3))
    draws = [Draw(i, noise[i], t) for i, t in enumerate(TIMES)]
    results = []
    for denoiser in both():
        examples = [Example(x, c) for x, c in zip(x0, read, strict=True)]
        theta = batch_errors(denoiser, examples, draws, adapter=True)
        with torch.no_grad():
            phi = batch_errors(denoiser, examples, draws, adapter=False)
        weight = weights_at(denoiser.schedule, torch.tensor(TIMES), "epsilon")
        loss = dco_loss(theta, phi, 300.0, weight=weight)
        loss.backward()
        gradients = [p.grad for p in denoiser.trainable().values()]
        results.append((weight * theta.detach(), loss.detach(), gradients))
    (one, loss, grads), (two, other, others) = results
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(loss, other, rtol=1e-3, atol=1e-5)
    a, b = (torch.cat([g.flatten() for g in found]) for found in (grads, others))
    assert a.norm() > 0 and ((a - b).norm() / a.norm()).item() < 1e-3


@pytest.mark.parametrize("base", BASES)
def test_the_shipped_model_follows_prompts(base):
    _, prompts = scenes(24)
    text_encoder = load_text_encoder()
    noise = torch.randn(24, 3, 32, 32, generator=generator(8))
    texts, empty = encode(text_encoder, prompts), encode(text_encoder, [""])
    pictures = toy_sample(load_unet(base), texts, empty, noise, 0.0, steps=10)
    assert scorer.prompt_alignment(pictures, prompts).mean() > 0.8
    assert scorer.factors_obeyed(pictures, prompts).mean() > 0.93


def test_models_by_name():
    assert load_model("toy-world").prediction == "epsilon"
    for base in BASES:
        model = load_model(f"toy-world:{base}")
        assert model.prediction == base == model.denoiser(None).schedule.prediction
    contents = {load_model(name).content() for name in ("toy-world", "toy-world:epsilon", "toy-world:flow")}
    assert len(contents) == 2  # a checkpoint of one base is none of the other
    for wrong in ("toy-world:", "toy-world:v", "toy-worlds"):
        with pytest.raises(DCOError, match="use toy-world, toy-world:epsilon, toy-world:flow, diffusers:FOLDER"):
            load_model(wrong)
    with pytest.raises(DCOError, match='no base "v": use epsilon or flow'):
        load_unet("v")


def test_an_adapter_of_one_base_can_be_put_on_the_other():
    """They are one network: a LoRA of the epsilon base draws the same on flow."""
    network = load_unet("flow")
    parameters = add_adapter(network, AdapterConfig(rank=2, layers="all linear"))
    learned = moved(ToyDenoiser(AdapterConfig(rank=2, layers="all linear")))
    for name, value in learned.trainable().items():
        parameters[name].data.copy_(value)
    x, text = torch.randn(1, 3, 32, 32, generator=generator(9)), encode(load_text_encoder(), ["a toy"])
    t = torch.tensor([300])
    alpha, sigma = learned.schedule.at(t, x)
    s = sigma / (alpha + sigma)
    expected = x / (alpha + sigma) + (1 - s) * network(x / (alpha + sigma), s.flatten(), text)
    torch.testing.assert_close(learned.predict(x, t, list(text), adapter=True), expected, atol=1e-5, rtol=1e-4)
