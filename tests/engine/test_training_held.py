"""What training holds to the base model (the mask prior, preservation prompts), on the host's own networks: latents of
pictures and of videos, and prompts as each family reads them."""

import pytest
import torch
from small_models import FAMILIES, small_model, text

from devtools import in_process_host as host

MASK = torch.tensor([1.0, 0.0, 0.4, 1.0]).repeat(16)  # by columns of four


def pack(name):
    return host.pack(f"dco_core.training.{name}")


def examples_for(denoiser, shape):
    generator = torch.Generator().manual_seed(2)
    size = shape[-2] * shape[-1]
    mask = MASK.repeat(size // len(MASK) + 1)[:size].view(shape[-2:])
    latents = [torch.randn(shape, generator=generator) for _ in range(2)]

    def read(seed, x):
        return denoiser.model_conditions(text(denoiser.text_family, 7, seed), x)

    return [
        pack("examples").Example(
            x, read(1 + i, x), base_conditioning=read(3 + i, x), mask=mask if i else None,
            preserved=[read(seed, x) for seed in (5, 6, 7)],
        )
        for i, x in enumerate(latents)
    ]  # fmt: skip


@pytest.mark.parametrize("objective", ["dco", "dreambooth"])
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd2-v", "flux", "qwen-image", "wan"])
def test_the_loss_is_the_objectives_and_the_distances_by_hand(family, objective):
    shape = FAMILIES[family].latent
    adapter = host.pack("dco_core.network.lora_layers").AdapterConfig(rank=2)
    config = pack("config").TrainingConfig
    plain = config(objective=objective, beta=0.05, weighting="uniform", batch_size=2, seed=4)
    held = config(
        objective=objective, beta=0.05, weighting="uniform", batch_size=2, seed=4, mask_prior=3.0,
        preservation_weight=2.0, preservation_prompts="a; b; c",
    )  # fmt: skip
    with host.pack("nodes.host.training.network").training_session(small_model(family), adapter) as denoiser:
        denoiser.text_family = family
        generator = torch.Generator().manual_seed(7)
        for name, p in denoiser.trainable().items():
            if name.endswith(".up"):
                p.data.copy_(0.2 * torch.randn(p.shape, generator=generator))
        examples = examples_for(denoiser, shape)
        draws = next(pack("draws").random_draws(examples, len(denoiser.schedule), held))
        assert {d.image for d in draws} == {0, 1} and all(d.preserved >= 0 for d in draws)
        objectives = pack("objectives")
        free = [d.__class__(**{**d.__dict__, "preserved": -1}) for d in draws]
        without = objectives.OBJECTIVES[objective](objectives.Batch(denoiser, examples, free, plain)).loss
        found = objectives.OBJECTIVES[objective](objectives.Batch(denoiser, examples, draws, held)).loss
        extra = 0.0
        for d in draws:
            e, t = examples[d.image], torch.tensor([d.t])
            x = denoiser.schedule.noised(e.latent[None], d.noise[None], t)

            def both(own, base, x=x, t=t):
                theta = denoiser.predict(x, t, [own], adapter=True)
                with torch.no_grad():
                    return (theta - denoiser.predict(x, t, [base], adapter=False)).square()[0]

            if e.mask is not None:
                outside = (1 - e.mask).expand(shape)
                far = both(e.conditioning, e.base_conditioning)
                extra += 3.0 * (far * outside).sum() / outside.sum() / 2
            extra += 2.0 * both(e.preserved[d.preserved], e.preserved[d.preserved]).mean() / 2
        assert extra > 1e-4
        torch.testing.assert_close(found - without, extra, rtol=2e-3, atol=1e-6)
        found.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.trainable().values())
