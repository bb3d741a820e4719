"""Pictures prepared for a MODEL of the host as the trainer node does it, with a CLIP and a VAE of a few lines."""

from __future__ import annotations

import torch

from dco_core.network.lora_layers import AdapterConfig
from devtools import in_process_host as host


class OneText:
    """A CLIP that has one CONDITIONING for every caption."""

    def __init__(self, conditioning):
        self.conditioning = conditioning

    def tokenize(self, text, **_):
        return text

    def encode_from_tokens_scheduled(self, _):
        return self.conditioning


class PictureVAE:
    """A VAE for the host's nodes: the mean of each 8 x 8 pixels, in as many channels as the family has."""

    first_stage_model = None

    def __init__(self, channels):
        self.channels = channels

    def encode(self, pixels):
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8).mean(1, keepdim=True)
        return small * torch.linspace(-1, 1, self.channels)[None, :, None, None]


def prepare(model, clip, vae, pictures, **values):
    """(the ImageModel, the prepared pictures), of the trainer node's inputs."""
    settings, config = host.pack("nodes.training.settings"), host.pack("dco_core.training.config").TrainingConfig()
    ours = host.pack("nodes.host.training.image_model").HostImageModel(model, clip, vae)
    data = host.pack("dco_core.pipeline.pictures").TrainingPictures(pictures, config)
    how = settings.preparation(settings.settled({"recipe": [None]}, {"resolution": 64} | values), data.captions)
    with torch.inference_mode():  # as the host runs nodes
        return ours, host.pack("dco_core.pipeline.examples").PreparedPictures(ours, data, how)


def examples_of(model, clip, vae, pictures, **values):
    """The trainer's examples."""
    ours, prepared = prepare(model, clip, vae, pictures, **values)
    with ours.training(AdapterConfig(rank=1), False, "auto") as denoiser:
        return prepared.examples(denoiser)
