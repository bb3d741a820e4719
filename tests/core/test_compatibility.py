"""The compatibility report against dense matrices and on cases with a known answer."""

import numpy as np
import pytest
import torch

from dco_core.drawing.compatibility_plot import compatibility_figure, compatibility_plot
from dco_core.lora import LoraLayer, LoraWeights
from dco_core.merging import compare

DOWN = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
UP = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_output_blocks_2_2_conv"


def layer(seed, rank=3, out=20, inside=16, kernel=(), alpha=1.5):
    g = torch.Generator().manual_seed(seed)
    up = torch.randn(out, rank, *(1 for _ in kernel), generator=g)
    return LoraLayer(torch.randn(rank, inside, *kernel, generator=g), up, alpha)


def only(key, one, two, weights=(1.0, 1.0)):
    return compare(LoraWeights({key: one}), LoraWeights({key: two}), weights)


@pytest.mark.parametrize(("key", "kernel"), [(DOWN, ()), (CONV, (3, 3))])
def test_all_numbers_are_those_of_the_dense_matrices(key, kernel):
    one, two = layer(0, kernel=kernel), layer(1, rank=5, kernel=kernel, alpha=None)
    fit = only(key, one, two, (0.7, -2.0)).shared[key]
    a, b = 0.7 * one.delta().flatten(1).double(), -2.0 * two.delta().flatten(1).double()
    cosines = torch.nn.functional.cosine_similarity(a, b, dim=0)
    (ua, _, va), (ub, _, vb) = torch.linalg.svd(a), torch.linalg.svd(b)
    expected = {
        "column_cosine": cosines.mean(),
        "columns": len(cosines),
        "overlap_out": (ua[:, :3].T @ ub[:, :5]).square().sum() / 3,
        "overlap_in": (va[:3] @ vb[:5].T).square().sum() / 3,
        "cross_talk": (a @ b.T).norm() * (a.T @ b).norm() / ((a @ a.T).norm() * (b @ b.T).norm()),
        "inner": (a * b).sum(),
        "norm_a": a.norm(),
        "norm_b": b.norm(),
    }
    for name, value in expected.items():
        assert getattr(fit, name) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name


def test_the_same_the_opposite_and_the_unrelated():
    one = layer(0)
    same, opposite = only(DOWN, one, one).shared[DOWN], only(DOWN, one, one, (1.0, -1.0)).shared[DOWN]
    for name, value in (("column_cosine", 1), ("overlap_in", 1), ("overlap_out", 1), ("cross_talk", 1)):
        assert getattr(same, name) == pytest.approx(value, abs=1e-6)
    assert opposite.column_cosine == pytest.approx(-1) and opposite.cross_talk == pytest.approx(1)
    eye = torch.eye(16)
    a, b = (LoraLayer(eye[i : i + 3], eye[:, i : i + 3]) for i in (0, 8))
    apart = only(DOWN, a, b).shared[DOWN]
    assert (apart.overlap_in, apart.overlap_out, apart.cross_talk, apart.column_cosine) == (0, 0, 0, 0)
    inside = only(DOWN, LoraLayer(eye[:2], eye[:, :2]), LoraLayer(eye[:6], eye[:, :6])).shared[DOWN]
    assert inside.overlap_in == pytest.approx(1) and inside.overlap_out == pytest.approx(1)


def test_columns_that_are_zero_and_lost_ranks_do_not_count():
    one = layer(0)
    down = one.down.clone()
    down[:, 8:] = 0
    half = LoraLayer(down, one.up, one.alpha)
    assert only(DOWN, half, one).shared[DOWN].columns == 8
    twice = LoraLayer(torch.cat([one.down, one.down]), torch.cat([one.up, one.up], 1), one.alpha)
    fit = only(DOWN, twice, one).shared[DOWN]
    assert fit.overlap_in == pytest.approx(1) and fit.overlap_out == pytest.approx(1)
    nothing = LoraLayer(torch.zeros(3, 16), one.up)
    assert only(DOWN, nothing, one).shared[DOWN].cross_talk == 0


def test_blocks_layer_types_and_total_add_up():
    a = LoraWeights({DOWN: layer(0), UP: layer(1), CONV: layer(2, kernel=(3, 3))})
    b = LoraWeights({DOWN: layer(3), UP: layer(4)})
    found = compare(a, b)
    assert (found.only_a, found.only_b) == (1, 0)
    assert list(found.by_block()) == ["down 4", "up 1"] and set(found.by_layer_type()) == {
        "attn1_to_q",
        "attn2_to_k",
    }
    total = found.total()
    assert total.norm_a**2 == pytest.approx(sum(f.norm_a**2 for f in found.shared.values()))
    table = found.table()
    assert "down 4" in table and "attn2_to_k" in table and "2 layers in both, 1 only in the first" in table
    picture = compatibility_plot(found, "a and b")
    assert picture.dtype == np.uint8 and picture.shape[1:] == (1050, 3)


def test_the_chart_has_the_numbers_of_the_report():
    found = compare(
        LoraWeights({DOWN: layer(0), UP: layer(1)}), LoraWeights({DOWN: layer(3), UP: layer(4)}), (1.0, 1e-3)
    )
    figure = compatibility_figure(found, "$a and b$.safetensors")
    by_layer_type, talk, ratio = figure.axes
    assert [text.get_text() for text in by_layer_type.get_yticklabels()] == list(found.by_layer_type())
    assert np.allclose([bar.get_width() for bar in by_layer_type.patches], list(found.by_layer_type().values()))
    blocks = found.by_block().values()
    assert [text.get_text() for text in talk.get_yticklabels()] == list(found.by_block())
    assert np.allclose([bar.get_width() for bar in talk.patches], [fit.cross_talk for fit in blocks])
    assert [bar.get_width() for bar in ratio.patches] == [4, 4]  # at the end of the axis; the numbers are true
    assert [float(text.get_text()) for text in ratio.texts] == pytest.approx(
        [fit.norm_a / fit.norm_b for fit in blocks], rel=0.01
    )
    assert figure._suptitle.get_text() == "$a and b$.safetensors"


def test_the_chart_of_loras_without_anything_in_common():
    one = LoraWeights({DOWN: layer(0)})
    nothing = compatibility_figure(compare(one, LoraWeights({UP: layer(1)})))
    assert [axes.texts[0].get_text() for axes in nothing.axes] == ["no layer in common"] * 3
    empty = LoraWeights({DOWN: LoraLayer(torch.zeros(3, 16), torch.ones(20, 3))})
    ratio = compatibility_figure(compare(one, empty)).axes[2]
    assert [text.get_text() for text in ratio.texts] == ["none"]  # no ratio to nothing


def test_the_advice_is_true():
    """Each sentence is checked against the dense sum."""
    one, two = LoraWeights({DOWN: layer(0)}), LoraWeights({DOWN: layer(1)})
    a, b = one.layers[DOWN].delta(), two.layers[DOWN].delta()

    def grown(x, y):
        return ((x + y).norm() / (x.norm() ** 2 + y.norm() ** 2).sqrt()).item()

    assert (
        f"{grown(a, a):.2f} times" in compare(one, one).advice() and "same way" in compare(one, one).advice()
    )
    opposite = compare(one, one, (1.0, -0.8)).advice()
    assert "opposite ways" in opposite and f"{grown(a, -0.8 * a):.2f} times" in opposite
    weak = compare(one, two, (1.0, 0.1)).advice()
    share = a.norm() ** 2 / (a.norm() ** 2 + (0.1 * b).norm() ** 2)
    assert "first is" in weak and f"{share.item():.0%} of |A|^2 + |B|^2" in weak
    far = LoraWeights({UP: layer(1)})
    assert "no layer in common" in compare(one, far).advice()
    one, two = (layer(i, rank=1, out=400, inside=400) for i in (0, 1))
    apart = only(DOWN, one, two).advice()
    assert "cannot tell" in apart and f"{grown(one.delta(), two.delta()):.2f} times" in apart
    nothing = LoraLayer(torch.zeros(3, 16), torch.ones(20, 3))
    assert "0 in all shared layers" in only(DOWN, nothing, layer(0)).advice()
    turned = LoraLayer(torch.eye(2), torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))  # cosine 0, all directions in common
    assert "(cross-talk 1.00, most in down 4)" in only(DOWN, LoraLayer(torch.eye(2), torch.eye(2)), turned).advice()


def test_layers_of_a_high_rank_are_left_out_and_counted():
    one, two = (
        LoraWeights({DOWN: layer(0, rank=9), UP: layer(1)}),
        LoraWeights({DOWN: layer(2), UP: layer(3)}),
    )
    found = compare(one, two, max_rank=8)
    assert list(found.shared) == [UP] and found.skipped == 1 and found.only_a == 0
    assert "1 more have a high rank" in found.table()
    none = compare(one, two, max_rank=2)
    assert none.skipped == 2 and "they are not compared" in none.advice()
