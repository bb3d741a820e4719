"""Noise distance and column cosine, against computations written out here."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_network import Denoiser, small_base, small_examples

from dco_core.errors import DCOError
from dco_core.lora import LoraLayer, LoraWeights
from dco_core.merging.compatibility import column_cosine
from dco_core.metrics import noise_distance
from dco_core.network.lora_layers import AdapterConfig
from dco_core.schedules import Schedule

SCHEDULES = {
    "epsilon": Schedule.stable_diffusion(),
    "v": Schedule.stable_diffusion("v"),
    "flow": Schedule.flow(),
}


def trained(schedule: Schedule, strength: float = 0.3) -> Denoiser:
    """A small network with an adapter that does something."""
    denoiser = Denoiser(small_base(), schedule, AdapterConfig(rank=2))
    g = torch.Generator().manual_seed(4)
    for parameter in denoiser.trainable().values():
        parameter.data.copy_(strength * torch.randn(parameter.shape, generator=g))
    return denoiser


class Recording:
    """A denoiser that keeps what it was asked and what it answered."""

    def __init__(self, inner):
        self.inner, self.schedule, self.calls = inner, inner.schedule, []

    def predict(self, x_t, t, conditioning, *, adapter):
        output = self.inner.predict(x_t, t, conditioning, adapter=adapter)
        self.calls.append((adapter, x_t, t, torch.stack(list(conditioning)), output))
        return output


def implied_noise(schedule, x_t, output, t):
    alpha, sigma = schedule.at(t, x_t)
    return (x_t - alpha * schedule.denoised(x_t, output, t)) / sigma


@pytest.mark.parametrize("prediction", SCHEDULES)
def test_it_is_the_squared_difference_of_both_predictions_on_the_same_noise(prediction):
    schedule, examples = SCHEDULES[prediction], small_examples()
    recording = Recording(trained(schedule))
    rows = noise_distance(recording, examples, timesteps=[30, 800], draws=12, batch_size=5)
    assert [(row.t, row.draws) for row in rows] == [(30, 12), (800, 12)]
    for row in rows:
        theta, phi = (
            [c for c in recording.calls if c[0] == own and int(c[2][0]) == row.t] for own in (True, False)
        )
        x_t, t = torch.cat([c[1] for c in theta]), torch.cat([c[2] for c in theta])
        assert len(x_t) == 12 and torch.equal(x_t, torch.cat([c[1] for c in phi]))
        output = [torch.cat([c[4] for c in calls]) for calls in (theta, phi)]
        native = (output[0] - output[1]).square().flatten(1).mean(1).double()
        noises = [implied_noise(schedule, x_t.double(), s.double(), t) for s in output]
        assert row.native == pytest.approx(native.mean().item(), rel=1e-5) and row.native > 0
        assert row.deviation == pytest.approx(native.std(correction=0).item(), rel=1e-4)
        assert row.epsilon == pytest.approx((noises[0] - noises[1]).square().mean().item(), rel=1e-4)
        assert row.sigma == pytest.approx(schedule.sigma[row.t].item())


def test_theta_reads_its_own_caption_and_phi_the_base_caption():
    examples = small_examples(1)
    recording = Recording(trained(SCHEDULES["flow"]))
    noise_distance(recording, examples, timesteps=1, draws=1)
    for adapter, _, _, text, _ in recording.calls:
        assert torch.equal(text[0], examples[0].conditioning if adapter else examples[0].base_conditioning)


def test_an_adapter_that_does_nothing_has_no_distance_and_a_stronger_one_more():
    examples = [dataclasses.replace(e, base_conditioning=None) for e in small_examples()]
    values = [
        [row.native for row in noise_distance(trained(SCHEDULES["flow"], s), examples, timesteps=4, draws=6)]
        for s in (0.0, 0.1, 0.3)
    ]
    assert values[0] == [0.0] * 4
    assert all(0 < weak < strong for weak, strong in zip(values[1], values[2], strict=True))


def test_the_same_draws_for_every_model_and_the_global_generator_is_left_alone():
    examples, recordings = small_examples(), [Recording(trained(SCHEDULES["flow"], s)) for s in (0.1, 0.3)]
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    for recording in recordings:
        noise_distance(recording, examples, timesteps=3, draws=5, batch_size=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(*(r.calls for r in recordings), strict=True):
        assert torch.equal(a[1], b[1])
    first = [c for c in recordings[0].calls if c[0]]
    assert len({float(c[1].sum()) for c in first}) == len(first)  # fresh noise at every timestep
    (other, *_) = noise_distance(recordings[0], examples, timesteps=3, draws=5, seed=1)
    (same, *_) = noise_distance(recordings[0], examples, timesteps=3, draws=5, batch_size=5)
    (again, *_) = noise_distance(recordings[0], examples, timesteps=3, draws=5)
    assert same.native == pytest.approx(again.native, rel=1e-6) and other.native != again.native


def test_references_in_turn_and_no_class_image():
    examples = small_examples(3)
    examples.append(dataclasses.replace(examples[0], prior=True, latent=torch.full((6, 2, 2), 99.0)))
    recording = Recording(trained(SCHEDULES["flow"]))
    noise_distance(recording, examples, timesteps=[0], draws=6)
    x_t = torch.cat([c[1] for c in recording.calls if c[0]])
    nearest = [min(range(3), key=lambda i: (examples[i].latent - x).norm().item()) for x in x_t]
    assert sorted(nearest) == [0, 0, 1, 1, 2, 2]


def test_even_timesteps():
    assert Schedule.flow(1000).even_timesteps(4) == [125, 375, 625, 875]
    assert Schedule.flow(10).even_timesteps(10) == list(range(10))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"draws": 0}, "0 draws at 20 timesteps"),
        ({"timesteps": 0}, "at 0 timesteps"),
        ({"timesteps": [3, 1000]}, "Timestep 1000 is outside of the schedule: use 0 to 999"),
    ],
)
def test_says_what_cannot_be_measured(values, message):
    with pytest.raises(DCOError, match=message):
        noise_distance(trained(SCHEDULES["flow"]), small_examples(), **values)
    with pytest.raises(DCOError, match="no references"):
        noise_distance(trained(SCHEDULES["flow"]), [])


def test_column_cosine_is_the_mean_over_columns_of_dense_matrices():
    g = torch.Generator().manual_seed(0)
    keys = [
        f"lora_unet_input_blocks_1_1_transformer_blocks_0_attn{i}_to_{part}" for i in (1, 2) for part in "qv"
    ]

    def lora():
        layers = {
            k: LoraLayer(torch.randn(2, 6, generator=g), torch.randn(8, 2, generator=g), 2.0) for k in keys
        }
        return LoraWeights(layers)

    a, b = lora(), lora()
    dense = [{k: w.layers[k].up.double() @ w.layers[k].down.double() for k in keys} for w in (a, b)]
    expected = torch.cat([torch.cosine_similarity(dense[0][k], dense[1][k], dim=0) for k in keys]).mean()
    found = column_cosine(a, b)
    assert found["all"] == pytest.approx(expected.item(), abs=1e-6)
    assert len(found) > 1 and column_cosine(a, a)["all"] == pytest.approx(1.0)
    assert column_cosine(a, LoraWeights({})) == {}
