"""The sum is associative, free of order and linear, up to rounding, for any kinds of layers (hypothesis)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dco_core.lora import LoraLayer, LoraWeights, from_tensors, merge

KEYS = [f"lora_unet_input_blocks_4_1_transformer_blocks_{i}_attn1_to_q" for i in range(3)]
SHAPES = {KEYS[0]: (12, 8), KEYS[1]: (8, 12), KEYS[2]: (6, 4, 3, 3)}
WEIGHT = st.floats(-3, 3, allow_nan=False).map(lambda x: round(x, 3)).filter(bool)


@st.composite
def loras(draw):
    """A LoRA with some of the modules, each a LoRA pair, LoHa or LoKr of any rank, alpha and dtype."""
    tensors = {}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    for key in draw(st.lists(st.sampled_from(KEYS), min_size=1, unique=True)):
        out, inside, *kernel = SHAPES[key]
        rank = draw(st.integers(1, 5))
        dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))

        def random(*shape, dtype=dtype):
            return torch.randn(*shape, generator=generator).to(dtype)

        kind = draw(st.sampled_from(["lora", "loha", "lokr", "diff"]))
        flat = inside * 9 if kernel else inside
        if kind == "lora":
            tensors[f"{key}.lora_down.weight"] = random(rank, inside, *kernel)
            tensors[f"{key}.lora_up.weight"] = random(out, rank, *(1 for _ in kernel))
        elif kind == "loha":
            for part in "12":
                tensors[f"{key}.hada_w{part}_a"] = random(out, rank)
                tensors[f"{key}.hada_w{part}_b"] = random(rank, flat)
        elif kind == "lokr":
            tensors[f"{key}.lokr_w1"] = random(2, 2)
            tensors[f"{key}.lokr_w2_a"] = random(out // 2, rank)
            tensors[f"{key}.lokr_w2_b"] = random(rank, flat // 2)
        else:
            tensors[f"{key}.diff"] = random(out, inside, *kernel)
        if kind != "diff" and draw(st.booleans()):
            tensors[f"{key}.alpha"] = torch.tensor(draw(st.sampled_from([-2.0, 0.5, 1.0, 8.0])))
    return from_tensors(tensors)


def delta(layer):
    up, down = layer.up.double().flatten(1), layer.down.double().flatten(1)
    return layer.scale * up @ down


def assert_same(a, b, terms):
    """Equal up to fp32 rounding of the terms, whose sum may cancel."""
    assert set(a.layers) == set(b.layers)
    for key in a.layers:
        size = sum(abs(w) * delta(lora.layers[key]).norm() for lora, w in terms if key in lora.layers)
        assert (delta(a.layers[key]) - delta(b.layers[key])).norm() <= 1e-6 * size


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(loras(), WEIGHT), min_size=1, max_size=4), st.randoms())
def test_the_sum_is_the_dense_sum_in_any_order(terms, random):
    merged = merge([lora for lora, _ in terms], [w for _, w in terms])
    for key, layer in merged.layers.items():
        there = [(w, delta(lora.layers[key])) for lora, w in terms if key in lora.layers]
        expected = sum(w * d for w, d in there)
        assert (delta(layer) - expected).norm() <= 1e-6 * sum(abs(w) * d.norm() for w, d in there)
    shuffled = random.sample(terms, len(terms))
    assert_same(merge([lora for lora, _ in shuffled], [w for _, w in shuffled]), merged, terms)


@settings(max_examples=25, deadline=None)
@given(loras(), loras(), loras(), WEIGHT, WEIGHT, WEIGHT)
def test_the_sum_is_associative(a, b, c, wa, wb, wc):
    at_once = merge([a, b, c], [wa, wb, wc])
    left = merge([merge([a, b], [wa, wb]), c], [1.0, wc])
    right = merge([a, merge([b, c], [wb, wc])], [wa, 1.0])
    terms = [(a, wa), (b, wb), (c, wc)]
    assert_same(left, at_once, terms)
    assert_same(right, at_once, terms)


@settings(max_examples=25, deadline=None)
@given(loras(), WEIGHT, WEIGHT)
def test_the_sum_is_linear_and_a_lora_minus_itself_is_nothing(a, u, v):
    terms = [(a, u), (a, v)]
    assert_same(merge([a, a], [u, v]), merge([a, a], [u + v, 0.0] if u + v else [1.0, -1.0]), terms)
    assert_same(merge([merge([a], [u])], [v]), merge([a], [u * v]), [(a, u * v)])


def test_a_tensor_of_another_shape_is_refused_whatever_its_kind():
    a = LoraWeights({KEYS[0]: LoraLayer(torch.ones(2, 8), torch.ones(12, 2))})
    b = from_tensors({f"{KEYS[0]}.lokr_w1": torch.ones(2, 2), f"{KEYS[0]}.lokr_w2": torch.ones(6, 5)})
    with pytest.raises(ValueError, match=r"\[12, 8\].*\[12, 10\]"):
        dict(merge([a, b], [1.0, 1.0]).layers)
