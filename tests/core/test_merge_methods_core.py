"""ZipLoRA, TIES, DARE and NP-LoRA on cases whose answer is known."""

import math

import pytest
import torch
from torch import nn

from dco_core.errors import DCOError
from dco_core.lora import LoraLayer, LoraWeights
from dco_core.merging import (
    Dare,
    ErrorReport,
    Exact,
    NPLora,
    Size,
    Ties,
    ZipLora,
    merge_with,
)
from dco_core.merging.dare import dare
from dco_core.merging.dense import factorised
from dco_core.merging.methods import with_columns
from dco_core.merging.np_lora import np_lora
from dco_core.merging.ties import ties, trim
from dco_core.network.denoiser import NetworkDenoiser
from dco_core.schedules import Schedule
from dco_core.training.examples import Example
from dco_core.training.zip_lora import ZipSettings, optimise

KEY = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
OTHER = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn1_to_q"


def pair(up, down, alpha=None):
    return LoraLayer(torch.as_tensor(down).float(), torch.as_tensor(up).float(), alpha)


def random_pair(seed, rank=3, out=12, inside=10, alpha=1.5):
    g = torch.Generator().manual_seed(seed)
    return pair(torch.randn(out, rank, generator=g), torch.randn(rank, inside, generator=g), alpha)


def test_ties_is_the_example_of_the_paper():
    """Fig. 1 of arXiv 2306.01708 in small: trim the least, elect the sign with more mass, average what agrees."""
    a = torch.tensor([[4.0, -3.0, 0.1, 2.0]])
    b = torch.tensor([[2.0, 5.0, -0.2, -3.0]])
    assert ties([a, b], [1, 1], 0.75).tolist() == [[3.0, 5.0, 0.0, -3.0]]
    assert ties([a, b], [1, -1], 0.75).tolist() == [[4.0, -4.0, 0.0, 2.5]]
    assert trim(torch.tensor([3.0, -1.0, 2.0, -4.0]), 0.5).tolist() == [3.0, 0.0, 0.0, -4.0]
    assert torch.equal(ties([a], [2.0], 1.0), 2 * a)


def test_dare_drops_the_wanted_share_and_keeps_the_mean():
    a, b = (random_pair(i, 12, 40, 40).delta() for i in (0, 1))
    kept = dare([torch.ones(200, 200)], [1.0], 0.3, torch.Generator().manual_seed(0))
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (kept == 0).float().mean() == pytest.approx(0.3, abs=0.01)
    draws = [dare([a, b], [0.8, -0.5], 0.3, torch.Generator().manual_seed(i)) for i in range(100)]
    exact = 0.8 * a - 0.5 * b
    assert (torch.stack(draws).mean(0) - exact).norm() / exact.norm() < 0.1
    assert torch.equal(dare([a, b], [0.8, -0.5], 0.0, torch.Generator().manual_seed(0)), 0.8 * a - 0.5 * b)


def test_np_lora_takes_the_style_directions_out_and_nothing_else():
    content, style = random_pair(0), random_pair(1, rank=2)
    v = torch.linalg.svd(style.delta()).Vh[:2].T
    hard = np_lora(content, style)
    inside = torch.eye(10) - v @ v.T
    torch.testing.assert_close(hard.delta(), content.delta() @ inside, rtol=1e-4, atol=1e-5)
    assert (hard.delta() @ style.delta().T).norm() < 1e-4
    soft = np_lora(content, style, mu=1.0)
    torch.testing.assert_close(
        soft.delta(), content.delta() @ (torch.eye(10) - 0.5 * v @ v.T), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(np_lora(content, style, mu=0.0).delta(), content.delta())
    # closed form: the gradient of |D - C|^2 + mu |D V V^T|^2 is 0 there
    gradient = (soft.delta() - content.delta()) + 1.0 * soft.delta() @ v @ v.T
    assert gradient.norm() < 1e-4 * content.delta().norm()


def test_a_dense_change_is_factorised_with_the_error_it_tells():
    g = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(48, 48, generator=g)).Q for _ in "uv")
    delta = u @ torch.diag(0.8 ** torch.arange(48)) @ v
    s = torch.linalg.svdvals(delta.double())
    for size, limit in (
        (Size(rank=5), None),
        (Size(max_error=0.1), 0.1),
        (Size(max_error=1e-4), 1e-4),
        (Size(), 1e-5),
    ):
        report = ErrorReport()
        made = factorised(KEY, delta, size, report, 8)
        error = (made.delta() - delta).norm().item()
        assert report.layers[KEY][0] == pytest.approx(error, rel=0.01, abs=1e-5)
        assert error <= (s[5:].norm() * 1.01 if limit is None else limit * delta.norm() * 1.001)
    assert made.rank == 48


def both():
    a = LoraWeights({KEY: random_pair(0), OTHER: random_pair(1)}, metadata={"modelspec.title": "a"})
    return [a, LoraWeights({KEY: random_pair(2, rank=2)})]


def test_methods_merge_whole_loras():
    a, b = both()
    exact = merge_with(Exact(), [a, b], [1.0, 0.5])
    for method in (Ties(density=1.0), Dare(drop=0.0), NPLora(mu=0.0), ZipLora({})):
        report = ErrorReport()
        merged = merge_with(method, [a, b], [1.0, 0.5], report=report, size=Size(rank=10))
        assert merged.metadata["dco.method"] == method.name
        torch.testing.assert_close(
            merged.layers[OTHER].delta(), a.layers[OTHER].delta(), rtol=1e-4, atol=1e-5
        )
        if not isinstance(method, Ties):
            torch.testing.assert_close(
                merged.layers[KEY].delta(), exact.layers[KEY].delta(), rtol=1e-4, atol=1e-5
            )
    hard = merge_with(NPLora(), [a, b], [1.0, 0.5]).layers[KEY].delta()
    expected = np_lora(a.layers[KEY], b.layers[KEY]).delta() + 0.5 * b.layers[KEY].delta()
    torch.testing.assert_close(hard, expected, rtol=1e-4, atol=1e-5)


def test_methods_refuse_what_they_cannot():
    for method in (NPLora(), ZipLora({})):
        with pytest.raises(DCOError, match="there are 3"):
            merge_with(method, [*both(), both()[0]], [1, 1, 1])
    for make in (lambda: Ties(0), lambda: Dare(1.0), lambda: NPLora(-1)):
        with pytest.raises(DCOError):
            make()


class OneLayer(NetworkDenoiser):
    """A network that is one linear layer, W x."""

    def __init__(self, weight):
        network = nn.Module()
        network.layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        network.layer.weight.data.copy_(weight)
        super().__init__(network.requires_grad_(False), Schedule.flow(10), None)

    def forward(self, x_t, t, conditioning):
        return self.network.layer(x_t.flatten(1))


def zipped(content, style, similarity=0.0, weights=(1.0, 1.0), steps=150):
    torch.manual_seed(0)
    denoiser = OneLayer(torch.randn(6, 8))
    before = denoiser.network.layer.weight.clone()
    noise = [Example(torch.zeros(8, 1, 1), None)]  # x_t is then noise alone, the same in all directions
    settings = ZipSettings(steps=steps, learning_rate=0.04, similarity=similarity)
    found = optimise(denoiser, {"layer": content}, {"layer": style}, noise, noise, settings, weights)
    assert torch.equal(before, denoiser.network.layer.weight)
    assert not denoiser.network.layer._forward_hooks
    return found


def test_ziplora_leaves_loras_alone_that_use_different_columns():
    """Nothing interferes: at m = 1 the other LoRA's part is all that each lacks; with inputs that only one of them
    reads there is nothing to change."""
    content = pair(torch.eye(6)[:, :2], torch.eye(8)[:2])
    style = pair(torch.eye(6)[:, 2:4], torch.eye(8)[4:6])
    (m_c, m_s) = zipped(content, style).mergers["layer"]
    # loss per column: (m - 1)^2 from its own prompt and m^2 from the other's: the best is 1/2
    torch.testing.assert_close(m_c[:2], torch.full((2,), 0.5), atol=0.06, rtol=0)
    torch.testing.assert_close(m_s[4:6], torch.full((2,), 0.5), atol=0.06, rtol=0)
    # columns that a LoRA does not have are never moved
    assert torch.equal(m_c[2:], torch.ones(6)) and torch.equal(m_s[:4], torch.ones(4))


def test_ziplora_respects_alpha_and_weights():
    """Two LoRAs that are the same change: any m_c + m_s = 1 is perfect. With alpha 4 on rank 2 the style is twice the
    content: the columns solve least squares in closed form only if dW is alpha / rank up @ down."""
    content = pair(torch.eye(6)[:, :2], torch.eye(8)[:2])
    same = zipped(content, content)
    m_c, m_s = same.mergers["layer"]
    torch.testing.assert_close((m_c + m_s)[:2], torch.ones(2), atol=0.02, rtol=0)
    assert same.losses[-1][0] < 0.01 * same.losses[0][0]
    double = pair(torch.eye(6)[:, :2], torch.eye(8)[:2], alpha=4.0)
    m_c, m_s = zipped(content, double).mergers["layer"]
    # targets 1 and 2: m_c + 2 m_s = 3/2
    torch.testing.assert_close((m_c + 2 * m_s)[:2], torch.full((2,), 1.5), atol=0.08, rtol=0)
    m_c, m_s = zipped(content, content, weights=(1.0, 2.0)).mergers["layer"]
    torch.testing.assert_close((m_c + 2 * m_s)[:2], torch.full((2,), 1.5), atol=0.08, rtol=0)


def test_ziplora_keeps_the_mergers_apart_if_it_is_told_to():
    content, style = random_pair(0, out=6, inside=8), random_pair(1, out=6, inside=8)
    free, apart = zipped(content, style, 0.0), zipped(content, style, 50.0)
    assert apart.losses[-1][2] < 0.3 * free.losses[-1][2]
    assert "similarity of the mergers" in apart.text()


def test_ziplora_of_unrelated_layers_is_refused_and_conv_columns_are_channels():
    with pytest.raises(DCOError, match="share no layer"):
        denoiser = OneLayer(torch.ones(6, 8))
        one = {"layer": random_pair(0, out=6, inside=8)}
        optimise(denoiser, one, {}, [], [], ZipSettings())
    conv = LoraLayer(torch.randn(2, 4, 3, 3), torch.randn(5, 2, 1, 1), 3.0)
    m = torch.tensor([1.0, 2.0, 0.0, -1.0])
    torch.testing.assert_close(with_columns(conv, m).delta(), conv.delta() * m[None, :, None, None])
    assert math.isclose(with_columns(conv, m).scale, conv.scale)
