"""Two subjects in one picture: the sampler against regional guidance by hand, and the scores against true pictures."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dco_core.cli.commands import main
from dco_core.errors import DCOError
from dco_core.evidence import two_subjects
from dco_core.evidence.pictures import with_lora
from dco_core.evidence.runner import run
from dco_core.evidence.study import load_study
from dco_core.evidence.tables import read_table
from dco_core.evidence.two_subjects import BACKGROUNDS, CEILING, EVERYWHERE, FLOOR, REGIONS, TwoPlaces
from dco_core.lora import LoraLayer, LoraWeights
from dco_core.network.lora_layers import AdapterConfig
from dco_core.toy_world.image_model import ToyWorldModel

SUBJECTS = ("toy-1", "toy-2")


@pytest.fixture(scope="module")
def model():
    return ToyWorldModel()


def lora(model, seed):
    generator = torch.Generator().manual_seed(seed)
    layers = model.denoiser(AdapterConfig(rank=2, layers="attention")).lora()
    return LoraWeights({
        model.canonical(name): LoraLayer(
            torch.randn(layer.down.shape, generator=generator) * 0.1,
            torch.randn(layer.up.shape, generator=generator) * 0.1, layer.alpha,
        )
        for name, layer in layers.items()
    }, {}, {})  # fmt: skip


def test_each_lora_reads_its_prompt_and_acts_in_its_region(model):
    loras = [lora(model, seed) for seed in (1, 2)]
    phi, thetas = model.denoiser(None), [with_lora(model, one.layers) for one in loras]
    masks = two_subjects.soft_halves()
    places = TwoPlaces(phi, thetas, masks)
    left, right = model.encode_captions(["a large toy on the left, on grass, in flat style", "a red star"])
    x, t = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3)), torch.tensor([600])

    def on(network, text, adapter):
        with torch.no_grad():
            return network.predict(x, t, [text], adapter=adapter)

    with torch.no_grad():
        base, mine = (places.predict(x, t, [(left, right)], adapter=adapter) for adapter in (False, True))
    half = torch.arange(32) < 16
    expected = torch.where(half, on(phi, left, False), on(phi, right, False))
    torch.testing.assert_close(base, expected)
    added = sum(m * (on(theta, text, True) - base) for m, theta, text in zip(masks, thetas, (left, right), strict=True))
    torch.testing.assert_close(mine, base + added, atol=1e-5, rtol=1e-5)
    # far from the edge only its own LoRA is seen
    torch.testing.assert_close(mine[..., :14], on(thetas[0], left, True)[..., :14], atol=1e-5, rtol=1e-5)
    assert (mine - base).abs().amax() > 0.01


def test_pictures_of_the_base_have_nothing_of_the_loras(model):
    loras = [lora(model, seed) for seed in (1, 2)]
    floor = two_subjects.draw(model, loras, FLOOR, 5)
    assert floor.shape == (len(BACKGROUNDS), 3, 32, 32)
    assert torch.equal(floor, two_subjects.draw(model, [lora(model, s) for s in (7, 8)], FLOOR, 5))
    regions, everywhere = (two_subjects.draw(model, loras, how, 5) for how in (REGIONS, EVERYWHERE))
    assert not torch.equal(regions, floor) and not torch.equal(regions, everywhere)


def test_scores_tell_own_from_swapped_and_a_missing_toy():
    true = two_subjects.true_pictures(SUBJECTS, 5)
    right = two_subjects.scores(true, SUBJECTS, 5)
    assert right["likeness"] > 0.85 and right["swapped"] < 0.3 and right["obeyed"] == 1
    swapped = two_subjects.scores(two_subjects.true_pictures(SUBJECTS[::-1], 5), SUBJECTS, 5)
    assert swapped["likeness"] < 0.3 and swapped["swapped"] > 0.85
    # the left toy twice: its half is right, the other half is not
    twice = true.clone()
    twice[..., 16:] = two_subjects.true_pictures((SUBJECTS[0], SUBJECTS[0]), 5)[..., 16:]
    found = two_subjects.scores(twice, SUBJECTS, 5)
    assert 0.35 < found["likeness"] < 0.75 and found["swapped"] > 0.35


def test_the_page_has_floor_ceiling_and_intervals(tmp_path):
    rows = [
        {"subjects": f"{i}", "seed": i, "method": method, "likeness": value + 0.01 * i, "swapped": 0.5 - value / 2,
         "obeyed": 1.0}
        for i in range(5)
        for method, value in ((FLOOR, 0.0), (EVERYWHERE, 0.3 + 0.02 * i), (REGIONS, 0.6), (CEILING, 0.9))
    ]  # fmt: skip
    pictures = {method: torch.zeros(4, 3, 32, 32) for method in (FLOOR, EVERYWHERE, REGIONS, CEILING)}
    page = two_subjects._report(rows, pictures, tmp_path).read_text()
    assert "| base model | 0.020 | 0.500 | 1.000 |" in page and "| true renders | 0.920 |" in page
    assert "+0.260 [+0.221, +0.299], n = 5" in page and page.count("holds here") == 2
    assert (tmp_path / "figures" / "two_subjects.png").is_file() and (tmp_path / "tables" / "units.csv").is_file()


def test_it_runs_on_what_the_study_before_it_has_left(tmp_path, monkeypatch, capsys):
    study = dataclasses.replace(
        load_study("holding"), subjects=SUBJECTS, seeds=(1, 2), methods=("DCO",), contrasts=(), side_by_side=2,
        training={"steps": 2, "batch_size": 1, "learning_rate": 0.01, "beta": 1.0, "weighting": "epsilon"},
        checkpoints=(), checkpoint=2, prompts=2, others=1, sampling_steps=1, distance_timesteps=1, distance_draws=1,
    )  # fmt: skip
    monkeypatch.setattr(two_subjects, "load_study", lambda name: study)
    assert run(study, tmp_path / "before", ["cpu"], lambda text: None) == []
    arguments = ["--loras", str(tmp_path / "before"), "--output", str(tmp_path / "after")]
    assert main(["evidence", "--study", "two-subjects", *arguments]) == 0
    assert "toy-1 and toy-2 done" in capsys.readouterr().out
    rows = {row["method"]: row for row in read_table(tmp_path / "after" / "tables" / "units.csv")}
    assert list(rows) == [FLOOR, EVERYWHERE, REGIONS, CEILING]
    assert rows[CEILING]["likeness"] > 0.85 and rows[FLOOR]["likeness"] < 0.5
    assert rows[FLOOR]["likeness"] == pytest.approx(rows[FLOOR]["swapped"])  # over both orders it is the same pictures
    assert "too few units" in (tmp_path / "after" / "evidence.md").read_text()


def test_options_that_would_have_no_effect(tmp_path, capsys):
    output = ["--output", str(tmp_path), "--report-only"]
    assert main(["evidence", "--study", "holding", "--loras", str(tmp_path), *output]) == 1
    assert "--loras is for --study two-subjects" in capsys.readouterr().err
    assert main(["evidence", "--study", "holding", "--model", "toy-world:flow", *output]) == 1
    assert "is a study of epsilon: leave --model out" in capsys.readouterr().err


def test_loras_that_are_not_there(tmp_path, capsys):
    with pytest.raises(DCOError, match="--study holding"):
        two_subjects.run(tmp_path, tmp_path / "out")
    assert main(["evidence", "--study", "two-subjects", "--output", str(tmp_path)]) == 1
    assert "needs --loras" in capsys.readouterr().err
