"""The sweep's pictures, their labels and the sheet, for images and for videos."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from guiding import Case

from devtools import in_process_host as host


class Vae:
    """Latents as pictures, four times as large; of a video [B, C, T, H, W] -> frames [B, T, H, W, 3]."""

    def decode(self, latent):
        images = latent[:, :3].movedim(1, -1).sigmoid()
        return images.repeat_interleave(4, -2).repeat_interleave(4, -3)


@pytest.mark.parametrize("family, frames", [("sd15", 1), ("wan", 3)])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_picture_has_a_label(family, frames, batch):
    sweep = host.pack("nodes.guidance.sweep")
    case = Case(family, batch=batch)
    node = type("Sweep", (sweep.DCORewardGuidanceSweep,), {"hidden": SimpleNamespace(unique_id=None)})
    images, sheet, labels, report = node.execute(
        case.phi, case.lora, case.positive, case.negative, case.start, Vae(), "0, 2",
        {"across": sweep.BY_W_TEXT, "w_text_values": "3, 4, 5"}, 3, 2, 7.5, "euler", "normal",
    ).args  # fmt: skip
    assert len(images) == len(labels) == 2 * 3 * batch * frames
    assert labels[:2] == ["w_text 3, w_rg 0", "w_text 3, w_rg 2"]
    each = {label: labels.count(label) for label in labels}
    assert len(each) == 6 and set(each.values()) == {batch * frames}
    assert len(report.splitlines()) == 6
    own = [image for image, label in zip(images, labels, strict=True) if label == "w_text 4, w_rg 2"]
    other = [image for image, label in zip(images, labels, strict=True) if label == "w_text 5, w_rg 2"]
    assert all(float((a - b).abs().max()) > 1e-4 for a, b in zip(own, other, strict=True))
    one_row = node.execute(
        case.phi, case.lora, case.positive, case.negative, case.start, Vae(), "0, 2", {"across": sweep.ALONE}, 3, 2,
        4.0, "euler", "normal",
    ).args[0]  # fmt: skip
    assert [bool((a == b).all()) for a, b in zip(own, one_row[1::2], strict=True)] == [True] * (batch * frames)
    assert sheet.shape[1] < 3 * batch * (images.shape[1] * 4 + 40) + 200  # a row for each video, not for each frame
