"""Previews of a training and the header of its file suggest the same guidance, for every family of the host."""

import pytest
from small_models import FAMILIES, small_model

from benchmarks import host


@pytest.mark.parametrize("family", FAMILIES)
def test_previews_show_what_the_file_suggests(family):
    model, training = small_model(family), host.pack("nodes.host.training.network")
    header = host.pack("dco_core.pipeline.file_header").TrainedHeader(
        host.pack("dco_core.training.config").TrainingConfig(), rank=4, alpha=4.0, layers="attention",
        family=host.pack("nodes.host.layer_names").family(model),
        prediction=training.schedule_of(model.get_model_object("model_sampling")).prediction, captions=["a <dog>"],
        other={},
    ).entries("dog", 7, {})  # fmt: skip
    suggested = float(header["dco.w_rg"]), float(header["dco.w_text"])
    assert host.pack("nodes.host.training.previews").scales(model) == suggested
