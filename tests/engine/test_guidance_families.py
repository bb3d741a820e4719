"""Reward guidance on every family of the host, a LoRA on all of its layers, against two separately patched models."""

import pytest
import torch
from guiding import Case, guided
from small_models import FAMILIES, lora_for, small_model, text

from benchmarks import host


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_matches_two_models(family):
    Case(family, batch=2).check()


@pytest.mark.parametrize("family", ["sdxl", "flux", "qwen-image", "wan"])
def test_a_prompt_of_its_own_for_theta(family):
    Case(family).check(personalized=text(family, 9, 8))


def test_slices_of_fused_layers(monkeypatch):
    """diffusers names q, k and v of Flux apart; the host's network has them in one layer."""
    lora = {}
    for i, part in enumerate(("to_q", "to_k", "to_v")):
        for block in ("transformer_blocks.0", "single_transformer_blocks.0"):
            generator = torch.Generator().manual_seed(i)
            name = f"transformer.{block}.attn.{part}"
            lora[f"{name}.lora_A.weight"] = torch.randn((2, 48), generator=generator) / 7
            lora[f"{name}.lora_B.weight"] = torch.randn((48, 2), generator=generator) / 2
    Case("flux", lora=lora).check()


@pytest.mark.parametrize("family", FAMILIES)
def test_conditioning_of_another_model_is_refused_before_anything_runs(family):
    case = Case(family)
    case.positive = [[torch.zeros(1, 7, 40), {"pooled_output": torch.zeros(1, 8), "guidance": 3.5}]]
    with pytest.raises(Exception, match=r"positive conditioning is of another model: its text is 40 wide, this model \(\w+\) reads 24"):
        case.ours()


@pytest.mark.parametrize("family, other", [("sd15", "flux"), ("flux", "sdxl"), ("wan", "sd15")])
def test_a_lora_of_another_family_is_refused(family, other):
    lora = lora_for(small_model(other))
    error = host.pack("dco_core.errors").DCOError
    with pytest.raises(error, match="does not belong to this model"):
        guided(small_model(family), lora)
