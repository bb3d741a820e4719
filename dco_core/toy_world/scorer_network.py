"""The network that reads pictures of the Toy World: a small CNN, trained by tools/train_toy_scorer.py on renders that
are blurred, grainy and off in colour as model samples are. Unlike the base model it has seen every toy and every print,
the held-out ones included."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import DCOError
from .world import EAR_SHAPES, FACTORS

WEIGHTS = Path(__file__).with_name("scorer.safetensors")

# Attributes are read as centre + scale * output; RGB and sizes in the units of world.Scenes.
ATTRIBUTES = {
    "body_rgb": (3, 0.5, 0.30), "accent_rgb": (3, 0.5, 0.30), "ear_size": (1, 0.425, 0.072),
    "stretch": (1, 1.025, 0.10), "ink_rgb": (3, 0.2, 0.15), "paper_rgb": (3, 0.75, 0.20),
}  # fmt: skip
HEADS = {
    **{name: len(values) for name, values in FACTORS.items()},
    "ears": len(EAR_SHAPES),
    **{name: width for name, (width, _, _) in ATTRIBUTES.items()},
}


class Scorer(nn.Module):
    """Images [B, 3, 32, 32] in about -1..1 -> outputs {head: [B, width]}, heads as in HEADS: logits for the
    factors and `ears`, attributes in their own units for the rest."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, kernel, stride in ((32, 4, 2), (48, 3, 1), (64, 3, 2), (64, 3, 1), (96, 3, 2), (96, 3, 1)):
            convolution = nn.Conv2d(channels, width, kernel, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 16, 128), nn.ReLU())
        self.heads = nn.Linear(128, sum(HEADS.values()))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.heads(self.features(images.clamp(-1, 1))).split(list(HEADS.values()), dim=1)
        read = dict(zip(HEADS, outputs, strict=True))
        for name, (_, centre, scale) in ATTRIBUTES.items():
            read[name] = centre + scale * read[name]
        return read


@functools.cache
def load_scorer() -> Scorer:
    """The shipped scorer in fp32, frozen."""
    scorer = Scorer()
    weights = {name: value.float() for name, value in load_file(WEIGHTS).items()}
    scorer.load_state_dict(weights, strict=False)  # BatchNorm's step counters are not shipped
    return scorer.eval().requires_grad_(False)


def readings(images: Tensor) -> dict[str, Tensor]:
    """Probabilities and attributes that the shipped scorer gives images [B, 3, 32, 32], {head: [B, width]}, on the CPU.
    DCOError for images of another shape."""
    if images.ndim != 4 or images.shape[1:] != (3, 32, 32):
        raise DCOError(
            f"images of shape {list(images.shape)} cannot be scored: give Toy World images [B, 3, 32, 32]."
        )
    with torch.no_grad():
        chunks = [load_scorer()(chunk) for chunk in images.detach().float().cpu().split(256)]
    joined = {name: torch.cat([chunk[name] for chunk in chunks]) for name in HEADS}
    return {name: out if name in ATTRIBUTES else out.softmax(1) for name, out in joined.items()}
