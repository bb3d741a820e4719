"""phi on a second device, for which a copy on the CPU stands in: the same bits, a window ahead, nothing left over."""

import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from dco_core.cli.commands import main
from dco_core.errors import DCOError
from dco_core.network.lora_layers import AdapterConfig
from dco_core.toy_world.model import ToyDenoiser
from dco_core.toy_world.references import write_toy_references
from dco_core.training.reference_ahead import ReferenceAhead, reference_ahead
from tests.small_network import Denoiser
from tests.small_runs import Run, Stop, assert_same

CPU = torch.device("cpu")


class Watched(Denoiser):
    """phi that says which thread asked it for how many rows, and can wait or fail."""

    calls: list
    wait, fail_at = 0.0, None

    def predict(self, x_t, t, conditioning, *, adapter):
        assert not adapter and not torch.is_grad_enabled()
        self.calls.append((threading.current_thread().name, len(x_t), time.monotonic()))
        if self.fail_at is not None and len(self.calls) > self.fail_at:
            raise Stop
        time.sleep(self.wait)
        return super().predict(x_t, t, conditioning, adapter=adapter)


def copy_of(denoiser):
    phi = denoiser.phi_on(CPU)
    found = Watched(phi.network, phi.schedule, None)
    found.calls = []
    return found


class Ahead(Run):
    """A Run whose phi is a second copy."""

    def __init__(self, *arguments, fail_at=None, wait=0.0, **config):
        def ahead(denoiser):
            self.phi = copy_of(denoiser)
            self.phi.fail_at, self.phi.wait = fail_at, wait
            self.ahead = ReferenceAhead(self.phi, CPU)
            return self.ahead

        super().__init__(*arguments, reference=ahead, **config)


OPTIONS = [
    {"look_ahead": 3, "batch_size": 2},
    {"look_ahead": 1},
    {"look_ahead": 4, "gradient_accumulation_steps": 2, "ema_decay": 0.5},
    {"look_ahead": 2, "held": True, "mask_prior": 50.0, "preservation_prompts": "a;b;c", "preservation_share": 0.6},
    {"look_ahead": 3, "prior": True, "objective": "dco-prior"},
    {"look_ahead": 3, "dropout": 0.3, "tokens": True},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: next(reversed(o)))
def test_the_lora_has_the_same_bits_and_phi_ran_beside_it(options):
    options = options | {"beta": 0.1}
    alone, ahead = Run(**options).run(), Ahead(**options).run()
    assert_same(alone, ahead)
    assert ahead.phi.calls and {name.split("_")[0] for name, *_ in ahead.phi.calls} == {"DCO reference"}
    assert any(note == "The base model looks ahead on cpu." for note in ahead.training.notes)


def test_a_window_is_on_its_way_while_the_one_before_is_used():
    """With slow steps and a slow phi, the two take turns only where they must."""
    run = Ahead(look_ahead=2, beta=0.1, wait=0.05)
    steps = []
    run.training.run(lambda report: (steps.append(time.monotonic()), time.sleep(0.06)))
    calls = [at for *_, at in run.phi.calls]
    assert len(calls) == 5  # 9 steps in windows of 2, and none beyond the last
    assert all(at < steps[2 * k + 1] for k, at in enumerate(calls[1:]))  # in the steps of the window before


def test_a_stopped_run_goes_on_with_it_and_without_it(tmp_path):
    options = {"look_ahead": 3, "batch_size": 2, "beta": 0.1}
    whole = Run(**options).run()
    Ahead(tmp_path, every=1, **options).run(until=4)
    Run(tmp_path, every=1, **options).run(until=7)
    assert_same(Ahead(tmp_path, every=1, **options).run(), whole)


def test_kept_errors_are_used_and_made_as_on_one_device(tmp_path):
    options = {"look_ahead": 3, "cache": tmp_path, "beta": 0.1}
    first = Ahead(**options).run()
    assert len(first.phi.calls) == 3
    second = Ahead(**options | {"beta": 0.5}).run()
    assert second.phi.calls == []
    assert_same(second, Run(look_ahead=3, beta=0.5).run())


def test_what_the_thread_raises_ends_the_run_and_leaves_nothing(tmp_path):
    """As a cancelled prompt does, wherever it is noticed first."""
    before = threading.active_count()
    options = {"look_ahead": 4, "beta": 0.1}
    run = Ahead(tmp_path, every=1, fail_at=2, **options)  # the third window, asked for as the second begins
    with pytest.raises(Stop):
        run.training.run()
    assert 4 <= run.training.step <= 8
    assert run.ahead._phi is None and threading.active_count() == before
    assert_same(Run(tmp_path, every=1, **options).run(), Run(**options).run())


def test_stopping_in_a_step_waits_for_the_thread_and_frees_the_network():
    before = threading.active_count()
    run = Ahead(look_ahead=2, beta=0.1, wait=0.1).run(until=3)
    assert run.ahead._phi is None and run.ahead._moved == {} and threading.active_count() == before


def test_objectives_that_ask_phi_for_nothing_do_not_use_it():
    run = Ahead(objective="dreambooth").run()
    assert run.phi.calls == [] and run.ahead._phi is None
    assert any("does not look ahead on cpu: this objective" in note for note in run.training.notes)


def test_the_toy_worlds_copy_is_the_base_model():
    denoiser = ToyDenoiser(AdapterConfig(rank=2))
    for parameter in denoiser.trainable().values():
        parameter.data.add_(0.1)
    phi = denoiser.phi_on(CPU)
    g = torch.Generator().manual_seed(0)
    x, t, text = torch.randn(2, 3, 32, 32, generator=g), torch.tensor([100, 900]), torch.randn(2, 20, 128, generator=g)
    with torch.no_grad():
        expected = denoiser.predict(x, t, list(text), adapter=False)
        assert torch.equal(phi.predict(x, t, list(text), adapter=False), expected)
        assert not torch.equal(denoiser.predict(x, t, list(text), adapter=True), expected)
    assert phi.trainable() == {} and phi.lora() == {}


def test_devices_that_cannot_be_are_one_sentence():
    denoiser = ToyDenoiser(AdapterConfig(rank=2))
    assert reference_ahead(denoiser, "off", CPU) is None
    assert reference_ahead(denoiser, "auto", CPU) is None
    assert reference_ahead(denoiser, "auto", CPU, processes=2) is None
    for choice, words in (
        ("gpu2", "reference_device is 'gpu2': use off, auto, or a device such as cuda:1"),
        ("cuda:7", "reference_device is cuda:7, and this machine has "),
        ("meta", "reference_device is 'meta': use off, auto"),
    ):
        with pytest.raises(DCOError, match=words):
            reference_ahead(denoiser, choice, CPU)
    with pytest.raises(DCOError, match="each process has its GPU: leave it out"):
        reference_ahead(denoiser, "cpu", CPU, processes=2)


def test_the_shell_trains_the_same_file_with_it(tmp_path, capsys):
    data = write_toy_references(tmp_path / "subject", "toy")

    def train(name, *options):
        return main([
            "train", "--model", "toy-world", "--data", str(data), "--output", str(tmp_path / name), "--steps", "3",
            "--rank", "2", "--beta", "0.04", "--validation-steps", "0", "--no-reference-cache", *options,
        ])  # fmt: skip

    assert train("a.safetensors") == 0
    assert train("b.safetensors", "--reference-device", "cpu") == 0
    assert "The base model looks ahead on cpu." in capsys.readouterr().out
    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert 'reference-device = "cpu"' in (tmp_path / "b.safetensors.toml").read_text()
    assert train("c.safetensors", "--reference-device", "cuda:9") == 1
    assert "error: reference_device is cuda:9" in capsys.readouterr().err
