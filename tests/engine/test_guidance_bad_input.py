"""LoRAs and conditionings that do not belong to the model, or are not whole: one sentence, before anything runs."""

import pytest
import torch
from guiding import Case, guided
from small_models import FAMILIES, lora_for, small_model

from devtools import in_process_host as host

QUERY = "middle_block.1.transformer_blocks.0.attn1.to_q"


def refused(match: str, lora, family: str = "sd15") -> None:
    with pytest.raises(host.pack("dco_core.errors").DCOError, match=match):
        guided(small_model(family), lora)


OTHERS = [("sd15", "flux"), ("flux", "sdxl"), ("wan", "sd15"), ("qwen-image", "wan")]


@pytest.mark.parametrize("family, other", OTHERS)
def test_a_lora_of_another_family(family, other):
    lora = lora_for(small_model(other))
    words = rf'does not belong to this model \(\w+\): 0 of its {len(lora)} keys match, .*"{next(iter(lora))}"'
    refused(words, lora, family)


def test_a_lora_most_of_whose_layers_the_model_lacks():
    """Qwen-Image and Flux share names and widths: a few layers fit by chance."""
    own, other = lora_for(small_model("sd15"), names=[QUERY]), lora_for(small_model("flux"))
    count = len(own) + len(other)
    first = next(iter(other))
    refused(
        f'{len(own)} of its {count} keys match, the first that names no layer of it is "{first}"', own | other
    )


def test_a_few_layers_that_the_model_lacks_are_told_and_left_out(caplog):
    case = Case()
    keys = len(case.lora)
    case.lora |= {f"diffusion_model.more.0.lora_{end}.weight": torch.zeros(4, 4) for end in ("up", "down")}
    case.check()
    assert f"{keys} of {keys + 2} LoRA keys fit this model" in caplog.text
    assert 'the first is "diffusion_model.more.0.lora_up.weight"' in caplog.text


def test_all_parts_of_a_lora_that_fits_count_as_its_own(caplog):
    """Biases, norms and text encoder keys are no strangers."""
    case = Case()
    name = "diffusion_model.out.2"
    case.lora |= {
        f"{name}.diff_b": torch.ones(4),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(()),
    }
    norm = "diffusion_model.out.0"
    case.lora |= {f"{norm}.w_norm": torch.ones(32), f"{norm}.b_norm": torch.ones(32)}
    guided(case.phi, case.lora)
    assert "LoRA keys fit" not in caplog.text


def test_shapes_of_another_size():
    lora = lora_for(small_model("sd15"))
    layers = len(lora) // 3
    for end, shape in (("down", (2, 48)), ("up", (48, 2))):
        lora[f"diffusion_model.{QUERY}.lora_{end}.weight"] = torch.zeros(shape)
    first = f'the first that does not is "diffusion_model.{QUERY}.lora_down.weight"'
    words = f"{layers - 1} of its {layers} layers match, {first}"
    refused(words + r": it has \(48, 2\) and \(2, 48\), and diffusion_model.*to_q.weight is \(64, 64\)", lora)


def test_factors_of_two_ranks():
    lora = lora_for(small_model("sd15"), names=[QUERY])
    lora[f"diffusion_model.{QUERY}.lora_up.weight"] = torch.zeros(64, 3)
    refused(r"0 of its 1 layers match.*\(64, 3\) and \(2, 64\)", lora)


TUCKER = {"hada_t1": (2, 2, 3, 3)}
HADA = {"hada_w1_a": (64, 2), "hada_w1_b": (2, 64), "hada_w2_a": (64, 2), "hada_w2_b": (2, 64)}
LOKR = {"lokr_w1": (4, 4), "lokr_w2": (16, 16)}


@pytest.mark.parametrize(
    "parts, lost",
    [*((HADA, part) for part in HADA), *((LOKR, part) for part in LOKR), (HADA | TUCKER, "hada_t2")],
)
def test_factors_that_are_missing(parts, lost):
    whole = lora_for(small_model("sd15"), names=["middle_block.1.transformer_blocks.0.attn1.to_k"])
    layer = f"diffusion_model.{QUERY}"
    lora = {f"{layer}.{part}": torch.zeros(shape) for part, shape in parts.items() if part != lost}
    refused(rf'not whole: it has "{layer}.\w+" but not "{layer}.{lost}"; \d+ of its keys', lora | whole)


@pytest.mark.parametrize("lost, kept", [("up", "down"), ("down", "up")])
def test_half_of_a_pair_is_missing(lost, kept):
    lora = lora_for(small_model("sd15"))
    pairs = len(lora) // 3
    layer = f"diffusion_model.{QUERY}"
    del lora[f"{layer}.lora_{lost}.weight"]
    words = f'it has "{layer}.lora_{kept}.weight" but not "{layer}.lora_{lost}.weight"'
    refused(f"{words}; {2 * (pairs - 1)} of its keys have", lora)


def test_a_bias_where_the_model_has_none():
    lora = lora_for(small_model("sd15"), names=[QUERY]) | {f"diffusion_model.{QUERY}.diff_b": torch.zeros(64)}
    refused(r"1 of its 2 layers match.*to_q.bias is not in this model", lora)


@pytest.mark.parametrize("family", FAMILIES)
def test_conditioning_of_another_model(family):
    case = Case(family)
    case.positive = [[torch.zeros(1, 7, 40), {"pooled_output": torch.zeros(1, 8), "guidance": 3.5}]]
    with pytest.raises(Exception, match=r"positive .* its text is 40 wide, this model \(\w+\) reads 24"):
        case.ours()


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_a_pooled_output_of_another_model(family):
    case = Case(family)
    other = [[torch.zeros(1, 7, 24), {"pooled_output": torch.zeros(1, 10), "guidance": 3.5}]]
    case.negative = case.negative + other
    with pytest.raises(
        Exception, match=r"negative conditioning \(2 of 2\) .* pooled output is 10 wide, .* reads 8"
    ):
        case.ours()
    case.negative = case.negative[:1]
    with pytest.raises(Exception, match="personalized conditioning is of another model"):
        case.ours(personalized=other)


@pytest.mark.parametrize("family, layer", [("qwen-image", "joint_attention_dim"), ("wan", "text_dim")])
def test_the_width_is_read_off_the_network_where_the_configuration_has_none(family, layer):
    """As the host detects these two from a file."""
    model = small_model(family).model
    model.model_config.unet_config.pop(layer)
    assert host.pack("nodes.host.guidance.conditioning_check").text_width(model) == 24
