"""ZipLoRA: columns of two LoRAs scaled so that together they do what each does alone (Shah et al. 2023, arXiv
2311.13600, Eq. 4 and 5).

    dW = m_c * dW_c + m_s * dW_s            m: one number for each column, that is each input channel
    L  = |D(dW; x_c) - D(dW_c; x_c)|^2 + |D(dW; x_s) - D(dW_s; x_s)|^2 + lambda sum_layers |m_c . m_s|

D is the base model with a change of weights, x_c and x_s are noised latents with prompts of the content and the style.
As in the implementation in use (github.com/mkshing/ziplora-pytorch) squares and products are means over elements, and
the mergers start at 1; unlike there dW is alpha / rank up @ down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DCOError
from ..lora import LoraLayer, LoraWeights, canonical_keys
from ..lora.keys import UNET
from ..network.denoiser import NetworkDenoiser
from .config import TrainingConfig
from .draws import Draw, random_draws
from .examples import Example, Prompt

Mergers = tuple[Tensor, Tensor]  # m_c and m_s of one layer, [in]
_CONTENT, _STYLE, _MERGED = "content", "style", "merged"


@dataclass(frozen=True)
class ZipSettings:
    """The paper's: 100 steps at 0.01, lambda 0.01."""

    steps: int = 100
    learning_rate: float = 0.01
    similarity: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class ZipResult:
    """mergers: by the names of the layers. losses: (content, style, similarity) of every step."""

    mergers: dict[str, Mergers]
    losses: list[tuple[float, float, float]]

    def text(self) -> str:
        (c0, s0, m0), (c1, s1, m1) = self.losses[0], self.losses[-1]
        return (
            f"ZipLoRA, {len(self.losses)} steps: content loss {c0:.3g} -> {c1:.3g}, style loss {s0:.3g} -> {s1:.3g}, "
            f"similarity of the mergers {m0:.3g} -> {m1:.3g}."
        )


def zip_mergers(
    denoiser: NetworkDenoiser,
    names: Sequence[Mapping[str, str]],
    loras: Sequence[LoraWeights],
    examples: Sequence[Sequence[Example]],
    settings: ZipSettings,
    weights: tuple[float, float] = (1.0, 1.0),
    callback: Callable[[int], None] = lambda step: None,
) -> ZipResult:
    """The mergers of the layers of a network that both LoRAs have, by canonical key.

    names: of each LoRA, {its key: the dotted name of the module}; see `names_by`. loras, examples: of the content and
    of the style; layers that the network has not, as those of text encoders, are left out. The rest as in `optimise`.
    Raises DCOError if a LoRA has no layer of the network or one of another shape, if the two name one module in two
    ways, and for what `optimise` refuses."""
    merged = _merged_keys(loras, names)
    modules = dict(denoiser.network.named_modules())
    content, style = (
        _layers_of(modules, lora, own, which)
        for which, (lora, own) in enumerate(zip(loras, names, strict=True), 1)
    )
    subject, styled = examples
    found = optimise(denoiser, content, style, subject, styled, settings, weights, callback)
    return ZipResult({merged[name]: pair for name, pair in found.mergers.items()}, found.losses)


def names_by(canonical: Callable[[str], str], network: nn.Module, lora: LoraWeights) -> dict[str, str]:
    """{key: dotted name of the module} of a LoRA's layers, from what gives a module's canonical key."""
    keys = {canonical(name): name for name, module in network.named_modules() if hasattr(module, "weight")}
    return {key: keys[key] for key in lora.layers if key in keys}


def _merged_keys(loras: Sequence[LoraWeights], names: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """{dotted name of a module: its key in the merged LoRA}. Raises DCOError where the merge would take layers of
    different modules for one, or of one module for two."""
    keys = canonical_keys(key for lora in loras for key in lora.layers)
    found: dict[str, str] = {}
    modules: dict[str, str] = {}
    for own in names:
        for key, module in own.items():
            merged = keys[key]
            if found.setdefault(module, merged) != merged or modules.setdefault(merged, module) != module:
                raise DCOError(
                    f"The two LoRAs name the blocks of this model in two ways ({merged} is {module} in one of them "
                    "alone), which a merge of a UNet without two blocks per level cannot match: use files that name "
                    "them alike."
                )
    return found


def _layers_of(
    modules: Mapping[str, nn.Module], lora: LoraWeights, names: Mapping[str, str], which: int
) -> dict[str, LoraLayer]:
    """The LoRA's layers of the network by dotted name, in the shapes of its weights."""
    unknown = next((key for key in lora.layers if key.startswith(UNET) and key not in names), None)
    if names and unknown:  # what it is paired with by its key is another layer
        raise DCOError(
            f"LoRA {which} does not belong to this model: it has no layer {lora.paths.get(unknown, unknown)}. Load the "
            "checkpoint that it was trained on."
        )
    found = {}
    for key, name in names.items():
        layer, shape = lora.layers[key], tuple(modules[name].weight.shape)
        if (layer.shape[0], layer.down[0].numel()) != (shape[0], math.prod(shape[1:])):
            raise DCOError(
                f"LoRA {which} does not belong to this model: {key} has shape {list(layer.shape)}, the layer "
                f"{list(shape)}. Load the checkpoint that it was trained on."
            )
        kernel = shape[2:]
        down = layer.down.reshape(layer.rank, shape[1], *kernel)
        up = layer.up.reshape(shape[0], layer.rank, *(1 for _ in kernel))
        found[name] = LoraLayer(down, up, layer.alpha)
    if not found:
        raise DCOError(
            f"LoRA {which} does not belong to this model: it has none of its layers. Load the checkpoint that it was "
            "trained on."
        )
    return found


def optimise(
    denoiser: NetworkDenoiser,
    content: Mapping[str, LoraLayer],
    style: Mapping[str, LoraLayer],
    content_examples: Sequence[Example],
    style_examples: Sequence[Example],
    settings: ZipSettings,
    weights: tuple[float, float] = (1.0, 1.0),
    callback: Callable[[int], None] = lambda step: None,
) -> ZipResult:
    """Find the mergers of the layers that both LoRAs have. The base model is left as it was.

    denoiser: the base model without an adapter. content, style: layers by dotted module name; weights scale their dW.
    callback: called with the number of each step.

    Raises DCOError if the LoRAs share no layer or the loss is not finite."""
    shared = [name for name in content if name in style]
    if not shared:
        raise DCOError(
            "ZipLoRA: the two LoRAs share no layer, so that nothing interferes: use the exact sum."
        )
    device = next(denoiser.network.parameters()).device
    modules = dict(denoiser.network.named_modules())
    mergers = {name: _ones(content[name], device) for name in shared}
    optimizer = torch.optim.Adam([m for pair in mergers.values() for m in pair], lr=settings.learning_rate)
    draws = _draws(denoiser, content_examples, style_examples, settings)
    losses: list[tuple[float, float, float]] = []
    with _attached(modules, (content, style), weights, mergers) as mode:
        for step in range(settings.steps):
            parts = []
            for own, (examples, draw) in zip((_CONTENT, _STYLE), next(draws), strict=True):
                mode.name = own
                with torch.no_grad():
                    target = _predict(denoiser, examples, draw)
                mode.name = _MERGED
                parts.append(F.mse_loss(_predict(denoiser, examples, draw).float(), target.float()))
            similarity = torch.stack([(c * s).abs().mean() for c, s in mergers.values()]).sum()
            loss = parts[0] + parts[1] + settings.similarity * similarity
            losses.append((float(parts[0].detach()), float(parts[1].detach()), float(similarity.detach())))
            if not torch.isfinite(loss):
                raise DCOError(
                    f"ZipLoRA: the loss of step {step + 1} is not finite: use a model in fp32 or bf16."
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            callback(step + 1)
    return ZipResult({name: (c.detach().cpu(), s.detach().cpu()) for name, (c, s) in mergers.items()}, losses)


def _ones(layer: LoraLayer, device: torch.device) -> Mergers:
    columns = layer.down.shape[1]
    return torch.ones(columns, device=device).requires_grad_(), torch.ones(
        columns, device=device
    ).requires_grad_()


def _draws(
    denoiser: NetworkDenoiser, content: Sequence[Example], style: Sequence[Example], settings: ZipSettings
) -> Iterator[tuple[tuple[Sequence[Example], Draw], tuple[Sequence[Example], Draw]]]:
    """A draw of the content and one of the style for every step, from the seed."""
    config = TrainingConfig(seed=settings.seed, batch_size=1)
    t = len(denoiser.schedule)
    both = zip(random_draws(content, t, config), random_draws(style, t, config), strict=True)
    return (((content, a[0]), (style, b[0])) for a, b in both)


def _predict(denoiser: NetworkDenoiser, examples: Sequence[Example], draw: Draw) -> Tensor:
    example = examples[draw.image]
    x0, t = example.latent[None], torch.tensor([draw.t])
    x_t = denoiser.schedule.noised(x0, draw.noise[None].to(x0), t)
    return denoiser.forward(x_t, t, [example.conditioning_of(Prompt.OWN)])


class _Mode:
    """Which change of weights the hooks add."""

    name = _MERGED


@contextmanager
def _attached(
    modules: Mapping[str, nn.Module],
    loras: Sequence[Mapping[str, LoraLayer]],
    weights: Sequence[float],
    mergers: Mapping[str, Mergers],
) -> Iterator[_Mode]:
    """Hooks that add one LoRA, the other, or both with the mergers' columns, by the mode; off again on exit."""
    mode, handles = _Mode(), []
    try:
        for name in {**loras[0], **loras[1]}:
            parts = [(lora.get(name), weight) for lora, weight in zip(loras, weights, strict=True)]
            handles.append(modules[name].register_forward_hook(_hook(mode, parts, mergers.get(name))))
        yield mode
    finally:
        for handle in handles:
            handle.remove()


def _hook(mode: _Mode, parts: Sequence[tuple[LoraLayer | None, float]], mergers: Mergers | None):
    moved: list[tuple[Tensor, Tensor, float] | None] = []

    def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        x = args[0]
        if not moved:  # cloned: a host may hand over tensors of its inference mode
            moved.extend(
                None
                if layer is None
                else (layer.down.clone().to(x), layer.up.clone().to(x), weight * layer.scale)
                for layer, weight in parts
            )
        for i, own in enumerate((_CONTENT, _STYLE)):
            pair = moved[i]
            if pair is None or mode.name not in (own, _MERGED):
                continue
            m = mergers[i].to(x) if mergers is not None and mode.name == _MERGED else None
            output = output + _low_rank(module, x, pair, m)
        return output

    return add


def _low_rank(module: nn.Module, x: Tensor, pair: tuple[Tensor, Tensor, float], m: Tensor | None) -> Tensor:
    """scale * up(down(m * x)), in the way of the module."""
    down, up, scale = pair
    if isinstance(module, nn.Conv2d):
        x = x if m is None else x * m[None, :, None, None]
        h = F.conv2d(x, down, None, module.stride, module.padding, module.dilation)
        return scale * F.conv2d(h, up)
    x = x if m is None else x * m
    return scale * F.linear(F.linear(x, down.flatten(1)), up.flatten(1))
