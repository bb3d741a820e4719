"""phi's errors on disk: found again by everything they depend on, and never otherwise."""

import dataclasses
import hashlib
import logging
import os
import threading

import pytest
import torch

from dco_core.cli import commands
from dco_core.lora import read_lora, tensors_sha256
from dco_core.schedules import Schedule
from dco_core.toy_world.references import write_toy_references
from dco_core.training import reference_cache
from dco_core.training.config import OBJECTIVE_NAMES, TrainingConfig
from dco_core.training.reference_cache import ReferenceCache, reference_key
from tests.small_network import Denoiser, small_base, small_examples
from tests.small_runs import STEPS, Run, assert_same


def phi_rows(run):
    """Counts the samples that phi looks at from now on."""
    seen, predict = [], run.denoiser.predict

    def counting(x_t, *arguments, adapter):
        seen.extend([0] * (0 if adapter else len(x_t)))
        return predict(x_t, *arguments, adapter=adapter)

    run.denoiser.predict = counting
    return seen


def counted(**options):
    run = Run(**options)
    seen = phi_rows(run)
    return run.run(), len(seen)


KINDS = {
    "one a step": {"look_ahead": 1},
    "three a call": {"look_ahead": 3, "batch_size": 2},
    "accumulated": {"look_ahead": 4, "gradient_accumulation_steps": 2},
    "prior": {"objective": "dco-prior", "prior": True, "look_ahead": 2, "batch_size": 2},
    "tokens": {"tokens": True, "look_ahead": 3},
    "weighted": {"weighting": "min-snr", "reduction": "batch-mean", "batch_size": 2, "look_ahead": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_bit_equal_without_with_and_again_and_then_phi_is_not_asked(kind, tmp_path):
    plain, rows = counted(**KINDS[kind])
    first, first_rows = counted(cache=tmp_path, **KINDS[kind])
    again, none = counted(cache=tmp_path, **KINDS[kind])
    assert_same(plain, first)
    assert_same(plain, again)
    assert rows == first_rows > 0 and none == 0
    assert first.training.notes == []
    assert "are there from an earlier run" in again.training.notes[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": 0.2}, {"rank": 3}, {"learning_rate": 1e-3}, {"optimizer": "adamw", "weight_decay": 0.1},
        {"lr_scheduler": "cosine"}, {"gradient_accumulation_steps": 3}, {"ema_decay": 0.5}, {"dropout": 0.5},
        {"weighting": "min-snr"}, {"reduction": "batch-mean"},
    ],
    ids=str,
)  # fmt: skip
def test_another_run_on_the_same_draws_reads_them_and_asks_only_for_more(changes, tmp_path):
    _, rows = counted(cache=tmp_path, look_ahead=3)
    other, asked = counted(cache=tmp_path, look_ahead=3, **changes)
    more = changes.get("gradient_accumulation_steps", 1)
    assert asked == (more - 1) * rows
    assert_same(other, Run(look_ahead=3, **changes).run())
    longer, asked = counted(cache=tmp_path, look_ahead=3, **changes | {"steps": STEPS + 3})
    assert asked == 3 * more
    assert_same(longer, Run(look_ahead=3, **changes | {"steps": STEPS + 3}).run())
    assert len(list(tmp_path.iterdir())) == 1


def test_a_stopped_run_keeps_what_it_paid_and_ends_the_same(tmp_path):
    whole = Run(look_ahead=4, batch_size=2).run()
    Run(tmp_path / "run", every=1, look_ahead=4, batch_size=2, cache=tmp_path / "cache").run(until=5)
    resumed = Run(tmp_path / "run", every=1, look_ahead=4, batch_size=2, cache=tmp_path / "cache")
    assert any("errors on 8 batches are there" in note for note in resumed.training.notes)
    seen = phi_rows(resumed)
    assert_same(resumed.run(), whole)
    assert len(seen) == 4 * 2  # the third window alone


def key(content="model", base=None, examples=None, schedule=None, **config):
    denoiser = Denoiser(base or small_base(), schedule or Schedule.stable_diffusion(), None)
    config = TrainingConfig(**{"look_ahead": 2, "caption_dropout": 0.1} | config)
    return reference_key(content, denoiser, examples or shown(), config)


def shown(n=3, **changes):
    """Examples with everything in them; the second one changed."""
    whole = [
        dataclasses.replace(
            e, std=torch.full_like(e.latent, 0.1), mask=torch.ones(2, 2), empty_conditioning=torch.zeros(4, 5)
        )
        for e in small_examples(n)
    ]
    whole[1] = dataclasses.replace(whole[1], **changes)
    return whole


OF_THETA = {
    "steps": 7, "learning_rate": 0.1, "beta": 0.3, "reduction": "batch-mean", "weight_decay": 0.3, "max_grad_norm": 2.0,
    "gradient_accumulation_steps": 2, "token_learning_rate": 0.1, "weighting": "min-snr", "snr_gamma": 3.0,
    "target_gate": 0.2, "prior_weight": 2.0, "preservation_weight": 2.0, "mapo_beta": 0.2, "mapo_snr": 0.7,
    "optimizer": "prodigy", "lr_scheduler": "cosine", "lr_warmup_steps": 3, "ema_decay": 0.9, "validation_steps": 3,
    "keep": "best", "automatic_beta": "images",
}  # fmt: skip
OF_DRAWS = {
    "batch_size": 2, "objective": "dco-prior", "offset_noise": 0.1, "seed": 3, "caption_dropout": 0.2, "look_ahead": 3,
    "timestep_sampling": "logit-normal", "mask_prior": 2.0, "preservation_prompts": "a cat", "preservation_share": 0.5,
}  # fmt: skip


def test_every_option_is_known_to_matter_or_not():
    assert {f.name for f in dataclasses.fields(TrainingConfig)} == OF_THETA.keys() | OF_DRAWS.keys()
    assert set(OBJECTIVE_NAMES) >= {"dco", "dco-prior"}


@pytest.mark.parametrize("name", OF_THETA)
def test_options_that_phi_does_not_see_leave_the_key(name):
    assert key(**{name: OF_THETA[name]}) == key()


@pytest.mark.parametrize("name", OF_DRAWS)
def test_options_of_the_draws_change_the_key(name):
    assert key(**{name: OF_DRAWS[name]}) != key()


def moved(tensor):
    other = tensor.clone()
    other.flatten()[-1] += 1e-6
    return other


def other_examples():
    (first, second, third), zeros = shown(), torch.zeros(6, 2, 2)
    return {
        "latent": shown(latent=moved(second.latent)),
        "std": shown(std=moved(second.std)),
        "no std": shown(std=None),
        "mask": shown(mask=moved(second.mask)),
        "no mask": shown(mask=None),
        "base caption": shown(base_conditioning=moved(second.base_conditioning)),
        "caption where phi reads it too": shown(base_conditioning=None),
        "empty caption": shown(empty_conditioning=moved(second.empty_conditioning)),
        "prior": shown(prior=True),
        "rejected": shown(rejected=[zeros, zeros]),
        "order": [second, first, third],
        "repeats": [first, second, second, third],
        "fewer": [first, second],
        "half": shown(latent=second.latent.half()),
    }


@pytest.mark.parametrize("name", other_examples())
def test_whatever_phi_is_shown_changes_the_key(name):
    assert key(examples=other_examples()[name]) != key()


def test_what_theta_alone_reads_does_not():
    assert key(examples=shown(conditioning=torch.ones(4, 5))) == key()
    assert key(examples=shown(conditioning=lambda: None)) == key()


def test_the_model_its_schedule_and_what_computes_change_the_key(monkeypatch):
    assert key(content="other") != key()
    assert key(schedule=Schedule.flow()) != key()
    assert key(schedule=Schedule.stable_diffusion("v")) != key()
    changes = [
        (torch, "__version__", "9.9"),
        (torch, "get_num_threads", lambda: 77),
        (torch, "get_float32_matmul_precision", lambda: "high"),
        (torch.backends.cpu, "get_cpu_capability", lambda: "abacus"),
        (reference_cache, "_FORMAT", 99),
    ]
    for owner, name, value in changes:
        before = key()
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert key() != before, name
        assert key() == before


def damage(path, how):
    contents = bytearray(path.read_bytes())
    if how == "a byte":
        contents[-3] ^= 1
    path.write_bytes(b"" if how == "empty" else bytes(contents[: len(contents) // (2 if how == "half" else 1)]))


@pytest.mark.parametrize("how", ["a byte", "half", "empty"])
def test_a_damaged_file_is_said_and_made_anew(how, tmp_path):
    whole, rows = counted(cache=tmp_path, look_ahead=3)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    damage(path, how)
    again, asked = counted(cache=tmp_path, look_ahead=3)
    assert again.training.notes == [f"The kept errors of the base model in {path.name} are damaged and are made anew."]
    assert asked == rows
    assert_same(whole, again)
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_costs_no_result(tmp_path, caplog):
    folder = tmp_path / "cache"
    folder.write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert_same(Run(cache=folder, look_ahead=3).run(), Run(look_ahead=3).run())
    assert "the base model's errors are not kept" in caplog.text


def test_two_runs_at_once_lose_nothing_of_each_other(tmp_path):
    one, two = (Run(cache=tmp_path, look_ahead=3).training._cache for _ in range(2))
    one.put(0, torch.ones(3))
    two.put(1, torch.full((3,), 2.0))
    one.write()
    two.write()
    three = Run(cache=tmp_path, look_ahead=3).training._cache
    assert torch.equal(three.get(0), torch.ones(3)) and torch.equal(three.get(1), torch.full((3,), 2.0))
    assert three.get(2) is None


def test_writers_at_the_same_time_never_damage_the_file(tmp_path):
    caches = [Run(cache=tmp_path, look_ahead=2).training._cache for _ in range(3)]

    def write(number):
        for window in range(8):
            caches[number].put(8 * number + window, torch.full((2,), float(8 * number + window)))
            caches[number].write()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = Run(cache=tmp_path, look_ahead=2).training._cache
    there = [w for w in range(24) if found.get(w) is not None]
    assert len(there) >= 8 and all(torch.equal(found.get(w), torch.full((2,), float(w))) for w in there)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_oldest_files_go(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_cache, "KEPT_FILES", 2)
    for seed in range(3):
        Run(cache=tmp_path, look_ahead=3, seed=seed, steps=1).run()
        for path in tmp_path.iterdir():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
    assert len(list(tmp_path.iterdir())) == 2
    assert counted(cache=tmp_path, look_ahead=3, seed=2, steps=1)[1] == 0
    assert counted(cache=tmp_path, look_ahead=3, seed=0, steps=1)[1] > 0


def test_where_errors_are_not_enough_it_is_said_and_nothing_is_kept(tmp_path):
    run = Run(cache=tmp_path, look_ahead=3)
    examples = [dataclasses.replace(e, class_conditioning=e.base_conditioning) for e in run.examples]
    config = TrainingConfig(steps=2, objective="output-preservation")
    training = reference_training(run, examples, config, tmp_path)
    assert "output-preservation compares its predictions" in training.notes[0]
    preserved = [dataclasses.replace(e, preserved=[e.base_conditioning]) for e in examples]
    held = reference_training(run, preserved, TrainingConfig(steps=2, preservation_prompts="a cat"), tmp_path)
    assert "preservation compare its predictions" in held.notes[0]
    shared = [dataclasses.replace(e, conditioning=lambda e=e: e.conditioning, base_conditioning=None) for e in examples]
    assert "it reads tokens in training" in reference_training(run, shared, TrainingConfig(steps=2), tmp_path).notes[0]
    plain = reference_training(run, examples, TrainingConfig(steps=2, objective="dreambooth"), tmp_path)
    assert plain.notes == []
    plain.run()
    assert list(tmp_path.iterdir()) == []


def reference_training(run, examples, config, folder):
    training = type(run.training)
    return training(run.denoiser, examples, config, reference_cache=ReferenceCache(folder, "small network"))


# --- the command


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy_references(tmp_path_factory.mktemp("references") / "subject", "toy")


def train(data, output, **options):
    values = {"model": "toy-world", "data": data, "output": output, "steps": 4, "seed": 3, "beta": 0.1, "rank": 2}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in {**values, **options}.items()]
    return commands.main(["train", *[a.removesuffix("=True") for a in arguments]])


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_command_keeps_them_beside_its_file_unless_told_otherwise(data, tmp_path, capsys):
    folder = tmp_path / "dco_reference_cache"
    plain, first, again = (tmp_path / f"{name}" / "a.safetensors" for name in ("plain", "first", "again"))
    assert train(data, plain, no_reference_cache=True) == 0
    assert not (plain.parent / folder.name).exists()
    assert train(data, first) == 0
    (kept,) = (first.parent / folder.name).iterdir()
    assert kept.stat().st_size < 2000
    (again.parent / folder.name).mkdir(parents=True)
    (again.parent / folder.name / kept.name).write_bytes(kept.read_bytes())
    capsys.readouterr()
    assert train(data, again) == 0
    assert "The base model's errors on 8 batches are there from an earlier run." in capsys.readouterr().out
    assert digest(plain) == digest(first) == digest(again)
    assert train(data, again.with_name("other.safetensors"), beta=0.3, rank=3, learning_rate=1e-3) == 0
    assert "are there from an earlier run" in capsys.readouterr().out
    assert train(data, again.with_name("pictures.safetensors"), seed=4) == 0
    assert "are there from an earlier run" not in capsys.readouterr().out
    assert tensors_sha256(read_lora(plain)) != tensors_sha256(read_lora(again.with_name("pictures.safetensors")))
