"""Frozen layers against torch's own: the same bits, the same gradients, and no cast weight kept."""

import gc
import weakref

import pytest
import torch
from torch.nn import functional as F

from dco_core.network.frozen_layers import frozen_conv2d, frozen_linear

STORED = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
GEOMETRIES = [
    {},
    {"stride": (2, 1), "padding": (1, 2)},
    {"padding": (2, 2), "dilation": (2, 2)},
    {"groups": 2, "padding": (1, 1), "stride": (2, 2)},
]
LINEAR_INPUTS = {
    "vector": lambda: torch.randn(6),
    "matrix": lambda: torch.randn(4, 6),
    "leading dimensions": lambda: torch.randn(2, 3, 4, 6),
    "transposed": lambda: torch.randn(2, 6, 5).transpose(1, 2),
    "sliced": lambda: torch.randn(4, 5, 9)[::2, :, 1:7],
    "expanded": lambda: torch.randn(1, 5, 6).expand(3, -1, -1),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def both(frozen, plain, x):
    """(output, gradient of x) of two ways to compute a layer."""
    results = []
    for layer in (frozen, plain):
        leaf = x.detach().requires_grad_()
        out = layer(leaf)
        results.append((out.detach(), torch.autograd.grad((out * out.detach().cos()).sum(), leaf)[0]))
    return results


def close(a, b):
    assert a.dtype == b.dtype
    torch.testing.assert_close(
        a, b, rtol=2e-2 if a.dtype in (torch.bfloat16, torch.float16) else 1e-5, atol=1e-5
    )


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", LINEAR_INPUTS)
def test_linear_is_torchs_linear_on_the_cast_weight(stored, compute, kind):
    weight, bias = torch.randn(7, 6).to(stored), torch.randn(7).to(stored)
    x = LINEAR_INPUTS[kind]().to(compute)
    (out, grad), (plain_out, plain_grad) = both(
        lambda y: frozen_linear(y, weight, bias),
        lambda y: F.linear(y, weight.to(compute), bias.to(compute)),
        x,
    )
    assert torch.equal(out, plain_out)
    close(grad, plain_grad)


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolution_is_torchs_convolution_on_the_cast_weight(stored, compute, geometry):
    weight = torch.randn(6, 4 // geometry.get("groups", 1), 3, 2).to(stored)
    bias = torch.randn(6).to(stored)
    x = torch.randn(2, 9, 8, 4).permute(0, 3, 1, 2).to(compute)  # channels last
    (out, grad), (plain_out, plain_grad) = both(
        lambda y: frozen_conv2d(y, weight, bias, **geometry),
        lambda y: F.conv2d(y, weight.to(compute), bias.to(compute), **geometry),
        x,
    )
    assert torch.equal(out, plain_out)
    close(grad, plain_grad)


def test_an_image_without_batch_dimension():
    weight, x = torch.randn(3, 2, 3, 3), torch.randn(2, 5, 5)
    assert torch.equal(frozen_conv2d(x, weight), F.conv2d(x, weight))


def test_gradients_agree_with_finite_differences():
    weight, x = torch.randn(4, 3), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: frozen_linear(y, weight), x)
    kernel = torch.randn(4, 2, 3, 3)
    image = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    for geometry in GEOMETRIES[1:]:
        w = kernel if geometry.get("groups") else torch.randn(4, 4, 3, 3)
        assert torch.autograd.gradcheck(lambda y, w=w, g=geometry: frozen_conv2d(y, w, **g), image)


@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast_chooses_the_precision_as_it_does_for_torch(backward_inside):
    weight, bias, kernel = torch.randn(7, 6), torch.randn(7), torch.randn(7, 6, 3, 3)
    pairs = [
        (frozen_linear, F.linear, torch.randn(3, 6), weight),
        (frozen_conv2d, F.conv2d, torch.randn(2, 6, 4, 4), kernel),
    ]
    for frozen, plain, x, w in pairs:
        grads = []
        for layer in (frozen, plain):
            leaf = x.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                out = layer(leaf, w, bias)
                if backward_inside:
                    out.float().square().sum().backward()
            if not backward_inside:
                out.float().square().sum().backward()
            grads.append((out, leaf.grad))
        assert grads[0][0].dtype == torch.bfloat16 and torch.equal(grads[0][0], grads[1][0])
        assert grads[0][1].dtype == torch.float32
        torch.testing.assert_close(grads[0][1], grads[1][1], rtol=2e-2, atol=2e-2)


def test_a_backward_inside_autocast_keeps_the_precision_of_the_forward():
    weight, x = torch.randn(7, 6), torch.randn(3, 6, requires_grad=True)
    out = frozen_linear(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        out.sum().backward()
    assert torch.equal(x.grad, torch.ones(3, 7) @ weight)


def saved_bytes(run, besides=()):
    """Bytes of distinct storages that autograd saves during run(), without those of the tensors `besides`."""
    storages, known = {}, {t.untyped_storage().data_ptr() for t in besides}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kept = run()
    del kept
    return sum(size for address, size in storages.items() if address not in known)


@pytest.mark.parametrize("stored", [torch.float16, torch.float8_e4m3fn], ids=str)
def test_no_cast_weight_is_saved(stored):
    weight, x = torch.randn(64, 32).to(stored), torch.randn(2, 32, requires_grad=True)
    kernel, image = torch.randn(16, 8, 3, 3).to(stored), torch.randn(1, 8, 6, 6, requires_grad=True)
    assert saved_bytes(lambda: F.linear(x, weight.float()), [x, weight]) == 64 * 32 * 4
    assert saved_bytes(lambda: frozen_linear(x, weight), [x, weight]) == 0
    assert saved_bytes(lambda: F.conv2d(image, kernel.float()), [image, kernel]) >= kernel.numel() * 4
    assert saved_bytes(lambda: frozen_conv2d(image, kernel), [image, kernel]) == 0


def test_a_weight_that_a_function_gives_is_asked_for_again_and_let_go():
    stored, asked, alive = torch.randn(8, 4).half(), [], []

    def give(dtype, device):
        cast = stored.to(device, dtype)
        asked.append((dtype, device))
        alive.append(weakref.ref(cast))
        return cast

    x = torch.randn(3, 4, requires_grad=True)
    out = frozen_linear(x, give)
    gc.collect()
    assert len(asked) == 1 and alive[0]() is None
    out.sum().backward()
    assert asked == [(torch.float32, x.device)] * 2
    torch.testing.assert_close(x.grad, torch.ones(3, 8) @ stored.float())


def test_weights_made_in_inference_mode_serve_too():
    with torch.inference_mode():
        weight = torch.randn(5, 4).half()
    x = torch.randn(3, 4, requires_grad=True)
    frozen_linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(3, 5) @ weight.float())


def test_weight_and_bias_stay_frozen():
    weight, bias = torch.randn(5, 4, requires_grad=True), torch.randn(5, requires_grad=True)
    x = torch.randn(3, 4, requires_grad=True)
    frozen_linear(x, weight, bias).sum().backward()
    assert weight.grad is None and bias.grad is None and x.grad is not None
    assert not frozen_linear(x.detach(), weight.detach()).requires_grad
