"""What a step evaluates: rows that are not needed are not run; intervals and schedules; the other guidance methods."""

import pytest
import torch
from guiding import Case, difference, guided
from small_models import lora_for, small_model, text
from two_models import cfg, evaluate, formula, merged, oracle, sample

from devtools import in_process_host as host


def rows_of_each_step(case, model, w_text: float, steps: int = 3, **sampling) -> list[int]:
    """Rows of the network in each step, whatever calls they come in."""
    counts: dict[float, int] = {}

    def count(apply_model, args):
        sigma = float(args["timestep"][0])
        counts[sigma] = counts.get(sigma, 0) + len(args["cond_or_uncond"])
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(count)
    sample(cfg(model, case.positive, case.negative, w_text), case.start, steps=steps, **sampling)
    return [counts[sigma] for sigma in sorted(counts, reverse=True)]


@pytest.mark.parametrize(
    "w_rg, w_text, rows",
    [(2.0, 4.0, 3), (4.0, 4.0, 2), (2.0, 1.0, 2), (1.0, 1.0, 1), (0.0, 4.0, 2), (0.0, 1.0, 1), (2.0, 0.0, 3)],
)
@pytest.mark.parametrize("low_memory", [False, True])
def test_rows_whose_coefficient_is_zero_are_not_run(w_rg, w_text, rows, low_memory):
    case = Case()
    model = guided(case.phi, case.lora, w_rg, low_memory=low_memory, self_check=False)
    assert rows_of_each_step(case, model, w_text) == [rows] * 3
    report = host.pack("nodes.guidance.report").reward_report
    assert report(w_rg, w_text).startswith(f"{rows} UNet row{'s' * (rows > 1)} a step")
    case.check(w_rg, w_text, low_memory=low_memory) if w_rg else None


def test_the_self_check_costs_the_first_step_once_more():
    case = Case()
    model = guided(case.phi, case.lora, 2.0)
    # the host's own call of two rows, and the batch without the LoRA and with it
    assert rows_of_each_step(case, model, 4.0) == [8, 3, 3]


def expected_over_time(case, share, w_rg: float = 2.0, w_text: float = 4.0, steps: int = 6):
    """The oracle with w_rg times share(sigma)."""
    guider = oracle(case.phi, case.theta, case.positive, case.negative, formula(w_rg, w_text))
    plain = type(guider).predict_noise

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        now = formula(w_rg * share(float(timestep.max())), w_text)
        conds = self.conds
        phi_c, phi_0 = evaluate(
            self, case.phi, [conds["positive"], conds["negative"]], x, timestep, model_options
        )
        (theta_c,) = evaluate(self, case.theta, [conds["positive"]], x, timestep, model_options)
        evaluate(self, case.phi, [None], x, timestep, model_options)
        return now(theta_c, phi_c, phi_0)

    type(guider).predict_noise = predict_noise
    assert plain is not predict_noise
    return sample(guider, case.start, steps=steps)


@pytest.mark.parametrize("family", ["sd15", "flux", "sd2-v"])
def test_an_interval_of_the_noise_schedule(family):
    case = Case(family)
    sampling = case.phi.get_model_object("model_sampling")
    first, last = sampling.percent_to_sigma(0.3), sampling.percent_to_sigma(0.75)
    share = lambda sigma: float(last <= sigma <= first)  # noqa: E731
    ours = case.ours(start_percent=0.3, end_percent=0.75, sampling={"steps": 6})
    expected = expected_over_time(case, share)
    assert difference(ours, expected) < 1e-5
    assert difference(expected, case.expected(sampling={"steps": 6})) > 1e-3
    model = guided(case.phi, case.lora, 2.0, start_percent=0.3, end_percent=0.75, self_check=False)
    rows = rows_of_each_step(case, model, 4.0, steps=6)
    assert set(rows) == {2, 3} and rows[0] == rows[-1] == 2


@pytest.mark.parametrize("schedule, at_half", [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_schedules_fall_over_the_interval(schedule, at_half):
    scheduled = host.pack("dco_core.guidance").scheduled
    values = [scheduled(1.0, p / 100, 0.2, 0.8, schedule) for p in range(20, 81)]
    assert values[30] == pytest.approx(at_half)
    assert values == sorted(values, reverse=True)
    assert values[0] == 1.0 and (schedule == "constant" or values[-1] == pytest.approx(0.0))
    case = Case()
    sampling = case.phi.get_model_object("model_sampling")
    grid = torch.linspace(0, 1, 20001, dtype=torch.float64)[1:-1]
    sigmas = torch.tensor([float(sampling.percent_to_sigma(float(p))) for p in grid], dtype=torch.float64)

    def share(sigma: float) -> float:
        progress = float(grid[(sigmas - sigma).abs().argmin()])
        return scheduled(1.0, progress, 0.0, 1.0, schedule)

    ours = case.ours(w_rg_schedule=schedule, sampling={"steps": 6})
    assert difference(ours, expected_over_time(case, share)) < 1e-4  # of the grid


def test_an_empty_interval_is_refused():
    case = Case()
    with pytest.raises(
        Exception, match="interval of w_rg is empty: start_percent 0.6 is not below end_percent 0.6"
    ):
        case.ours(start_percent=0.6, end_percent=0.6)


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_autoguidance_moves_away_from_the_lora(low_memory, own):
    """Karras et al., arXiv 2406.02507, Eq. 3; the weak model is the base with the LoRA."""
    case = Case()
    personalized = text("sd15", 9, 8) if own else None

    def combine(theta_c, phi_c, phi_0):
        guided_c = theta_c + 2.5 * (phi_c - theta_c)
        return phi_0 + 4.0 * (guided_c - phi_0)

    case.check(2.5, 4.0, combine, kind="auto", low_memory=low_memory, personalized=personalized)


def test_autoguidance_holds_in_its_interval():
    """It is reward guidance at w_rg = w_text (1 - w), which the oracle has over time."""
    case = Case()
    sampling = case.phi.get_model_object("model_sampling")
    first, last = sampling.percent_to_sigma(0.3), sampling.percent_to_sigma(0.75)
    ours = case.ours(2.5, 4.0, kind="auto", start_percent=0.3, end_percent=0.75, sampling={"steps": 6})
    expected = expected_over_time(case, lambda sigma: float(last <= sigma <= first), w_rg=4.0 * (1 - 2.5))
    assert difference(expected, case.plain(steps=6)) > 1e-3
    assert difference(ours, expected) < 1e-5


@pytest.mark.parametrize(
    "kind, scale, rows, at_one",
    [("auto", 2.5, 3, 2), ("auto", 1, 2, 1), ("personalization", 0.4, 2, 1), ("negative", 1.0, 2, 1)],
)
def test_other_methods_run_the_rows_that_they_report(kind, scale, rows, at_one):
    case = Case()
    for w_text, expected in ((4.0, rows), (1.0, at_one)):
        model = guided(case.phi, case.lora, scale, kind=kind, self_check=False)
        assert rows_of_each_step(case, model, w_text) == [expected] * 3
    report = host.pack("nodes.guidance.report").method_report(kind, scale)
    assert report.startswith(f"{rows} UNet rows a step") and f"; {at_one} where cfg is 1" in report


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_scale_that_falls_away_from_w_text_needs_all_rows(schedule):
    case = Case()
    model = guided(case.phi, case.lora, 4.0, w_rg_schedule=schedule, self_check=False)
    assert rows_of_each_step(case, model, 4.0, steps=4) == [
        2,
        3,
        3,
        2,
    ]  # w_rg is w_text at first, and 0 at last
    report = host.pack("nodes.guidance.report").reward_report
    assert report(4.0, 4.0, w_rg_schedule=schedule).startswith("3 UNet rows a step")
    assert report(4.0, None, w_rg_schedule=schedule).startswith("3 UNet rows a step")
    assert report(4.0, 1.0, w_rg_schedule=schedule).startswith(
        "2 UNet rows a step: LoRA on the prompt, base on the"
    )


def three_models(case, weak_strength: float, combine):
    """combine(theta on the prompt, phi on the prompt, weak on the negative)."""
    weak = merged(small_model("sd15"), case.lora, weak_strength)
    guider = oracle(case.phi, case.theta, case.positive, case.negative, None)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        conds, at = self.conds, (x, timestep, model_options)
        (theta_c,) = evaluate(self, case.theta, [conds["positive"]], *at)
        (weak_0,) = evaluate(self, weak, [conds["negative"]], *at)
        (phi_c,) = evaluate(self, case.phi, [conds["positive"]], *at)
        return combine(theta_c, phi_c, weak_0)

    type(guider).predict_noise = predict_noise
    return sample(guider, case.start)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("low_memory", [False, True])
def test_personalization_guidance_has_part_of_the_lora_on_the_negative(share, low_memory):
    """Steering Guidance, arXiv 2508.00319: the weak model's weights lie between base and fine-tuned ones."""
    case = Case(batch=2)
    weight = max(share, 1e-12)  # a merge of strength 0 is none
    expected = three_models(case, weight, lambda theta_c, phi_c, weak_0: weak_0 + 4.0 * (theta_c - weak_0))
    ours = case.ours(share, 4.0, kind="personalization", low_memory=low_memory)
    assert difference(expected, case.plain()) > 1e-3
    assert difference(ours, expected) < 1e-5


def test_the_lora_on_the_negative_only():
    case = Case()
    expected = three_models(case, 1.0, lambda theta_c, phi_c, theta_0: theta_0 + 4.0 * (phi_c - theta_0))
    assert difference(case.ours(1.0, 4.0, kind="negative"), expected) < 1e-5


def test_the_self_check_names_the_module_that_leaks(monkeypatch):
    case = Case()
    adapters = host.pack("nodes.host.guidance.adapter_hooks")
    genuine = adapters.BatchRows.indices

    def leaking(rows, batch):
        """As if the hook wrote to the first row of the batch whatever row it is meant for."""
        return [slice(0, batch)] if rows.chunks > 1 else genuine(rows, batch)

    monkeypatch.setattr(adapters.BatchRows, "indices", leaking)
    first = next(iter(lora_for(case.phi))).removesuffix(".lora_down.weight")
    with pytest.raises(Exception, match=f"leaks into the base model's rows at {first}"):
        case.ours()
    case.ours(self_check=False)


def test_a_module_that_mixes_rows_gets_a_call_of_its_own(caplog):
    """A batch of one for all rows: the layer cannot tell them apart."""
    case = Case()
    host.pack("nodes.host.guidance.notices")._shown.clear()

    for model in (case.phi, case.theta):
        embed = model.model.diffusion_model.time_embed
        embed.register_forward_pre_hook(lambda module, args: (args[0][:1],))
        embed.register_forward_hook(lambda module, args, out: out.repeat(case.start["samples"].shape[0], 1))
    # in a batch of rows the embedding is of one row: every other layer broadcasts it
    case.check()
    case.check()
    assert caplog.text.count("runs in a call of its own") == 1
