"""Every adapter type that the host merges, given to one row of a batch, against the host's own merge."""

import functools
from collections.abc import Callable

import pytest
import torch
from guiding import Case, difference, guided
from small_models import layers, lora_for, small_model
from torch import Tensor
from two_models import cfg, formula, merged, oracle, sample

LINEAR = "middle_block.1.transformer_blocks.0.attn2.to_k"
OTHER = "output_blocks.1.1.transformer_blocks.0.ff.net.2"
CONV = "input_blocks.1.0.in_layers.2"  # 3x3
POINT = "middle_block.1.proj_in"  # 1x1
STRIDED = "input_blocks.2.0.op"
NORM, GROUP_NORM = "middle_block.1.transformer_blocks.0.norm2", "middle_block.1.norm"
Parts = dict[str, Tensor]


@functools.cache
def shape_of(name: str) -> tuple[int, ...]:
    return layers(small_model("sd15"))[name]


def draw(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return size * torch.randn(shape, generator=generator)


def lora(name: str) -> Parts:
    out, *inner = shape_of(name)
    up = draw(out, 2, *[1] * (len(inner) - 1), size=0.2)
    return {"lora_down.weight": draw(2, *inner, size=0.2), "lora_up.weight": up, "alpha": torch.tensor(3.0)}


def tucker(name: str) -> Parts:
    out, inner, *kernel = shape_of(name)
    return {
        "lora_down.weight": draw(2, inner, 1, 1, size=0.4), "lora_up.weight": draw(out, 2, 1, 1, size=0.4),
        "lora_mid.weight": draw(2, 2, *kernel, size=0.4), "alpha": torch.tensor(2.0),
    }  # fmt: skip


def loha(name: str) -> Parts:
    out, *inner = shape_of(name)
    size = torch.Size(inner).numel()
    return {
        "hada_w1_a": draw(out, 2), "hada_w1_b": draw(2, size, seed=1, size=0.2),
        "hada_w2_a": draw(out, 2, seed=2), "hada_w2_b": draw(2, size, seed=3, size=0.2), "alpha": torch.tensor(1.0),
    }  # fmt: skip


def loha_tucker(name: str) -> Parts:
    out, inner, *kernel = shape_of(name)
    return {
        "hada_w1_a": draw(2, out), "hada_w1_b": draw(2, inner, seed=1, size=0.3),
        "hada_w2_a": draw(2, out, seed=2), "hada_w2_b": draw(2, inner, seed=3, size=0.3),
        "hada_t1": draw(2, 2, *kernel, size=0.5), "hada_t2": draw(2, 2, *kernel, seed=1, size=0.5),
        "alpha": torch.tensor(1.0),
    }  # fmt: skip


def lokr(name: str) -> Parts:
    out, inner, *kernel = shape_of(name)
    return {"lokr_w1": draw(4, 2), "lokr_w2": draw(out // 4, inner // 2, *kernel, size=0.1)}


def lokr_low_rank(name: str) -> Parts:
    out, inner = shape_of(name)
    return {
        "lokr_w1_a": draw(4, 2), "lokr_w1_b": draw(2, 2, seed=1), "lokr_w2_a": draw(out // 4, 2, seed=2),
        "lokr_w2_b": draw(2, inner // 2, seed=3, size=0.2), "alpha": torch.tensor(1.0),
    }  # fmt: skip


def oft(name: str) -> Parts:
    out = shape_of(name)[0]
    return {"oft_blocks": draw(4, out // 4, out // 4, size=0.1), "alpha": torch.tensor(1.0)}


def boft(name: str) -> Parts:
    out = shape_of(name)[0]
    return {"oft_blocks": draw(2, out // 4, 4, 4, size=0.1), "alpha": torch.tensor(1.0)}


def glora(name: str) -> Parts:
    out, inner = shape_of(name)
    return {
        "a1.weight": draw(2, inner, size=0.2), "a2.weight": draw(inner, 2, size=0.2),
        "b1.weight": draw(2, inner, size=0.2, seed=1), "b2.weight": draw(out, 2, size=0.2, seed=1),
        "alpha": torch.tensor(2.0),
    }  # fmt: skip


def dora(inner: Callable[[str], Parts], on_inputs: bool = False) -> Callable[[str], Parts]:
    def made(name: str) -> Parts:
        out, width, *kernel = shape_of(name)
        shape = (1, width, *[1] * len(kernel)) if on_inputs else (out, 1, *[1] * len(kernel))
        return inner(name) | {"dora_scale": 1 + draw(*shape, size=0.2).abs()}

    made.__name__ = f"dora_{inner.__name__}" + "_on_inputs" * on_inputs
    return made


def diff(name: str) -> Parts:
    return {"diff": draw(*shape_of(name), size=0.05), "diff_b": draw(shape_of(name)[0], size=0.3)}


def replaced(name: str) -> Parts:
    return {"set_weight": draw(*shape_of(name), size=0.1)}


def norm(name: str) -> Parts:
    width = {NORM: 64, GROUP_NORM: 64}[name]
    return {"w_norm": draw(width, size=0.3), "b_norm": draw(width, size=0.3, seed=1)}


ADAPTER_TYPES = [
    (lora, LINEAR), (lora, CONV), (lora, POINT), (lora, STRIDED), (tucker, CONV), (loha, LINEAR), (loha, CONV),
    (loha_tucker, CONV), (lokr, LINEAR), (lokr, CONV), (lokr_low_rank, LINEAR), (oft, LINEAR), (oft, CONV),
    (boft, LINEAR), (glora, LINEAR), (dora(lora), LINEAR), (dora(lora), CONV), (dora(lora, True), LINEAR),
    (dora(loha), LINEAR), (dora(lokr), LINEAR), (diff, OTHER), (diff, CONV), (replaced, LINEAR), (norm, NORM),
    (norm, GROUP_NORM),
]  # fmt: skip


def named(parts: Parts, name: str) -> Parts:
    return {f"diffusion_model.{name}.{part}": tensor for part, tensor in parts.items()}


def merged_stack(model, loras: list[tuple[Parts, float]]):
    for parts, strength in loras:
        model = merged(model, parts, strength)
    return model


def check(loras: list[tuple[Parts, float]], batch: int = 1) -> None:
    case = Case(batch=batch)
    case.theta = merged_stack(small_model("sd15"), loras)
    model = guided(case.phi, loras)
    ours = sample(cfg(model, case.positive, case.negative, 4.0), case.start)
    guider = oracle(case.phi, case.theta, case.positive, case.negative, formula(2.0, 4.0))
    expected = sample(guider, case.start)
    assert difference(expected, case.plain()) > 1e-3
    assert difference(ours, expected) < 1e-5


@pytest.mark.parametrize("kind, name", ADAPTER_TYPES, ids=lambda value: getattr(value, "__name__", value))
def test_every_kind_is_what_the_host_merges(kind, name):
    check([(named(kind(name), name), 1.0)], batch=2)


@pytest.mark.parametrize("kind", [lora, loha, lokr, dora(lora), diff, replaced, glora])
def test_strength_is_what_the_host_makes_of_it(kind):
    name = OTHER if kind is diff else LINEAR
    check([(named(kind(name), name), -0.6)])


@pytest.mark.parametrize("second", [lora, loha, oft, dora(lora), diff, replaced])
def test_stacked_loras_in_their_order(second):
    name = OTHER if second is diff else LINEAR
    both = [(named(lora(name), name), 0.8), (named(second(name), name), 0.5)]
    check(both)
    check(both[::-1])


def test_three_loras_on_layers_of_their_own_and_shared():
    model = small_model("sd15")
    everywhere = [lora_for(model, seed=seed, size=0.1) for seed in (1, 2, 3)]
    check(list(zip(everywhere, (1.0, -0.4, 0.3), strict=True)))


def test_a_parameter_of_no_layer_is_exchanged_for_the_loras_call():
    """SD3's position table belongs to no layer that could tell rows apart."""
    model = small_model("sd3")
    name = next(n for n, _ in model.model.diffusion_model.named_parameters() if n.endswith("ln_q.weight"))
    width = dict(model.model.diffusion_model.named_parameters())[name].shape
    parts = {f"diffusion_model.{name.removesuffix('.weight')}.diff": draw(*width, size=0.5)}
    case = Case("sd3", lora=parts | lora_for(model))
    before = {n: p.data_ptr() for n, p in case.phi.model.diffusion_model.named_parameters()}
    case.check()
    assert {n: p.data_ptr() for n, p in case.phi.model.diffusion_model.named_parameters()} == before
