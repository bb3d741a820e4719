"""The noise of every family as the core knows it, against the host's own formulas on numbers of any kind."""

import pytest
import torch
from small_models import FAMILIES, small_model

from devtools import in_process_host as host


def sampling_of(family):
    return small_model(family).get_model_object("model_sampling")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_sees_and_means_what_the_host_says(family):
    """x_t is what the host puts in, and a prediction means the image that the host takes it for."""
    sampling = sampling_of(family)
    noise = host.pack("nodes.host.training.noise").noise_of(sampling)
    generator = torch.Generator().manual_seed(3)
    latent, eps, output = (2 * torch.randn(3, 4, 5, 6, generator=generator) for _ in range(3))
    eps = eps / 2
    last = len(noise.schedule) - 1
    t = torch.tensor([0, last // 3, last])
    sigma = sampling.sigmas[t].float()
    x_t = noise.schedule.noised(latent / noise.scale, eps, t)
    host_x = sampling.noise_scaling(sigma.reshape(-1, 1, 1, 1), eps.clone(), latent.clone())
    torch.testing.assert_close(sampling.calculate_input(sigma, host_x), x_t, rtol=1e-4, atol=1e-4)
    image = sampling.calculate_denoised(sigma, output, host_x)
    ours = noise.scale * noise.schedule.denoised(x_t, noise.sign * output, t)
    torch.testing.assert_close(ours, image, rtol=1e-3, atol=1e-3)
    exact = noise.schedule.target(latent / noise.scale, eps, t) / noise.sign  # what a perfect network would give
    found = sampling.calculate_denoised(sigma, exact, host_x)
    torch.testing.assert_close(found, latent, rtol=2e-3, atol=2e-3 * float(sigma.max().clamp(max=100)))


@pytest.mark.parametrize("family", ["sdxl-edm", "sdxl", "cosmos-predict2"])
def test_latents_go_in_and_come_back(family):
    network, model = host.pack("nodes.host.training.network"), small_model(family)
    latent = torch.randn(FAMILIES[family].latent, generator=torch.Generator().manual_seed(1))
    std = latent.abs() / 9
    x0, native = network.native_latent(model, latent, std)
    torch.testing.assert_close(network.host_latent(model, x0[None])[0], latent, rtol=1e-4, atol=1e-5)
    more, _ = network.native_latent(model, latent + std)
    torch.testing.assert_close(x0 + native, more, rtol=1e-4, atol=1e-5)
    if family == "sdxl-edm":
        torch.testing.assert_close(x0, 2 * model.model.process_latent_in(latent[None])[0])


def test_noise_without_a_formula_is_one_sentence():
    import comfy.model_sampling as sampling

    error = host.pack("dco_core.errors").DCOError
    noise_of = host.pack("nodes.host.training.noise").noise_of
    of_eps = type("Scaled", (sampling.ModelSamplingContinuousEDM, sampling.EPS), {})()
    of_eps.sigma_data = 0.5
    for unknown in (type("Direct", (sampling.ModelSamplingDiscrete, sampling.X0), {})(), of_eps):
        with pytest.raises(error, match="noise cannot be trained yet: use an epsilon .* or flow model"):
            noise_of(unknown)
