"""A LoRA of every family as the trainer writes it, in the host's own loader: every layer, with its strength."""

import pytest
import torch
from small_models import FAMILIES, small_model, text

from devtools import in_process_host as host


@pytest.mark.parametrize("family", FAMILIES)
def test_every_file_loads_as_it_was_trained(family, tmp_path):
    import comfy.sd
    import comfy.utils

    network = host.pack("nodes.host.training.network")
    core = host.pack("dco_core.lora")
    config = host.pack("dco_core.network.lora_layers").AdapterConfig(rank=2, layers="all linear and convolution")
    model, shape = small_model(family), FAMILIES[family].latent
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(1, *shape, generator=generator), torch.tensor([400])

    def predicted(denoiser, adapter):
        conds = [denoiser.model_conditions(text(family, 7, 1), torch.zeros(shape))]
        with torch.no_grad():
            return denoiser.predict(x, t, conds, adapter=adapter)

    with network.training_session(model, config) as denoiser:
        for name, parameter in denoiser.trainable().items():
            if name.endswith(".up"):
                parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        theta, phi, weights = predicted(denoiser, True), predicted(denoiser, False), denoiser.weights()
    path = tmp_path / "lora.safetensors"
    core.write_lora(path, weights, keys=host.pack("nodes.host.layer_names").kohya_names(model))
    loaded, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path)), 1.0, 0.0)
    assert len(loaded.patches) == len(weights.layers) > 4
    with network.training_session(loaded, None) as denoiser:
        merged = predicted(denoiser, False)
    assert (theta - phi).norm() > 0.01 * phi.norm()
    torch.testing.assert_close(merged, theta, rtol=1e-3, atol=1e-4 * float(theta.abs().max()))
