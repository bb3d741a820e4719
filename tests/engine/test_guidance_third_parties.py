"""Patches that relate the rows of a batch to each other, keep steps, or draw random numbers: with a LoRA that changes
nothing the picture is theirs alone, and with a real one it is the formula of two models that are patched alike."""

from __future__ import annotations

import logging
import pickle
from copy import copy, deepcopy

import pytest
import torch
from guiding import Case, difference, equal, guided
from small_models import lora_for, text
from two_models import cfg, evaluate, oracle, sample

from devtools import in_process_host as host

W_RG, W_TEXT = 2.0, 4.0
WAYS = [{"low_memory": low, "self_check": check} for low in (False, True) for check in (False, True)]
NEGLIGIBLE = 1e-9


def nag(model):
    from comfy_extras.nodes_nag import NAGuidance

    return NAGuidance.execute(model, 5.0, 0.5, 1.5).args[0]


def on_attention(function):
    def patch(model):
        model = model.clone()
        model.set_model_attn1_output_patch(function)
        return model

    return patch


def _first_positive(out, options):
    """As StyleAligned: of the rows, the first that is the positive one."""
    rows = options["cond_or_uncond"]
    size, out = len(out) // len(rows), out.clone()
    if 0 in rows:
        start = rows.index(0) * size
        out[start : start + size] *= 1.5
    return out


def _by_position(out, options):
    """As region masks that are stacked for [negative, positive]: the second half is the other kind."""
    rows, out = options["cond_or_uncond"], out.clone()
    half = out[len(out) // 2 :] if rows[0] == 1 else out[: len(out) // 2]
    if len(rows) > 1:
        half *= 1.5
    return out


def _pairs_only(out, options):
    """As block-wise CFG: rows are counted, never looked up."""
    rows = list(options["cond_or_uncond"])
    if len(rows) != 2:
        return out
    first, second = out.chunk(2)
    positive, negative = (second, first) if rows == [1, 0] else (first, second)
    return torch.cat([positive + 0.5 * (positive - negative) if i == 0 else negative for i in rows])


def _refuses_three(out, options):
    """As the host's SeedVR2 network: a batch that is no pair is an error."""
    rows = options["cond_or_uncond"]
    if rows[0] != rows[-1] or len(rows) > 1:
        if len(out) % 2:
            raise ValueError("expected an even batch")
        return _pairs_only(out, options)
    return out


PATCHES = {
    "NAGuidance": nag,
    "the first positive row": on_attention(_first_positive),
    "by position": on_attention(_by_position),
    "pairs only": on_attention(_pairs_only),
    "no odd batch": on_attention(_refuses_three),
}


def case_for(family: str, patch, **more) -> Case:
    case = Case(family, **more)
    case.negative = text(family, 7, 2)  # as long as the prompt: the host has both in one batch
    case.unpatched, case.phi = case.phi, patch(case.phi)
    return case


def of_two_models(case: Case, w_rg: float = W_RG) -> torch.Tensor:
    """The formula where theta, too, is evaluated as the host evaluates a model: on both prompts together."""
    guider = oracle(case.phi, case.theta, case.positive, case.negative, None)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        both, at = [self.conds["positive"], self.conds["negative"]], (x, timestep, model_options)
        (theta_c, _), (phi_c, phi_0) = (evaluate(self, m, both, *at) for m in (case.theta, case.phi))
        return w_rg * (theta_c - phi_c) + W_TEXT * (phi_c - phi_0) + phi_0

    type(guider).predict_noise = predict_noise
    return sample(guider, case.start)


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_nag_with_a_lora_that_changes_nothing_is_nag_alone(family, options):
    case = case_for(family, nag)
    case.lora = lora_for(case.phi, size=NEGLIGIBLE)
    alone = case.plain()
    assert difference(alone, case.plain(model=case.unpatched)) > 1e-3
    assert difference(case.ours(**options), alone) < 1e-5


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_nag_is_on_both_models(family, options):
    case = case_for(family, nag, batch=2)
    expected = of_two_models(case)
    assert difference(expected, case.ours(model=case.unpatched)) > 1e-3
    assert difference(case.ours(W_RG, W_TEXT, **options), expected) < 1e-5


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("name", PATCHES)
def test_patches_that_relate_rows_find_what_they_expect(name, low_memory, caplog):
    host.pack("nodes.host.guidance.notices")._shown.clear()
    case = case_for("sd15", PATCHES[name])
    expected = of_two_models(case)
    assert difference(expected, case.ours(model=case.unpatched, low_memory=low_memory)) > 1e-3
    assert "relates the rows" not in caplog.text
    assert difference(case.ours(W_RG, W_TEXT, low_memory=low_memory), expected) < 1e-5
    assert caplog.text.count("relates the rows of a batch to each other") == 1


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("kind, scale", [("personalization", 0.4), ("negative", 1.0), ("auto", 2.5)])
def test_nag_with_the_other_methods(kind, scale, options):
    """Each prediction is that of its own model on both prompts."""
    case = case_for("sd15", nag)
    case.lora = lora_for(case.phi, size=NEGLIGIBLE)
    assert difference(case.ours(scale, kind=kind, **options), case.plain()) < 1e-5


@pytest.mark.parametrize("low_memory", [False, True])
def test_nag_where_the_scales_are_equal(low_memory):
    """The base model on the prompt has no share: theta's NAG is still its own."""
    case = case_for("sd15", nag)
    ours = case.ours(W_TEXT, W_TEXT, low_memory=low_memory)
    assert difference(ours, of_two_models(case, w_rg=W_TEXT)) < 1e-5


def test_nag_with_a_prompt_of_its_own_for_theta():
    case, own = case_for("sd15", nag), text("sd15", 7, 8)
    guider = oracle(case.phi, case.theta, case.positive, case.negative, None, own)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        c, at = self.conds, (x, timestep, model_options)
        theta_c, _ = evaluate(self, case.theta, [c["own"], c["negative"]], *at)
        phi_c, phi_0 = evaluate(self, case.phi, [c["positive"], c["negative"]], *at)
        return W_RG * (theta_c - phi_c) + W_TEXT * (phi_c - phi_0) + phi_0

    type(guider).predict_noise = predict_noise
    assert difference(case.ours(personalized=own), sample(guider, case.start)) < 1e-5


def test_self_attention_guidance_keeps_the_base_models_attention():
    """It records the negative row in the first call and uses it after the guidance."""
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    def sag(model):
        return SelfAttentionGuidance.execute(model, 0.5, 2.0).args[0]

    case = case_for("sd15", sag, batch=1)
    case.start = {"samples": torch.zeros(1, 4, 16, 16)}
    case.lora = lora_for(case.phi, size=NEGLIGIBLE)
    alone = case.plain()
    assert difference(alone, case.plain(model=case.unpatched)) > 1e-4
    for options in WAYS:
        assert difference(case.ours(**options), alone) < 1e-4  # its mask is a threshold


def tome(model):
    from comfy_extras.nodes_tomesd import TomePatchModel

    return TomePatchModel.execute(model, 0.4).args[0]


def hypertile(model):
    from comfy_extras.nodes_hypertile import HyperTile

    return HyperTile.execute(model, 32, 4, 0, False)[0]


def noise_in_attention(model):
    def patch(out, options):
        size = len(out) // len(options["cond_or_uncond"])
        return out + 0.5 * torch.randn(out[:size].shape).repeat(len(out) // size, 1, 1)

    return on_attention(patch)(model)


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("patch", [tome, hypertile, noise_in_attention])
def test_patches_that_draw_random_numbers_draw_the_same_ones(patch, options):
    case = case_for("sd15", patch)
    case.start = {"samples": torch.zeros(1, 4, 16, 16)}
    case.lora = lora_for(case.phi, size=NEGLIGIBLE)
    without = case.plain(model=case.unpatched)
    undrawn = torch.get_rng_state()
    alone = case.plain()
    after = torch.get_rng_state()
    assert not equal(undrawn, after) and difference(alone, without) > 1e-3
    assert difference(case.ours(**options), alone) < 1e-4
    assert equal(torch.get_rng_state(), after)
    case.lora = lora_for(case.phi)
    assert difference(case.ours(**options), alone) > 1e-3  # and no error about a leak


def test_a_leak_names_both_remedies_and_what_to_do_about_random_numbers(monkeypatch):
    case, adapters = Case(), host.pack("nodes.host.guidance.adapter_hooks")
    genuine = adapters.BatchRows.indices
    monkeypatch.setattr(
        adapters.BatchRows,
        "indices",
        lambda rows, batch: [slice(0, batch)] if rows.chunks > 1 else genuine(rows, batch),
    )
    with pytest.raises(
        Exception, match="take that patch off, or set low_memory.*random numbers.*set self_check to false"
    ):
        case.ours()


def test_a_cache_that_knows_rows_by_their_index_only_is_told(caplog):
    """As TeaCache: what a step added is kept by the index of a row, and added again in the steps between."""
    host.pack("nodes.host.guidance.notices")._shown.clear()
    kept, calls = {}, []

    def cached(apply_model, args):
        rows, x = args["cond_or_uncond"], args["input"]
        if len(calls) % 2 == 0:
            out = apply_model(x, args["timestep"], **args["c"])
            for i, a, b in zip(rows, out.chunk(len(rows)), x.chunk(len(rows)), strict=True):
                kept[i] = a - b
        else:
            out = torch.cat([a + kept[i] for i, a in zip(rows, x.chunk(len(rows)), strict=True)])
        calls.append(1)
        return out

    case = Case()
    case.negative = text("sd15", 7, 2)
    case.phi.set_model_unet_function_wrapper(cached)
    with caplog.at_level(logging.WARNING):
        case.ours(self_check=False, sampling={"steps": 4})
    assert "the LoRA made no difference at all" in caplog.text and "EasyCache" in caplog.text

    host.pack("nodes.host.guidance.notices")._shown.clear()
    caplog.clear()
    Case().ours()
    assert "made no difference" not in caplog.text


def test_rows_are_a_list_to_whoever_copies_them():
    known, asked = host.pack("nodes.host.guidance.known_rows"), []
    rows = known.KnownRows([0, 1, 0], asked.append)
    assert len(rows) == 3 and [i for i in rows] == [0, 1, 0] and not asked
    for made in (deepcopy({"rows": rows})["rows"], copy(rows), rows[:], rows.copy()):
        assert list(made) == [0, 1, 0] and made.index(1) == 1
    assert asked == [1] * 4
    saved = pickle.loads(pickle.dumps(rows))
    assert type(saved) is list and saved == [0, 1, 0]
    asked.clear()
    assert (0 in rows, rows.count(0), rows[0], rows == [0, 1, 0]) == (True, 2, 0, True)
    assert asked == [0, 0, None, None]


def test_compiled_code_reads_the_rows():
    known = host.pack("nodes.host.guidance.known_rows")

    @torch.compile(backend="eager")
    def halves(x, options):
        rows = options["cond_or_uncond"]
        return torch.cat([part * (1 + i) for i, part in zip(rows, x.chunk(len(rows)), strict=True)])

    x = torch.randn(6, 2)
    options = {"cond_or_uncond": known.KnownRows([0, 1, 0], lambda _: None)}
    assert equal(halves(x, options), torch.cat([x[:2], 2 * x[2:4], x[4:]]))


@pytest.mark.parametrize("second", ["DCORewardGuidance", "DCOLoRAGuidance"])
def test_a_second_guidance_node_says_that_it_replaces_the_first(second, caplog):
    nodes = {node.__name__: node for node in host.pack("nodes.guidance.reward_guidance").NODES}
    case = Case()
    once, report = nodes["DCORewardGuidance"].execute(case.phi, case.lora, 2.0).args
    assert "takes its place" not in report + caplog.text
    more = {"w_rg": 3.0} if second == "DCORewardGuidance" else {"method": {"method": "AutoGuidance", "w_auto": 2.0}}
    twice, report = nodes[second].execute(once, lora_for(case.phi, seed=8), **more).args
    for message in (report, caplog.text):
        assert "guidance from another DCO node" in message and "more_loras" in message
    alone, _ = nodes[second].execute(case.phi, lora_for(case.phi, seed=8), **more).args
    pictures = [sample(cfg(m, case.positive, case.negative, W_TEXT), case.start) for m in (twice, alone)]
    assert equal(*pictures)


def test_guided_is_the_same_model_without_third_parties():
    """The look-ups of the sampler itself are none: three rows stay in one call."""
    case, rows = case_for("sd15", lambda model: model.clone()), []

    def count(apply_model, args):
        rows.append(len(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = guided(case.phi, case.lora, W_RG, self_check=False)
    model.set_model_unet_function_wrapper(count)
    sample(cfg(model, case.positive, case.negative, W_TEXT), case.start)
    assert rows == [3, 3, 3]
