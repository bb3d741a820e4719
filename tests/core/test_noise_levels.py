"""Which noise levels are drawn: their distributions, the families' shifts, and runs that resume and replay."""

import itertools
import math

import pytest
import torch

from dco_core.errors import DCOError
from dco_core.schedules import Schedule
from dco_core.training.config import TIMESTEP_SAMPLINGS, TrainingConfig
from dco_core.training.draws import random_draws
from dco_core.training.noise_levels import NoiseLevels, family_levels, noise_levels, note_of
from dco_core.training.trainer import Training
from tests.small_network import Denoiser, small_base, small_examples
from tests.small_runs import Run, assert_same

LATENT = (16, 96, 128)  # 768 x 1024 pixels


def drawn(levels, count=3000, shape=LATENT):
    generator = torch.Generator().manual_seed(5)
    return torch.tensor([levels.draw(shape, generator) for _ in range(count)])


def denoiser_of(family="", schedule=None):
    found = Denoiser(small_base(), schedule or Schedule.flow(), None)
    found.family = family
    return found


def levels_of(sampling, family="", schedule=None):
    return noise_levels(denoiser_of(family, schedule), TrainingConfig(timestep_sampling=sampling))


def assert_logit_normal(times, mean):
    """logit(t) is normal with this mean and standard deviation 1; bounds of four standard errors."""
    logit = torch.logit(times.double().clamp(1e-6, 1 - 1e-6))
    error = 4 / len(times) ** 0.5
    assert logit.mean().item() == pytest.approx(mean, abs=error + 0.01)
    assert logit.std().item() == pytest.approx(1.0, abs=error)
    assert (logit < mean - 0.6745).float().mean().item() == pytest.approx(0.25, abs=error / 2)  # its lower quarter


def test_uniform_is_the_papers_and_takes_the_same_random_numbers_as_ever():
    levels = levels_of("uniform", schedule=Schedule.stable_diffusion())
    generator = torch.Generator().manual_seed(5)
    expected = [int(torch.randint(1000, (), generator=generator)) for _ in range(20)]
    assert drawn(levels, 20).tolist() == expected
    config = TrainingConfig(batch_size=2, seed=3)
    examples = small_examples()
    by_number, by_levels = random_draws(examples, 1000, config), random_draws(examples, levels, config)
    for a, b in itertools.islice(zip(by_number, by_levels, strict=True), 4):
        assert [d.t for d in a] == [d.t for d in b] and torch.equal(a[1].noise, b[1].noise)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_logit_normal_counts_in_the_schedule_and_sigmoid_in_flow_time(shift):
    schedule = Schedule.flow(shift=shift)
    t = drawn(levels_of("logit-normal", schedule=schedule))
    assert_logit_normal((t + 0.5) / 1000, 0.0)
    assert_logit_normal(schedule.sigma[t], math.log(shift))  # a shifted schedule moves it as sampling is moved
    assert_logit_normal(schedule.sigma[drawn(levels_of("sigmoid", schedule=schedule))], 0.0)
    assert_logit_normal((drawn(levels_of("logit-normal", schedule=Schedule.stable_diffusion())) + 0.5) / 1000, 0.0)


# mu at 768 x 1024 pixels, by hand from the line that each developer gives
MU = {
    "flux1": (LATENT, 0.5 + (48 * 64 - 256) * 0.65 / 3840),
    "Flux2": ((128, 48, 64), 0.5 + (48 * 64 - 256) * 0.65 / 3840),
    "QwenImage": ((16, 1, 96, 128), 0.5 + (48 * 64 - 256) * 0.4 / 7936),
    "Krea2": (LATENT, 0.5 + (48 * 64 - 256) * 0.65 / 6144),
    "LTXV": ((128, 3, 24, 32), 0.95 + (3 * 24 * 32 - 1024) * 1.1 / 3072),
}


@pytest.mark.parametrize("family", MU)
def test_shifted_is_the_flow_time_that_the_family_samples_at_this_size(family):
    schedule = Schedule.flow(shift=1.7)  # whatever the schedule itself is
    shape, mu = MU[family]
    levels = levels_of("shifted", family, schedule)
    assert levels.law.shift(shape) == pytest.approx(math.exp(mu))
    assert_logit_normal(schedule.sigma[drawn(levels, shape=shape)], mu)
    small = (shape[0], *shape[1:-2], shape[-2] // 4, shape[-1] // 4)
    assert levels.law.shift(small) < levels.law.shift(shape)


def test_the_line_and_the_shift_are_those_of_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    law = family_levels("flux1", "flow").law
    mu = calculate_shift(48 * 64, 256, 4096, 0.5, 1.15)
    assert law.shift(LATENT) == pytest.approx(math.exp(mu))
    t = torch.tensor([0.2, 0.9])
    shift = law.shift(LATENT)
    ours = shift * t / (1 + (shift - 1) * t)
    torch.testing.assert_close(FlowMatchEulerDiscreteScheduler().time_shift(mu, 1.0, t), ours)


@pytest.mark.parametrize(
    ("family", "trainers"), [("WAN21_I2V", 3.0), ("HunyuanVideo15", 2.0), ("ZImage", 2.0), ("HunyuanVideoI2V", 8.0)]
)
def test_family_takes_its_trainers_shift_and_shifted_that_of_its_sampler(family, trainers):
    """WAN's schedule has 8 in the host, and musubi-tuner trains it at 3."""
    schedule = Schedule.flow(shift=8.0)
    assert_logit_normal(schedule.sigma[drawn(levels_of("family", family, schedule))], math.log(trainers))
    assert_logit_normal(schedule.sigma[drawn(levels_of("shifted", family, schedule))], math.log(8.0))


def test_a_family_with_one_shift_has_it_in_its_schedule():
    schedule = Schedule.flow(shift=6.0)
    levels = levels_of("shifted", "Lumina2", schedule)
    assert levels.law is None
    assert_logit_normal(schedule.sigma[drawn(levels)], math.log(6.0))


@pytest.mark.parametrize(
    ("family", "schedule", "sampling"),
    [
        ("sd_v1", Schedule.stable_diffusion(), "uniform"), ("sdxl_base_v1-0", Schedule.stable_diffusion(), "uniform"),
        ("sd_v2", Schedule.stable_diffusion("v"), "uniform"), ("sd3", Schedule.flow(), "logit-normal"),
        ("flux1", Schedule.flow(), "shifted"), ("WAN21_T2V", Schedule.flow(), "shifted"),
        ("AuraFlow", Schedule.flow(), "logit-normal"), ("Anima", Schedule.flow(), "sigmoid"),
        ("ToyWorld", Schedule.flow(), "uniform"),
    ],
)  # fmt: skip
def test_family_takes_the_tables_choice_and_says_so(family, schedule, sampling):
    assert levels_of("family", family, schedule).sampling == sampling
    note = note_of(denoiser_of(family, schedule), TrainingConfig(timestep_sampling="family"))
    assert note.startswith(f"Noise levels are drawn {sampling}, as for {family} (")
    assert note_of(denoiser_of(family, schedule), TrainingConfig()) == ""


@pytest.mark.parametrize("sampling", ["sigmoid", "shifted"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_flow_times_of_other_models_are_refused(sampling, prediction):
    config = TrainingConfig(timestep_sampling=sampling, steps=1)
    denoiser = Denoiser(small_base(), Schedule.stable_diffusion(prediction), None)
    with pytest.raises(DCOError, match=f"{sampling} is for flow models, and this one predicts {prediction}"):
        Training(denoiser, small_examples(), config)


def test_an_unknown_sampling_and_a_number_in_place_of_levels_are_refused():
    with pytest.raises(DCOError, match="timestep_sampling 'cosmap' is unknown: use one of uniform, logit-normal"):
        TrainingConfig(timestep_sampling="cosmap").check()
    with pytest.raises(DCOError, match="needs the model's noise levels"):
        next(random_draws(small_examples(), 1000, TrainingConfig(timestep_sampling="sigmoid")))


@pytest.mark.parametrize("sampling", TIMESTEP_SAMPLINGS)
def test_draws_are_a_function_of_seed_and_number_and_runs_resume_and_replay(sampling, tmp_path):
    flow = Schedule.flow(shift=2.0)
    options = {"timestep_sampling": sampling, "schedule": flow, "beta": 0.1, "look_ahead": 2, "batch_size": 2}
    whole = Run(**options).run()
    Run(tmp_path, every=1, **options).run(until=4)
    assert_same(Run(tmp_path, every=1, **options).run(), whole)
    config = whole.training.config
    levels = noise_levels(whole.denoiser, config)
    batches = list(itertools.islice(random_draws(whole.examples, levels, config), 9))
    later = next(random_draws(whole.examples, levels, config, start=5))
    assert [d.t for d in later] == [d.t for d in batches[5]]
    again = Run(**options)
    replayed = Training(again.denoiser, again.examples, config, draws=iter(batches))
    replayed.run()
    losses = [report.loss for report in whole.training.history]
    assert [report.loss for report in replayed.history] == pytest.approx(losses, rel=1e-5)


def test_the_other_draws_do_not_depend_on_how_levels_are_drawn_but_the_seed_does():
    examples, levels = small_examples(), NoiseLevels("logit-normal", 1000)
    config = TrainingConfig(timestep_sampling="logit-normal", seed=3)
    (one,) = next(random_draws(examples, levels, config))
    (plain,) = next(random_draws(examples, 1000, TrainingConfig(seed=3)))
    assert torch.equal(one.noise, plain.noise) and one.image == plain.image
    other = [b[0].t for b in itertools.islice(random_draws(examples, levels, TrainingConfig(seed=4)), 8)]
    assert other != [b[0].t for b in itertools.islice(random_draws(examples, levels, config), 8)]
