"""The trainer against an independent replay in plain torch, without peft and without our loss code."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from dco_core.errors import DCOError
from dco_core.lora import LoraLayer
from dco_core.network.lora_layers import AdapterConfig, adapter_off, add_adapter, target_modules
from dco_core.schedules import Schedule
from dco_core.training.config import TrainingConfig
from dco_core.training.draws import random_draws
from dco_core.training.examples import Example, Prompt
from dco_core.training.learned_tokens import LearnedTokens
from dco_core.training.objectives import batch_errors
from dco_core.training.trainer import evaluate, train
from tests.small_network import Denoiser, Network

RANK, LR, STEPS = 3, 1e-3, 12


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Network().requires_grad_(False)


@pytest.fixture
def examples():
    g = torch.Generator().manual_seed(1)
    return [Example(*(torch.randn(s, generator=g) for s in ((6, 2, 2), (4, 5), (4, 5)))) for _ in range(3)]


def recorded_draws(batch_size, examples, steps=STEPS):
    config = TrainingConfig(batch_size=batch_size, offset_noise=0.1, seed=5)
    stream = random_draws(examples, 1000, config)
    return [next(stream) for _ in range(steps)]


def replay(base, examples, draws, config, start):
    """Algorithm 1 with functional LoRA: {name: (A, B)} -> losses and final weights."""
    lora = {
        name: (a.clone().requires_grad_(), torch.zeros(b, RANK).requires_grad_())
        for name, (a, b) in start.items()
    }
    adam = {id(p): [torch.zeros_like(p), torch.zeros_like(p)] for pair in lora.values() for p in pair}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = torch.cumprod(1 - betas, 0).float()

    def predict(x, t, context, with_lora):
        net = copy.deepcopy(base)
        for name, (a, b) in lora.items():
            layer = net.get_submodule(name)
            weight = layer.weight.detach() + (b @ a if with_lora else 0)
            del layer.weight
            layer.weight = weight
        return net(x, t, context)

    losses, history = [], []
    for k, batch in enumerate(draws, 1):
        x0 = torch.stack([examples[d.image].latent for d in batch])
        noise = torch.stack([d.noise for d in batch])
        t = torch.tensor([d.t for d in batch])
        s = signal[t].view(-1, 1, 1, 1)
        x_t = s.sqrt() * x0 + (1 - s).sqrt() * noise
        c = torch.stack([examples[d.image].conditioning for d in batch])
        c_base = torch.stack([examples[d.image].base_conditioning for d in batch])
        theta = ((predict(x_t, t, c, True) - noise) ** 2).mean((1, 2, 3))
        phi = ((predict(x_t, t, c_base, False) - noise) ** 2).mean((1, 2, 3)).detach()
        if config.objective == "dreambooth":
            loss = theta.mean()
        elif config.reduction == "per-sample":
            loss = torch.log1p(torch.exp(1000 * config.beta * (theta - phi))).mean()
        else:
            loss = torch.log1p(torch.exp(1000 * config.beta * (theta - phi).mean()))
        parameters = [p for pair in lora.values() for p in pair]
        grads = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
        clip = min(1.0, 1.0 / (norm + 1e-6))
        with torch.no_grad():
            for p, g in zip(parameters, grads, strict=True):
                m, v = adam[id(p)]
                p.mul_(1 - LR * 1e-4)
                m.mul_(0.9).add_(0.1 * g * clip)
                v.mul_(0.999).add_(0.001 * (g * clip) ** 2)
                p.sub_(LR * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8))
        losses.append(loss.item())
        history.append({name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in lora.items()})
    return losses, history


@pytest.mark.parametrize(
    ("objective", "reduction", "batch"),
    [
        ("dco", "per-sample", 1),
        ("dco", "per-sample", 2),
        ("dco", "batch-mean", 2),
        ("dreambooth", "per-sample", 2),
    ],
)
def test_losses_first_update_and_final_weights_match_an_independent_replay(
    base, examples, objective, reduction, batch
):
    draws = recorded_draws(batch, examples)
    config = TrainingConfig(
        steps=STEPS, batch_size=batch, learning_rate=LR, objective=objective, reduction=reduction, beta=0.05
    )
    adapter = AdapterConfig(rank=RANK, layers="attention", seed=3)
    denoiser = Denoiser(copy.deepcopy(base), Schedule.stable_diffusion(), adapter)
    start = {n: (layer.down, layer.up.shape[0]) for n, layer in denoiser.lora().items()}
    losses, updates = [], []

    def on_step(report):
        losses.append(report.loss)
        updates.append(denoiser.lora())

    train(denoiser, examples, config, on_step, draws=iter(draws))
    expected, history = replay(base, examples, draws, config, start)
    assert set(start) == {"attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"}
    assert losses == pytest.approx(expected, rel=2e-5, abs=1e-6)
    for k in (0, -1):
        for name, (a, b) in history[k].items():
            torch.testing.assert_close(updates[k][name].down, a, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(updates[k][name].up, b, rtol=1e-4, atol=1e-6)


def test_the_same_seed_trains_the_same_weights_and_another_does_not(base, examples):
    def run(seed):
        denoiser = Denoiser(
            copy.deepcopy(base), Schedule.stable_diffusion(), AdapterConfig(rank=2, seed=seed)
        )
        return train(denoiser, examples, TrainingConfig(steps=5, seed=seed, learning_rate=1e-2))

    first, again, other = run(1), run(1), run(2)
    assert all(
        torch.equal(first[n].up, again[n].up) and torch.equal(first[n].down, again[n].down) for n in first
    )
    assert not torch.equal(first["attn2.to_q"].up, other["attn2.to_q"].up)


def test_training_lowers_the_validation_loss_and_leaves_the_base_untouched(base, examples):
    network = copy.deepcopy(base)
    denoiser = Denoiser(network, Schedule.stable_diffusion(), AdapterConfig(rank=4))
    config = TrainingConfig(steps=60, learning_rate=1e-2, beta=0.05, batch_size=2)
    validation_draws = recorded_draws(2, examples, steps=20)
    before = evaluate(denoiser, examples, config, validation_draws)
    train(denoiser, examples, config)
    assert evaluate(denoiser, examples, config, validation_draws) < before
    trained = {n.replace(".base_layer", ""): p for n, p in network.named_parameters() if "lora_" not in n}
    assert all(torch.equal(p, trained[n]) for n, p in base.named_parameters())


def test_before_training_theta_is_phi_and_the_loss_is_log_two(base, examples):
    same = [Example(e.latent, e.conditioning) for e in examples]
    denoiser = Denoiser(copy.deepcopy(base), Schedule.stable_diffusion(), AdapterConfig(rank=2))
    loss = evaluate(denoiser, same, TrainingConfig(), recorded_draws(1, examples, 4))
    assert loss == pytest.approx(math.log(2))


def test_adapter_off_gives_the_base_exactly_and_on_again_afterwards(base, examples):
    network = copy.deepcopy(base)
    parameters = add_adapter(network, AdapterConfig(rank=2))
    for p in parameters.values():
        p.data.normal_()
    x, t, c = examples[0].latent[None], torch.tensor([10]), examples[0].conditioning[None]
    changed = network(x, t, c)
    with adapter_off(network):
        assert torch.equal(network(x, t, c), base(x, t, c))
        assert all(p.requires_grad for p in parameters.values())
    assert torch.equal(network(x, t, c), changed)
    assert not torch.allclose(changed, base(x, t, c))


def test_half_precision_networks_get_fp32_adapters(base):
    parameters = add_adapter(copy.deepcopy(base).half(), AdapterConfig(rank=2))
    assert {p.dtype for p in parameters.values()} == {torch.float32}


def test_an_exception_in_the_callback_keeps_what_was_trained(base, examples):
    denoiser = Denoiser(copy.deepcopy(base), Schedule.stable_diffusion(), AdapterConfig(rank=2))

    def stop(report):
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(denoiser, examples, TrainingConfig(steps=100, learning_rate=1e-2), stop)
    assert all(layer.up.abs().max() > 0 for layer in denoiser.lora().values())


def test_every_image_is_seen_equally_often(examples):
    stream = random_draws(examples, 1000, TrainingConfig(batch_size=2))
    seen = [d.image for _ in range(30) for d in next(stream)]
    assert [seen.count(i) for i in range(3)] == [20, 20, 20]


def test_draws_can_begin_anywhere(examples):
    examples = [*examples, dataclasses.replace(examples[0], prior=True)]
    config = TrainingConfig(batch_size=2, offset_noise=0.1, seed=3)
    stream = random_draws(examples, 1000, config)
    batches = [next(stream) for _ in range(9)]
    for batch, again in zip(batches[5:], random_draws(examples, 1000, config, start=5), strict=False):
        assert [(d.image, d.t) for d in batch] == [(d.image, d.t) for d in again]
        assert all(torch.equal(a.noise, b.noise) for a, b in zip(batch, again, strict=True))
    other = next(random_draws(examples, 1000, dataclasses.replace(config, seed=4), start=8))
    assert not torch.equal(other[0].noise, batches[8][0].noise)


def test_offset_noise_is_one_constant_per_channel(examples):
    plain = next(random_draws(examples, 1000, TrainingConfig(seed=4)))[0]
    offset = next(random_draws(examples, 1000, TrainingConfig(seed=4, offset_noise=0.5)))[0]
    difference = (offset.noise - plain.noise) / 0.5
    torch.testing.assert_close(difference, difference[:, :1, :1].expand_as(difference))
    assert difference.std() > 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"beta": 0.0}, "beta is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"objective": "magic"}, "'magic'"),
        ({"reduction": "sum"}, "'sum'"),
        ({"offset_noise": -0.1}, "offset_noise is -0.1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        ({"weighting": "snr"}, "weighting 'snr'"),
        ({"caption_dropout": 1.0}, "caption_dropout is 1"),
        ({"target_gate": 0.5}, "target_gate is 0.5"),
        ({"prior_weight": -1.0}, "prior_weight is -1"),
        ({"token_learning_rate": 0.0}, "token_learning_rate is 0"),
    ],
)
def test_bad_configurations_are_refused_before_the_first_step(base, examples, change, words):
    denoiser = Denoiser(copy.deepcopy(base), Schedule.stable_diffusion(), AdapterConfig(rank=2))
    with pytest.raises(DCOError, match=words):
        train(denoiser, examples, TrainingConfig(**change), lambda report: pytest.fail("a step was made"))


def test_bad_examples_are_refused_before_the_first_step(base, examples):
    denoiser = Denoiser(copy.deepcopy(base), Schedule.stable_diffusion(), AdapterConfig(rank=2))
    with pytest.raises(DCOError, match="no images"):
        train(denoiser, [], TrainingConfig())
    broken = Example(torch.full((6, 2, 2), math.nan), examples[0].conditioning)
    with pytest.raises(DCOError, match="image 2 holds NaN"):
        train(denoiser, [examples[0], broken], TrainingConfig())
    empty = dataclasses.replace(examples[1], mask=torch.zeros(2, 2))
    with pytest.raises(DCOError, match="mask of image 2 is empty"):
        train(denoiser, [examples[0], empty], TrainingConfig())


def test_pictures_of_different_size_share_a_batch(base, examples):
    """Each size goes through the network by itself; the loss is that of both, in the batch's order."""
    wide = Example(torch.randn(6, 2, 3), *(e.conditioning for e in examples[:2]))
    mixed = [examples[0], wide, examples[2]]
    denoiser = Denoiser(copy.deepcopy(base), Schedule.stable_diffusion(), AdapterConfig(rank=2))
    (batch,) = recorded_draws(3, mixed, steps=1)
    together = batch_errors(denoiser, mixed, batch, adapter=True)
    apart = torch.cat([batch_errors(denoiser, mixed, [draw], adapter=True) for draw in batch])
    torch.testing.assert_close(together, apart)
    losses = []
    train(denoiser, mixed, TrainingConfig(steps=2, batch_size=3), lambda r: losses.append(r.loss))
    assert losses[0] != losses[1]


def test_the_posterior_of_the_vae_is_sampled_in_every_draw(base, examples):
    spread = [dataclasses.replace(e, std=torch.full_like(e.latent, 0.5)) for e in examples]
    (draw,), (again,) = recorded_draws(1, spread, steps=2)
    assert draw.posterior is not None and not torch.equal(draw.posterior, again.posterior)
    denoiser = Denoiser(copy.deepcopy(base), Schedule.flow(), AdapterConfig(rank=2))
    sampled = examples[draw.image].latent + 0.5 * draw.posterior
    oracle = [dataclasses.replace(e, latent=sampled) for e in examples]
    plain = dataclasses.replace(draw, posterior=None)
    torch.testing.assert_close(
        batch_errors(denoiser, spread, [draw], adapter=False),
        batch_errors(denoiser, oracle, [plain], adapter=False),
    )


def test_class_images_are_drawn_beside_the_references_and_only_for_their_objective(base, examples):
    with_prior = [*examples, dataclasses.replace(examples[0], prior=True)]
    stream = random_draws(with_prior, 1000, TrainingConfig(batch_size=2))
    for batch in (next(stream) for _ in range(6)):
        assert [with_prior[d.image].prior for d in batch] == [False, False, True, True]
    denoiser = Denoiser(copy.deepcopy(base), Schedule.stable_diffusion(), AdapterConfig(rank=2))
    with pytest.raises(DCOError, match="needs class images"):
        train(denoiser, examples, TrainingConfig(objective="dreambooth-prior"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "mapo"}, "Image 1: MaPO needs"),
        ({"objective": "output-preservation"}, "Image 1: output preservation needs a class prompt"),
        ({"caption_dropout": 0.1}, "Image 1: caption dropout needs"),
    ],
)
def test_what_an_objective_needs_is_asked_for_before_the_first_step(base, examples, changes, words):
    denoiser = Denoiser(copy.deepcopy(base), Schedule.stable_diffusion(), AdapterConfig(rank=2))
    with pytest.raises(DCOError, match=words):
        train(denoiser, examples, TrainingConfig(**changes), lambda report: pytest.fail("a step was made"))


def test_dropout_changes_training_repeats_with_the_seed_and_stays_out_of_evaluation(base, examples):
    def run(dropout, seed=0):
        denoiser = Denoiser(
            copy.deepcopy(base), Schedule.stable_diffusion(), AdapterConfig(rank=4, dropout=dropout)
        )
        config = TrainingConfig(steps=6, learning_rate=1e-2, seed=seed)
        state = torch.get_rng_state()
        lora = train(denoiser, examples, config)["attn2.to_v"].up
        assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
        validation_draws = recorded_draws(1, examples, 3)
        assert evaluate(denoiser, examples, config, validation_draws) == evaluate(
            denoiser, examples, config, validation_draws
        )
        return lora

    dropped = run(0.5)
    assert torch.equal(dropped, run(0.5))
    assert not torch.equal(dropped, run(0.0))


def test_training_goes_on_from_a_lora_of_any_ranks_and_alphas(base, examples):
    g = torch.Generator().manual_seed(0)
    start = {
        "attn2.to_q": LoraLayer(torch.randn(2, 6, generator=g), torch.randn(6, 2, generator=g), 1.0),
        "attn2.to_v": LoraLayer(torch.randn(3, 5, generator=g), torch.randn(6, 3, generator=g), 6.0),
    }
    denoiser = Denoiser(
        copy.deepcopy(base),
        Schedule.stable_diffusion(),
        AdapterConfig(rank=8, layers="all linear", start=start),
    )
    begun = denoiser.lora()
    assert set(begun) == set(start)
    for name, layer in start.items():
        torch.testing.assert_close(begun[name].delta(), layer.delta())
        assert begun[name].rank == layer.rank and begun[name].scale == layer.scale
    x, t, c = examples[0].latent[None], torch.tensor([10]), examples[0].conditioning[None]
    merged = copy.deepcopy(base)
    for name, layer in start.items():
        merged.get_submodule(name).weight += layer.delta()
    torch.testing.assert_close(denoiser.predict(x, t, [c[0]], adapter=True), merged(x, t, c))
    trained = train(denoiser, examples, TrainingConfig(steps=2, learning_rate=1e-2))
    assert not torch.equal(trained["attn2.to_q"].up, start["attn2.to_q"].up)


def test_a_lora_of_another_model_is_no_start(base):
    wrong = {"attn2.nothing": LoraLayer(torch.ones(1, 6), torch.ones(6, 1))}
    with pytest.raises(DCOError, match="adapts attn2.nothing, which is no linear"):
        add_adapter(copy.deepcopy(base), AdapterConfig(start=wrong))
    wrong = {"attn2.to_q": LoraLayer(torch.ones(1, 9), torch.ones(6, 1))}
    with pytest.raises(DCOError, match=r"shape \(6, 9\) for attn2.to_q"):
        add_adapter(copy.deepcopy(base), AdapterConfig(start=wrong))


def test_alpha_over_rank_scales_the_lora(base, examples):
    x, t, c = examples[0].latent[None], torch.tensor([10]), examples[0].conditioning[None]
    denoiser = Denoiser(copy.deepcopy(base), Schedule.stable_diffusion(), AdapterConfig(rank=4, alpha=6.0))
    merged = copy.deepcopy(base)
    with torch.no_grad():
        for p in denoiser.trainable().values():
            p.normal_(std=0.3)
        for name in {n.rsplit(".", 1)[0] for n in denoiser.trainable()}:
            up, down = (denoiser.trainable()[f"{name}.{part}"] for part in ("up", "down"))
            merged.get_submodule(name).weight += 6.0 / 4 * up @ down
    torch.testing.assert_close(
        denoiser.predict(x, t, [c[0]], adapter=True), merged(x, t, c), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(DCOError, match="alpha is 0"):
        add_adapter(copy.deepcopy(base), AdapterConfig(alpha=0.0))


def test_a_name_filter_keeps_only_the_layers_it_names(base):
    parameters = add_adapter(copy.deepcopy(base), AdapterConfig(rank=2, name_filter="to_[qk]$"))
    assert {name.rsplit(".", 1)[0] for name in parameters} == {"attn2.to_q", "attn2.to_k"}
    with pytest.raises(DCOError, match="names like 'nowhere'"):
        add_adapter(copy.deepcopy(base), AdapterConfig(name_filter="nowhere"))
    with pytest.raises(DCOError, match=r"name_filter '\(' is not a valid regular expression"):
        add_adapter(copy.deepcopy(base), AdapterConfig(name_filter="("))


def test_tokens_train_alone_without_any_lora(base, examples):
    tokens = LearnedTokens({"dog": {"text": torch.randn(1, 5)}}, {"dog": "dog"})
    before = tokens.tensors()["dog"]["text"]

    def own():
        return torch.cat([examples[0].conditioning[:3], tokens.rows()["dog"]["text"]])

    network = copy.deepcopy(base)
    denoiser = Denoiser(network, Schedule.stable_diffusion(), None)
    alone = [Example(e.latent, own, examples[0].conditioning) for e in examples]
    # gates that are open, and no decay: nothing but the gradient moves the row
    config, reports = TrainingConfig(steps=3, beta=1e-3, weight_decay=0.0), []
    assert train(denoiser, alone, config, reports.append, tokens=tokens) == {}
    assert all(r.gate > 0.05 and r.gradient_norm > 1e-5 for r in reports)
    moved = tokens.tensors()["dog"]["text"] - before
    assert moved.norm() > config.token_learning_rate / 2
    torch.testing.assert_close(tokens.tensors()["dog"]["text"].norm(), before.norm())
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), base.parameters(), strict=True))
    with pytest.raises(DCOError, match="nothing to train"):
        train(denoiser, examples, TrainingConfig(steps=3))


def test_rank_zero_and_unknown_layers_are_refused(base):
    with pytest.raises(DCOError, match="rank is 0"):
        add_adapter(copy.deepcopy(base), AdapterConfig(rank=0))
    with pytest.raises(DCOError, match="choose another set of layers"):
        add_adapter(copy.deepcopy(base), AdapterConfig(layers=r"^nothing$"))
    with pytest.raises(DCOError, match="regular expression"):
        add_adapter(copy.deepcopy(base), AdapterConfig(layers="("))


NAMES = """input_blocks.1.1.proj_in input_blocks.1.1.transformer_blocks.0.attn1.to_q
input_blocks.1.1.transformer_blocks.0.attn2.to_out.0 input_blocks.1.1.transformer_blocks.0.ff.net.0.proj
down_blocks.0.attentions.0.proj_in down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k
down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2 double_blocks.0.img_attn.qkv double_blocks.0.img_mlp.0
layers.0.attention.qkv layers.0.feed_forward.w1 time_embed.0""".split()


@pytest.mark.parametrize(
    ("layers", "expected"), [("attention", 5), ("attention and feed-forward", 9), ("all linear", 12)]
)
def test_layer_choices_on_the_names_of_several_families(layers, expected):
    tree = nn.Module()
    for name in NAMES:
        parent = tree
        *parts, last = name.split(".")
        for part in parts:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]
        parent.add_module(last, nn.Linear(2, 2))
    assert len(target_modules(tree, layers)) == expected


def test_each_prompt_of_an_example_is_the_one_asked_for():
    x = torch.zeros(1, 1, 1)
    full = Example(x, "own", "base", class_conditioning=lambda: "class", empty_conditioning="empty",
                   preserved=("first", lambda: "second"))  # fmt: skip
    assert [full.conditioning_of(p, 1) for p in Prompt] == ["own", "base", "class", "empty", "second"]
    bare = Example(x, lambda: "own")
    assert bare.conditioning_of(Prompt.OWN) == bare.conditioning_of(Prompt.BASE) == "own"
    for prompt in (Prompt.CLASS, Prompt.EMPTY, Prompt.PRESERVED):
        with pytest.raises(DCOError, match=f"no {prompt.value} conditioning"):
            bare.conditioning_of(prompt)
