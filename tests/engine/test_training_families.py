"""Training on every family of the host: gradients against finite differences, with and without checkpointing."""

import pytest
import torch
from guiding import Case
from prepared import OneText, PictureVAE, prepare
from small_models import FAMILIES, small_model, text

from devtools import in_process_host as host


def training():
    return host.pack("nodes.host.training.network")


def adapter(**options):
    return host.pack("dco_core.network.lora_layers").AdapterConfig(
        rank=2, layers="all linear and convolution", **options
    )


def started(denoiser, size=0.1):
    """The LoRA at some point of its training; its parameters."""
    generator = torch.Generator().manual_seed(7)
    parameters = denoiser.trainable()
    for name, parameter in parameters.items():
        if name.endswith(".up"):
            parameter.data.copy_(size * torch.randn(parameter.shape, generator=generator))
    return list(parameters.values())


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_gradient_of_its_finite_differences(family, checkpointed):
    model = small_model(family)
    torch.manual_seed(1)
    shape = FAMILIES[family].latent
    with training().training_session(model, adapter()) as denoiser:
        if checkpointed:
            assert denoiser.checkpoint_blocks() > 0
        parameters = started(denoiser)
        conds = [denoiser.model_conditions(text(family, 7, seed), torch.zeros(shape)) for seed in (1, 2)]
        x, wanted, t = torch.randn(2, *shape), torch.randn(2, *shape), torch.tensor([300, 700])

        def loss():
            return (denoiser.predict(x, t, conds, adapter=True) - wanted).square().mean()

        first = loss()
        with torch.no_grad():
            torch.testing.assert_close(first.detach(), loss(), rtol=1e-5, atol=1e-6)
        second = loss()  # the first step with gradients looks at what the network overwrites
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
        grads = torch.autograd.grad(second, parameters, allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in grads)
        norm = torch.stack([g.square().sum() for g in grads if g is not None]).sum().sqrt()
        length = 0.003 * float(second.detach()) / float(norm)  # in all, the loss changes by some thousandths
        values = []
        for step in (-1.0, 1.0):
            with torch.no_grad():
                for p, g in zip(parameters, grads, strict=True):
                    if g is not None:
                        p += step * length * g / norm
                values.append(loss().double())
                for p, g in zip(parameters, grads, strict=True):
                    if g is not None:
                        p -= step * length * g / norm
        slope = (values[1] - values[0]) / (2 * length)
        assert float(slope) == pytest.approx(float(norm), rel=0.03)


def test_an_unknown_operation_without_gradient_is_refused_in_one_sentence():
    core = host.pack("dco_core.network.out_of_place")
    error = host.pack("dco_core.errors").DCOError
    x = torch.ones(3, requires_grad=True)
    y = x.exp()
    y.add_(1)
    with pytest.raises(error, match="cannot be trained here: train on another model"), core.clear_refusal():
        y.sum().backward()
    with pytest.raises(RuntimeError, match="memory") as raised, core.clear_refusal():
        raise RuntimeError("out of memory")
    assert not isinstance(raised.value, error)


ROPE = ["apply_rope", "apply_rope1", "apply_rope_split_half", "apply_rope_split_half1", "rms_rope", "rms_rope1",
        "rms_rope_split_half", "rms_rope_split_half1"]  # fmt: skip


@pytest.mark.parametrize("name", ROPE)
def test_fused_rope_has_the_gradient_of_plain_rope(name):
    """Ernie, Cosmos Predict2 and Anima call these while training."""
    host.pack("nodes.host.training.fused_rope").differentiable_rope()
    plain = getattr(pytest.importorskip("comfy_kitchen.backends.eager.rope"), name)
    fused = getattr(torch.ops.comfy_kitchen, name)
    torch.manual_seed(0)
    x = [torch.randn(2, 5, 3, 8, requires_grad=True) for _ in range(1 if name.endswith("1") else 2)]
    freqs = torch.randn(1, 5, 1, 4, 2, 2)
    scales = [torch.rand(8, requires_grad=True) for _ in x] if name.startswith("rms") else []

    def gradients(function):
        out = function(*x, freqs, *scales)
        out = (out,) if torch.is_tensor(out) else out
        weights = [torch.arange(o.numel(), dtype=o.dtype).reshape(o.shape).cos() for o in out]
        loss = sum((o.square() * w).sum() for o, w in zip(out, weights, strict=True))
        return [loss.detach(), *torch.autograd.grad(loss, [*x, *scales])]

    for a, b in zip(gradients(fused), gradients(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# ---- inpainting ----


def inpainted(family):
    """(picture, mask, the host's own CONDITIONING for it), whose mask is not symmetric."""
    import nodes as host_nodes

    generator = torch.Generator().manual_seed(3)
    picture = torch.rand(64, 64, 3, generator=generator)
    mask = torch.zeros(64, 64)
    mask[8:40, 24:64] = 1.0
    vae = PictureVAE(FAMILIES[family].latent[0])
    positive, negative, _ = host_nodes.InpaintModelConditioning().encode(
        text(family, 7, 1), text(family, 5, 2), picture[None], vae, mask[None]
    )
    return picture, mask, positive, negative, vae


INPAINTING = ["sd15-inpaint", "flux-fill"]


@pytest.mark.parametrize("family", INPAINTING)
def test_inpainting_models_see_what_sampling_shows_them(family):
    """With a mask: the mask, and the picture without what it covers. Without: nothing is given, all is painted."""
    picture, mask, positive, _, vae = inpainted(family)
    model = small_model(family)
    inpainting = host.pack("nodes.host.training.inpainting")
    conditioning = host.pack("nodes.host.training.conditioning")
    latent = vae.encode(picture[None])[0]
    assert inpainting.takes_mask(model, latent)
    ours = conditioning.with_size(text(family, 7, 1), inpainting.entries(vae, picture, mask))
    with training().training_session(model, adapter()) as denoiser:
        given = denoiser.model_conditions(ours, latent)["c_concat"].cond[0]
        nothing = denoiser.model_conditions(text(family, 7, 1), latent)["c_concat"].cond[0]
    zeros = torch.zeros(1, *latent.shape)
    by_host = model.model.concat_cond(noise=zeros, latent_image=zeros, device=zeros.device, **positive[0][1])[
        0
    ]
    assert torch.equal(given, by_host)
    cells = torch.zeros(8, 8)
    cells[1:5, 3:8] = 1
    masks, shown = (given[:1], given[1:]) if family == "sd15-inpaint" else (given[16:], given[:16])
    assert torch.equal(masks, cells.expand_as(masks))
    covered = shown[:, cells.bool()]
    torch.testing.assert_close(covered, covered[:, :1].expand_as(covered))  # one grey: nothing of the answer
    assert shown[:, ~cells.bool()].std(1).max() > 0
    whole = nothing[:1] if family == "sd15-inpaint" else nothing[16:]
    assert whole.min() == 1
    rest = nothing[1:] if family == "sd15-inpaint" else nothing[:16]
    assert torch.equal(rest, rest[:, :1, :1].expand_as(rest))


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_other_models_are_given_no_mask(family):
    assert not host.pack("nodes.host.training.inpainting").takes_mask(
        small_model(family), torch.zeros(FAMILIES[family].latent)
    )


@pytest.mark.parametrize("family", ["hunyuan-video-i2v", "wan-i2v"])
def test_what_is_to_be_learned_is_never_shown(family):
    """Families that show the network a latent take the start of sampling for it, which is empty without a picture."""
    latent = torch.randn(FAMILIES[family].latent)
    with training().training_session(small_model(family), adapter()) as denoiser:
        assert not denoiser.model_conditions(text(family, 7, 1), latent)["c_concat"].cond.any()
    assert not host.pack("nodes.host.training.inpainting").takes_mask(small_model(family), latent)


def a_lora(family):
    """A LoRA from a session on the inpainting model, as the trainer hands it on; (tensors, theta's prediction)."""
    _, _, positive, _, _ = inpainted(family)
    model = small_model(family)
    shape = FAMILIES[family].latent
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(4))
    with training().training_session(model, adapter()) as denoiser:
        parameters = started(denoiser)
        conds = denoiser.model_conditions(positive, torch.zeros(shape))
        optimizer = torch.optim.SGD(parameters, lr=1e-3)
        denoiser.predict(x, torch.tensor([500]), [conds], adapter=True).square().mean().backward()
        optimizer.step()
        names = host.pack("nodes.host.layer_names").kohya_names(model)
        lora = host.pack("dco_core.lora").to_tensors(denoiser.weights(), keys=names)
        with torch.no_grad():
            output = denoiser.predict(x, torch.tensor([500]), [conds], adapter=True)
    return dict(lora), x, conds, output


@pytest.mark.parametrize("family", INPAINTING)
def test_an_inpainting_lora_loads_and_guidance_agrees(family):
    lora, x, conds, output = a_lora(family)
    _, _, positive, negative, _ = inpainted(family)
    case = Case(family, lora=lora)
    case.positive, case.negative = positive, negative
    case.check()
    with training().training_session(case.theta, None) as merged, torch.no_grad():
        by_host = merged.predict(x, torch.tensor([500]), [conds], adapter=False)
    torch.testing.assert_close(output, by_host, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [*INPAINTING, "sd15"])
def test_pictures_with_and_without_masks_train_together(family):
    """From references to a run of the trainer; only an inpainting model is given what the mask leaves."""
    config = host.pack("dco_core.training.config").TrainingConfig(steps=2, batch_size=2, beta=1.0)
    picture, mask, _, _, vae = inpainted(family)
    given = host.pack("dco_core.data.folders").Picture
    pictures = [given("masked", picture, mask, "a dog"), given("whole", picture.clone(), None, "a dog")]
    ours, prepared = prepare(small_model(family), OneText(text(family, 7, 1)), vae, pictures)
    assert [bool(e.shown) for e in prepared._encoded] == [family != "sd15", False]
    with ours.training(adapter(), False, "auto") as denoiser:
        examples = prepared.examples(denoiser)
        assert [e.mask is None for e in examples] == [False, True]
        run = host.pack("dco_core.training.trainer").Training(denoiser, examples, config)
        run.run()
    assert [r.skipped for r in run.history] == [False, False]


@pytest.mark.parametrize("family", ["wan", "qwen-image", "hunyuan-video", "ltxv"])
def test_masks_weight_every_frame_of_their_own_sample(family):
    """Masks are pictures; latents of these families have frames."""
    examples_of, draws_of = host.pack("dco_core.training.examples"), host.pack("dco_core.training.draws")
    predictions = host.pack("dco_core.training.predictions")
    config = host.pack("dco_core.training.config").TrainingConfig(steps=1, batch_size=3, beta=1.0)
    shape = FAMILIES[family].latent
    torch.manual_seed(0)
    masks = [(torch.rand(shape[-2:]) > 0.5).float() for _ in range(2)] + [None]
    with training().training_session(small_model(family), adapter()) as denoiser:
        conds = denoiser.model_conditions(text(family, 7, 1), torch.zeros(shape))
        examples = [examples_of.Example(torch.randn(shape), conds, mask=m) for m in masks]
        draws = next(draws_of.random_draws(examples, len(denoiser.schedule), config))
        with torch.no_grad():
            (found,) = predictions.predict(denoiser, examples, draws, adapter=False)
            error = host.pack("dco_core.losses").mean_squared_error(found.output, found.target, found.mask)
    for place, output in zip(found.places, error.tolist(), strict=True):
        squared = (found.output - found.target)[found.places.index(place)].square()
        mask = masks[draws[place].image]
        cells = squared if mask is None else squared[..., mask.bool()]
        assert output == pytest.approx(float(cells.mean()), rel=1e-4)
