"""Previews: the sampler against plain loops, and training that does not notice them."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from dco_core.drawing.preview_sheet import preview_sheet
from dco_core.errors import DCOError
from dco_core.network.lora_layers import ADAPTER, AdapterConfig, lora_layers
from dco_core.sampling import sample as sample_each
from dco_core.schedules import Schedule
from dco_core.toy_world.model import ToyDenoiser, encode, load_text_encoder
from dco_core.training.config import TrainingConfig
from dco_core.training.examples import Example
from dco_core.training.learned_tokens import LearnedTokens
from dco_core.training.previews import Preview, PreviewPrompt, Previews
from dco_core.training.trainer import Training
from tests.small_network import Denoiser, small_base, small_examples
from tests.toy_sampler import toy_sample

SCALES = [(0.0, 7.5), (7.5, 7.5), (3.0, 7.5), (0.0, 1.0), (1.0, 1.0), (0.4, 1.0)]
SCHEDULES = {
    "epsilon": Schedule.stable_diffusion(),
    "v": Schedule.stable_diffusion("v"),
    "flow": Schedule.flow(),
    "shifted flow": Schedule.flow(shift=3.0),
}


def moved(denoiser):
    """The denoiser with an adapter that does something."""
    g = torch.Generator().manual_seed(3)
    for p in denoiser.trainable().values():
        p.data = torch.randn(p.shape, generator=g) * 0.3
    return denoiser


def small(schedule=None, dropout=0.0):
    return moved(
        Denoiser(
            small_base(), schedule or Schedule.stable_diffusion(), AdapterConfig(rank=2, dropout=dropout)
        )
    )


def texts(n=3):
    g = torch.Generator().manual_seed(4)
    return [torch.randn(4, 5, generator=g) for _ in range(n)]


def noise(n=2, shape=(6, 2, 2)):
    return torch.randn((n, *shape), generator=torch.Generator().manual_seed(5))


def sample(denoiser, own, base, empty, noise, **settings):
    """With one conditioning of each kind for all samples."""
    rows = (None if one is None else [one] * len(noise) for one in (own, base, empty))
    return sample_each(denoiser, *rows, noise, **settings)


def theta_of(denoiser):
    """A plain network with the LoRA added to its weights."""
    merged = small_base()
    for name, layer in denoiser.lora().items():
        merged.get_submodule(name).weight.data += layer.scale * layer.up @ layer.down
    return merged


def guided(theta, phi, x, t, own, base, empty, w_rg, w_text):
    def predicted(net, text):
        return net(x, torch.full((len(x),), t), text.expand(len(x), -1, -1))

    return (
        w_rg * (predicted(theta, own) - predicted(phi, base))
        + w_text * (predicted(phi, base) - predicted(phi, empty))
        + predicted(phi, empty)
    )


@pytest.mark.parametrize("w_rg, w_text", SCALES)
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_epsilon_is_ddim_written_by_hand(w_rg, w_text, steps):
    denoiser, (own, base, empty) = small(), texts()
    theta, phi = theta_of(denoiser), small_base()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = torch.cumprod(1 - betas, 0).float()  # alpha squared
    times = [999 - int(i * 1000 / steps) for i in range(steps)]
    x = noise()
    for t, following in zip(times, [*times[1:], None], strict=True):
        eps = guided(theta, phi, x, t, own, base, empty, w_rg, w_text)
        x0 = (x - (1 - signal[t]).sqrt() * eps) / signal[t].sqrt()
        if following is not None:
            x = signal[following].sqrt() * x0 + (1 - signal[following]).sqrt() * eps
    made = sample(denoiser, own, base, empty, noise(), w_rg=w_rg, w_text=w_text, steps=steps)
    assert ((made - x0).norm() / x0.norm()).item() < 1e-3


@pytest.mark.parametrize("w_rg, w_text", SCALES)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_eulers_method(w_rg, w_text, shift):
    denoiser, (own, base, empty) = small(Schedule.flow(shift=shift)), texts()
    theta, phi = theta_of(denoiser), small_base()
    x, steps = noise(), 5
    times = [999 - 200 * i for i in range(steps)]
    sigmas = [shift * (t + 1) / 1000 / (1 + (shift - 1) * (t + 1) / 1000) for t in times] + [0.0]
    for i, t in enumerate(times):
        x = x + (sigmas[i + 1] - sigmas[i]) * guided(theta, phi, x, t, own, base, empty, w_rg, w_text)
    made = sample(denoiser, own, base, empty, noise(), w_rg=w_rg, w_text=w_text, steps=steps)
    assert ((made - x).norm() / x.norm()).item() < 1e-4


def test_v_gives_what_the_same_network_gives_in_epsilon():
    class AsEpsilon(Denoiser):
        def forward(self, x_t, t, conditioning):
            alpha, sigma = SCHEDULES["v"].at(t, x_t)
            return alpha * super().forward(x_t, t, conditioning) + sigma * x_t

    own, base, empty = texts()
    network = small(SCHEDULES["v"])
    other = moved(AsEpsilon(small_base(), SCHEDULES["epsilon"], AdapterConfig(rank=2)))
    one, two = (sample(d, own, base, empty, noise(), w_rg=3.0, w_text=7.5, steps=6) for d in (network, other))
    assert ((one - two).norm() / two.norm()).item() < 1e-3


@pytest.mark.parametrize("w_rg, w_text", [(0.0, 2.0), (2.0, 2.0), (1.4, 2.0)])
def test_the_toy_world_looks_as_its_own_sampler_draws_it(w_rg, w_text):
    denoiser = moved(ToyDenoiser(AdapterConfig(rank=2)))
    for p in denoiser.trainable().values():
        p.data *= 0.3
    own, empty = encode(load_text_encoder(), ["a photo of a <dog> on grass", ""])
    start = noise(1, (3, 32, 32))
    made = sample(denoiser, own, None, empty, start, w_rg=w_rg, w_text=w_text, steps=8)
    expected = toy_sample(denoiser.network, own[None], empty[None], start, w_rg, w_text, steps=8)
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_w_rg_0_is_the_network_without_adapter_bit_for_bit(schedule):
    _, base, empty = texts()
    without = Denoiser(small_base(), schedule, None)
    made, plain = (
        sample(d, None, base, empty, noise(), w_rg=0.0, w_text=7.5, steps=6)
        for d in (small(schedule), without)
    )
    assert torch.equal(made, plain)


@pytest.mark.parametrize("w_rg, w_text", SCALES)
def test_only_what_counts_is_evaluated(w_rg, w_text):
    denoiser, (own, base, empty) = small(), texts()
    asked = []
    predict = denoiser.predict

    def counted(x, t, conditioning, *, adapter):
        assert all(c is conditioning[0] for c in conditioning) and len(conditioning) == len(x)
        asked.append(("theta" if adapter else "phi", "empty" if conditioning[0] is empty else "prompt"))
        return predict(x, t, conditioning, adapter=adapter)

    denoiser.predict = counted
    sample(denoiser, own, base, empty, noise(), w_rg=w_rg, w_text=w_text, steps=3)
    expected = [("theta", "prompt")] * (w_rg != 0)
    expected += [("phi", "prompt")] * (w_rg != w_text) + [("phi", "empty")] * (w_text != 1)
    assert asked == expected * 3


def test_a_conditioning_may_be_a_function_and_is_read_once():
    denoiser, (own, base, empty) = small(), texts()
    read = []

    def tokens():
        read.append(torch.is_grad_enabled())
        return own

    scales = {"w_rg": 3.0, "w_text": 7.5, "steps": 4}
    made = sample(denoiser, tokens, base, empty, noise(), **scales)
    assert read == [False]
    assert torch.equal(made, sample(denoiser, own, base, empty, noise(), **scales))
    assert torch.equal(
        sample(denoiser, own, None, empty, noise(), **scales),
        sample(denoiser, own, own, empty, noise(), **scales),
    )


def test_bad_input_is_refused():
    denoiser, (own, base, _) = small(), texts()
    with pytest.raises(DCOError, match="phi_uncond"):
        sample(denoiser, own, base, None, noise(), w_rg=3.0, w_text=7.5, steps=4)
    for steps in (0, 1001):
        with pytest.raises(DCOError, match=f"{steps} steps"):
            sample(denoiser, own, base, own, noise(), w_rg=3.0, w_text=7.5, steps=steps)
    with pytest.raises(DCOError, match="no prompt"):
        Previews(denoiser, [], (6, 2, 2), 0, w_rg=3.0, w_text=7.5)


class Stop(BaseException):
    pass


def test_every_step_can_be_interrupted_and_leaves_the_adapter_on():
    denoiser, (own, base, empty) = small(), texts()
    calls = []

    def callback():
        calls.append(1)
        if len(calls) == 3:
            raise Stop

    with pytest.raises(Stop):
        sample(denoiser, own, base, empty, noise(), w_rg=3.0, w_text=7.5, steps=9, callback=callback)
    assert not any(layer._disable_adapters for _, layer in lora_layers(denoiser.network))
    assert torch.is_grad_enabled()


def state(denoiser):
    """Whatever training could notice."""
    network = denoiser.network
    return {
        "random": torch.get_rng_state().tolist(),
        "grad": torch.is_grad_enabled(),
        "weights": {n: p.detach().clone() for n, p in network.named_parameters()},
        "versions": {n: p._version for n, p in network.named_parameters()},
        "requires_grad": {n: p.requires_grad for n, p in network.named_parameters()},
        "grads": {n: None if p.grad is None else p.grad.clone() for n, p in network.named_parameters()},
        "modes": {n: m.training for n, m in network.named_modules()},
        "disabled": [layer._disable_adapters for _, layer in lora_layers(network)],
        "active": [list(layer.active_adapters) for _, layer in lora_layers(network)],
        "dropout": [layer.lora_dropout[ADAPTER].training for _, layer in lora_layers(network)],
    }


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if torch.is_tensor(a) and torch.is_tensor(b) else a == b


def test_nothing_that_training_depends_on_changes():
    denoiser, (own, base, empty) = small(dropout=0.5), texts()
    denoiser.predict(noise(), torch.tensor([3, 4]), [own, own], adapter=True).square().sum().backward()
    before = state(denoiser)
    assert any(g is not None for g in before["grads"].values())
    prompts = [PreviewPrompt("a <dog>", own, base, empty)]
    shots = Previews(denoiser, prompts, (6, 2, 2), 0, w_rg=3.0, w_text=7.5, steps=4)
    first = shots.take()
    assert same(state(denoiser), before)
    assert all(torch.equal(a.latent, b.latent) for a, b in zip(first, shots.take(), strict=True))
    assert not any(shot.latent.requires_grad for shot in first)


CONFIGURATIONS = {
    "dco": {},
    "dropout": {"dropout": 0.5},
    "look ahead, batch 2, accumulated": {"look_ahead": 4, "batch_size": 2, "gradient_accumulation_steps": 2},
    "ema and best": {"ema_decay": 0.9, "validation_steps": 2, "keep": "best"},
    "tokens": {"tokens": True},
}


def trained(every, dropout=0.0, tokens=False, **options):
    """The weights, tokens, losses and random state after a run with a preview every so many steps."""
    denoiser = Denoiser(small_base(), Schedule.stable_diffusion(), AdapterConfig(rank=2, dropout=dropout))
    examples, table = small_examples(), None
    if tokens:
        table = LearnedTokens({"dog": {"text": torch.ones(1, 5)}}, {"dog": "dog"})
        row = table.rows()["dog"]["text"]
        examples = [
            dataclasses.replace(
                e,
                conditioning=lambda rest=e.conditioning[:3]: torch.cat([rest, row]),
                base_conditioning=e.conditioning,
            )
            for e in examples
        ]
    config = TrainingConfig(**{"steps": 7, "learning_rate": 1e-2, "seed": 7, **options})
    training = Training(denoiser, examples, config, table)
    example: Example = examples[0]
    prompt = PreviewPrompt("a <dog>", example.conditioning, example.base_conditioning, texts()[2])
    shots = Previews(denoiser, [prompt], (6, 2, 2), 1, w_rg=3.0, w_text=7.5, steps=3)
    seen = []

    def on_step(report):
        if every and report.step % every == 0:
            with training.result():
                seen.append(shots.take())

    torch.manual_seed(11)
    training.run(on_step)
    weights = {name: p.detach().clone() for name, p in denoiser.trainable().items()}
    with training.result():
        weights |= {f"result {n}": layer.up for n, layer in denoiser.lora().items()}
    if table is not None:
        weights["tokens"] = table.tensors()["dog"]["text"]
    return weights, [r.loss for r in training.history], torch.get_rng_state(), seen


@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_training_with_previews_is_training_without(options):
    weights, losses, random, seen = trained(2, **options)
    plain_weights, plain_losses, plain_random, _ = trained(0, **options)
    assert same(weights, plain_weights)
    assert losses == plain_losses
    assert torch.equal(random, plain_random)
    assert len(seen) == 3
    base, own, guidance = zip(*seen, strict=True)
    assert all(torch.equal(p.latent, base[0].latent) for p in base)
    assert not torch.equal(own[0].latent, own[2].latent)
    assert not torch.equal(guidance[0].latent, guidance[2].latent)


def test_pictures_are_those_of_sample_and_each_prompt_has_its_own_noise():
    denoiser, (own, base, empty) = small(), texts()
    prompts = [PreviewPrompt(text, own, base, empty) for text in ("a <dog>", "a <dog> runs")]
    shots = Previews(denoiser, prompts, (6, 2, 2), 41, w_rg=2.0, w_text=5.0, steps=3)
    taken = shots.take()
    assert [p.prompt for p in taken] == ["a <dog>"] * 3 + ["a <dog> runs"] * 3
    assert [p.label for p in taken] == shots.labels * 2 == ["base model", "trained", "reward guidance 2"] * 2
    for i, shot in enumerate(taken):
        start = torch.randn(1, 6, 2, 2, generator=torch.Generator().manual_seed(41 + i // 3))
        w_rg = (0.0, 5.0, 2.0)[i % 3]
        expected = sample(denoiser, own, base, empty, start, w_rg=w_rg, w_text=5.0, steps=3)[0]
        assert torch.equal(shot.latent, expected)
    again = Previews(copy.deepcopy(denoiser), prompts, (6, 2, 2), 41, w_rg=2.0, w_text=5.0, steps=3)
    assert all(torch.equal(a.latent, b.latent) for a, b in zip(taken, again.take(), strict=True))


def test_the_base_is_sampled_once_unless_it_reads_tokens_in_training():
    own, base, empty = texts()
    counts = {}
    for name, prompt in {
        "fixed": PreviewPrompt("a", lambda: own, base, empty),
        "same": PreviewPrompt("a", own, None, empty),
        "tokens": PreviewPrompt("a", lambda: own, None, empty),
    }.items():
        denoiser, calls = small(), []
        shots = Previews(
            denoiser, [prompt], (6, 2, 2), 0, w_rg=3.0, w_text=7.5, steps=4,
            callback=lambda calls=calls: calls.append(1),
        )  # fmt: skip
        shots.take(), shots.take()
        counts[name] = len(calls)
    assert counts == {"fixed": 20, "same": 20, "tokens": 24}


def test_the_largest_seed_of_the_host_is_a_seed():
    own, base, empty = texts()
    prompts = [PreviewPrompt("a", own, base, empty), PreviewPrompt("b", own, base, empty)]
    assert len(Previews(small(), prompts, (6, 2, 2), 2**64 - 1, w_rg=3.0, w_text=7.5, steps=1).take()) == 6


def flat(colour, height=32, width=32):
    return np.full((height, width, 3), colour, np.uint8)


LABELS = ["base model", "trained", "reward guidance 3"]


def drawn(images, labels, prompt="a dog", heading="step 5"):
    return preview_sheet([Preview(prompt, label, torch.zeros(1)) for label in labels], images, heading)


def test_a_row_holds_its_pictures_and_readable_captions():
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    row = drawn([flat(c) for c in colours], LABELS)
    assert row.dtype == np.uint8 and row.ndim == 3
    for colour in colours:
        found = np.argwhere((row == colour).all(-1))
        assert len(found) == 256 * 256
        assert (np.ptp(found, axis=0) == 255).all()
    dark = (row.astype(int).sum(-1) < 3 * 128) & (np.ptp(row.astype(int), axis=-1) < 30)
    top = np.argwhere(dark)[:, 0]
    assert dark.sum() > 300 and top.max() < row.shape[0] - 256  # above the pictures
    wide = drawn([flat((0, 0, 0), 64, 16), flat((9, 9, 9), 16, 64)], ["a", "b"], "")
    assert wide.shape[1] > 2 * 256


@pytest.mark.parametrize(
    "title", ["", "x", "a photo of a <dog> " * 40, "w" * 500, "\u72ac\u306e\u5199\u771f\n\tzwei"], ids=ascii
)
def test_rows_of_different_steps_have_one_size(title):
    images, labels = [flat((9, 99, 9))] * 3, ["base model", "trained" * 40, ""]
    first, last = drawn(images, labels, title, "step 5"), drawn(images, labels, title, "step 100000")
    assert first.shape == last.shape == drawn(images, labels, "a dog").shape


def test_a_sheet_has_a_row_a_prompt():
    taken = [Preview(text, label, torch.zeros(1)) for text in ("a", "a", "b") for label in LABELS]
    images = [flat((i, 0, 0)) for i in range(9)]
    picture = preview_sheet(taken, images, "step 7")
    rows = [drawn(images[i : i + 3], LABELS, t, "step 7") for i, t in ((0, "a"), (3, "a"), (6, "b"))]
    assert np.array_equal(picture, np.concatenate(rows))
