"""Reward guidance with the host's split of a MODEL among several GPUs, for which "cpu" and "cpu:0" stand in: they are
two devices to the host."""

import threading

import pytest
import torch
from guiding import Case, guided
from small_models import lora_for, small_model, text
from two_models import cfg, difference, sample

from devtools import in_process_host as host

SECOND = torch.device("cpu:0")


class Split(Case):
    """A Case whose base model has a copy of its own for a second device, as the host's MultiGPU CFG Split makes it."""

    def __init__(self, family="sd15", batch=1):
        super().__init__(family, batch)
        self.copy = small_model(family)
        self.copy.load_device, self.copy.is_multigpu_base_clone = SECOND, True
        self.phi.set_additional_models("multigpu", [self.copy])
        self.calls = []
        for patcher, name in ((self.phi, "first"), (self.copy, "second")):
            patcher.model.diffusion_model.register_forward_pre_hook(self.counted(name), with_kwargs=True)

    def check(self, w_rg=2.0, w_text=4.0, **options):
        """Against two models on one device."""
        alone = Case(self.family, len(self.start["samples"]))
        expected = alone.expected(w_rg, w_text, personalized=options.get("personalized"))
        assert difference(expected, alone.plain(w_text)) > 1e-3
        assert difference(self.ours(w_rg, w_text, **options), expected) < 1e-5

    def counted(self, name):
        def hook(module, arguments, options):
            self.calls.append((name, len(arguments[0]), threading.current_thread() is threading.main_thread()))

        return hook


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux", "wan"])
def test_the_rows_are_shared_out_and_the_picture_is_that_of_one_device(family):
    case = Split(family)
    case.check()
    run = case.calls
    assert {name for name, *_ in run} == {"first", "second"}
    last = [(name, rows) for name, rows, _ in run[-20:]]
    assert ("second", 1) in last or ("second", 2) in last
    assert any(not main for name, _, main in run if name == "second")  # in the host's thread of that device


def test_both_devices_carry_the_lora_and_both_are_left_as_they_were():
    case = Split()
    before = {k: v.clone() for k, v in case.copy.model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) for m in case.copy.model.modules())
    one = Case().ours()
    assert difference(case.ours(), one) < 1e-5
    assert difference(case.ours(w_rg=4.0), one) > 1e-3  # w_rg is w_text: theta alone
    assert hooks == sum(len(m._forward_hooks) for m in case.copy.model.modules())
    after = case.copy.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_a_prompt_of_its_own_and_several_steps_of_every_kind():
    Split().check(personalized=text("sd15", 9, 8))
    Split(batch=2).check(w_rg=4.0)


def test_low_memory_stays_on_one_device():
    case = Split()
    case.check(low_memory=True)
    assert {name for name, *_ in case.calls} == {"first"}


def test_what_rows_cannot_tell_apart_stays_on_one_device():
    """A change of a parameter of no layer: the LoRA's row runs in a call of its own."""
    case = Split("wan")
    name = next(n for n, p in case.phi.model.diffusion_model.named_parameters() if n.endswith("modulation"))
    shape = dict(case.phi.model.diffusion_model.named_parameters())[name].shape
    case.lora = dict(case.lora) | {f"diffusion_model.{name.removesuffix('.weight')}.diff": torch.full(shape, 0.1)}
    case.ours()
    assert {name for name, *_ in case.calls} == {"first"}


def test_guidance_that_is_off_leaves_the_hosts_split_alone():
    case = Split()
    model = guided(case.phi, lora_for(case.phi), 0.0)
    picture = sample(cfg(model, case.positive, case.negative, 4.0), case.start)
    assert torch.equal(picture, case.plain())
    assert {name for name, *_ in case.calls} == {"first", "second"}
    assert host.pack("nodes.host.guidance.engine").is_guided(model)
