"""What the header of a trained file tells other nodes."""

import json

import pytest

from dco_core.pipeline.file_header import TrainedHeader
from dco_core.training.config import TrainingConfig


def entries(
    family="sdxl_base_v1-0", prediction="epsilon", captions=("a <rex> in the rain",), words=None, **config
):
    header = TrainedHeader(
        TrainingConfig(**config), rank=4, alpha=2.0, layers="attention", family=family, prediction=prediction,
        captions=captions, other={"crop": "square"},
    )  # fmt: skip
    return header.entries("rex", 7, words or {})


@pytest.mark.parametrize(
    ("family", "prediction", "w_text", "w_rg"),
    [
        ("sdxl_base_v1-0", "epsilon", 7.5, 3.0),
        ("sd_v2", "v", 7.5, 3.0),
        ("sd3", "flow", 4.5, 1.8),
        ("flux1", "flow", 1.0, 0.6),
        ("QwenImage", "flow", 4.0, 1.6),
        ("WAN21_I2V", "flow", 5.0, 2.0),
        ("ZImage", "flow", 4.0, 1.6),
        ("ToyWorld", "flow", 2.0, 1.4),
    ],
)
def test_scales_to_begin_with_for_every_prediction(family, prediction, w_text, w_rg):
    found = entries(family, prediction)
    assert (float(found["dco.w_text"]), float(found["dco.w_rg"])) == (w_text, w_rg)


def test_words_that_trigger_it_and_words_that_the_base_model_reads():
    captions = ["a <rex> and a <cat>", "a <rex> in <ink> style"]
    found = entries(captions=captions, words={"rex": "golden retriever", "ink": ""})
    assert found["modelspec.trigger_phrase"] == "<rex>, cat, <ink>"
    assert found["dco.base_words"] == "golden retriever, cat"
    assert json.loads(found["dco.tokens"]) == {"rex": "golden retriever", "ink": ""}
    assert "dco.tokens" not in entries()
    assert entries()["modelspec.trigger_phrase"] == "rex"


def test_beta_is_told_where_there_is_one_and_the_whole_configuration_always():
    assert float(entries(beta=0.25)["dco.beta"]) == 0.25
    plain = entries(objective="dreambooth", seed=9)
    assert "dco.beta" not in plain
    config = json.loads(plain["dco.config"])
    assert (config["seed"], config["rank"], config["alpha"], config["crop"]) == (9, 4, 2.0, "square")
