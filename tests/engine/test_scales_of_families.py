"""Previews of a training and the header of its file suggest the same guidance, for every family of the host."""

import pytest
from small_models import FAMILIES, small_model

from devtools import in_process_host as host


@pytest.mark.parametrize("family", FAMILIES)
def test_previews_show_what_the_file_suggests(family):
    model = small_model(family)
    ours = host.pack("nodes.host.training.image_model").HostImageModel(model, None, None)
    header = host.pack("dco_core.pipeline.file_header").TrainedHeader(
        host.pack("dco_core.training.config").TrainingConfig(), rank=4, alpha=4.0, layers="attention",
        family=ours.family, prediction=ours.prediction, captions=["a <dog>"], other={},
    ).entries("dog", 7, {})  # fmt: skip
    suggested = float(header["dco.w_rg"]), float(header["dco.w_text"])
    found = host.pack("dco_core.suggested_scales").suggested_scales(ours.family, ours.prediction)
    assert (found.w_rg, found.w_text) == suggested
    assert ours.w_text == suggested[1]
