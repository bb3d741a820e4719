"""weighting "epsilon": losses and gradients of v and flow models are those of the noises that they imply."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dco_core.errors import DCOError
from dco_core.losses import weights_at
from dco_core.schedules import Schedule
from dco_core.training.calibration import is_calibrated, with_beta
from dco_core.training.config import TrainingConfig
from dco_core.training.draws import Draw, random_draws
from dco_core.training.examples import Example
from dco_core.training.objectives import OBJECTIVES, Batch
from dco_core.training.validation import Validation

SHAPE = (2, 3, 5)  # a latent that is not square
SCHEDULES = {"v": Schedule.stable_diffusion("v"), "flow": Schedule.flow(shift=3.0)}


class Small:
    """A Denoiser of a few numbers: its native prediction depends on x_t, t, the text and the adapter. as_epsilon: the
    same model as one that predicts the noise."""

    family = ""

    def __init__(self, schedule: Schedule, as_epsilon: bool):
        self._native, self._as_epsilon = schedule, as_epsilon
        self.schedule = Schedule("epsilon", schedule.alpha, schedule.sigma) if as_epsilon else schedule
        self._gain = torch.tensor(0.7)
        self.adapter = torch.nn.Parameter(torch.tensor([0.3, -0.2]))

    def predict(self, x_t, t, conditioning, *, adapter):
        text = torch.stack(list(conditioning)).view(-1, 1, 1, 1)
        output = self._gain * x_t + text + 0.1 * torch.sin(t.float() / 100).view(-1, 1, 1, 1)
        if adapter:
            output = output + self.adapter[0] * torch.tanh(x_t) + self.adapter[1] * text
        if not self._as_epsilon:
            return output
        alpha, sigma = self._native.at(t, x_t)
        # v: eps = sigma x_t + alpha v. flow: eps = x_t + (1 - sigma) v
        return sigma * x_t + alpha * output if self._native.prediction == "v" else x_t + alpha * output

    def trainable(self):
        return {"adapter": self.adapter}

    def lora(self):
        return {}


def examples(masked: bool, prior: bool = False) -> list[Example]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for i in range(3):
        mask = (torch.rand(SHAPE[1:], generator=generator) * 0.9 + 0.1) if masked else None
        made.append(
            Example(
                torch.randn(SHAPE, generator=generator), torch.tensor(0.2 * i), mask=mask,
                class_conditioning=torch.tensor(-0.4), rejected=[torch.randn(SHAPE, generator=generator)],
                prior=prior and i == 2, preserved=[torch.tensor(-0.9), torch.tensor(0.8)],
            )
        )  # fmt: skip
    return made


def draws(like: list[Example]) -> list[Draw]:
    stream = random_draws(like, 1000, TrainingConfig(batch_size=3, seed=5, preservation_prompts="one; two"))
    return list(next(stream))


def loss_and_gradient(denoiser, like, config):
    batch = draws(like)
    if not config.preservation_prompts:
        batch = [dataclasses.replace(d, preserved=-1) for d in batch]
    result = OBJECTIVES[config.objective](Batch(denoiser, like, batch, config))
    denoiser.adapter.grad = None
    result.loss.backward()
    return result.loss.detach(), denoiser.adapter.grad.clone(), result.margin


HELD = [{}, {"preservation_prompts": "one; two", "preservation_weight": 5.0}]


@pytest.mark.parametrize("held", HELD, ids=["free", "held"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("prediction", list(SCHEDULES))
@pytest.mark.parametrize("reduction", ["per-sample", "batch-mean"])
def test_loss_and_gradient_are_those_of_the_implied_noises(prediction, objective, masked, reduction, held):
    held = held | ({"mask_prior": 5.0} if held and masked else {})
    own = {"objective": objective, "weighting": "uniform", "reduction": reduction}
    config = TrainingConfig(**own, beta=0.003, batch_size=3, **held)
    like = examples(masked, prior=config.with_prior)
    weighted = TrainingConfig(**config.as_dict() | {"weighting": "epsilon"})
    schedule = SCHEDULES[prediction]
    native = loss_and_gradient(Small(schedule, as_epsilon=False), like, weighted)
    expected = loss_and_gradient(Small(schedule, as_epsilon=True), like, config)
    torch.testing.assert_close(native[0], expected[0], rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(native[1], expected[1], rtol=2e-4, atol=1e-6)
    if expected[2] is not None:
        torch.testing.assert_close(native[2], expected[2], rtol=2e-4, atol=1e-4)
    plain = loss_and_gradient(Small(schedule, as_epsilon=False), like, config)
    assert not torch.allclose(plain[1], expected[1], rtol=0.05)


def test_weights_are_one_for_epsilon_and_the_signal_for_the_others():
    t = torch.tensor([999, 0, 437])
    assert weights_at(Schedule.stable_diffusion("epsilon"), t, "epsilon").tolist() == [1, 1, 1]
    v, flow = SCHEDULES["v"], SCHEDULES["flow"]
    torch.testing.assert_close(weights_at(v, t, "epsilon"), v.alpha[t] ** 2)
    torch.testing.assert_close(weights_at(flow, t, "epsilon"), (1 - flow.sigma[t]) ** 2)


@pytest.mark.parametrize("prediction", list(SCHEDULES))
def test_the_automatic_beta_is_the_papers_and_on_images_that_of_the_noises(prediction):
    like, schedule = examples(masked=False), SCHEDULES[prediction]
    automatic = TrainingConfig(beta=None, weighting="epsilon", batch_size=2, steps=90, learning_rate=1e-2)
    native = Small(schedule, as_epsilon=False)
    assert not is_calibrated(automatic, native)
    assert with_beta(automatic, native, like).beta == 1.0
    on_images = TrainingConfig(**automatic.as_dict() | {"automatic_beta": "images"})
    of_noises = TrainingConfig(**on_images.as_dict() | {"weighting": "uniform"})
    found = with_beta(on_images, native, like).beta
    assert found == pytest.approx(with_beta(of_noises, Small(schedule, as_epsilon=True), like).beta, rel=1e-2)
    assert found != pytest.approx(with_beta(of_noises, native, like).beta, rel=0.1)


@pytest.mark.parametrize("prediction", list(SCHEDULES))
def test_validation_margins_are_weighted_as_the_loss_is(prediction):
    like, schedule = examples(masked=True), SCHEDULES[prediction]
    config = TrainingConfig(weighting="epsilon")
    native = Validation(Small(schedule, as_epsilon=False), like, config).score(1).margin
    expected = Validation(Small(schedule, as_epsilon=True), like, TrainingConfig()).score(1).margin
    assert native == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("prediction", list(SCHEDULES))
def test_left_alone_dco_compares_noises_and_plain_losses_and_a_found_beta_the_models_own_errors(prediction):
    like, network = examples(masked=False), Small(SCHEDULES[prediction], as_epsilon=False)
    spaces = {"dco": "epsilon", "dco-prior": "epsilon", "dreambooth": "uniform", "mapo": "uniform"}
    for objective, space in spaces.items():
        left = TrainingConfig(objective=objective, beta=0.003, batch_size=3)
        said = dataclasses.replace(left, weighting=space)
        own = examples(masked=False, prior=left.with_prior)
        assert torch.equal(*(loss_and_gradient(network, own, config)[1] for config in (left, said)))
        assert with_beta(left, network, own) == said
    left = TrainingConfig(beta=None, batch_size=2, steps=90, learning_rate=1e-2)
    assert with_beta(left, network, like) == dataclasses.replace(left, beta=1.0, weighting="epsilon")
    found = with_beta(dataclasses.replace(left, automatic_beta="images"), network, like)
    assert found == with_beta(dataclasses.replace(left, weighting="uniform", automatic_beta="images"), network, like)
    assert found.weighting == "uniform" and found.beta != 1.0
    assert is_calibrated(dataclasses.replace(left, weighting="uniform"), network)


def test_an_unknown_weighting_names_the_known_ones():
    with pytest.raises(DCOError, match="uniform, min-snr, epsilon"):
        TrainingConfig(weighting="noise").check()
