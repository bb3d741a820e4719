"""Networks that change tensors in place, trained and checkpointed, against finite differences."""

import concurrent.futures
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dco_core.errors import DCOError
from dco_core.network.gradient_checkpointing import checkpoint_blocks
from dco_core.network.out_of_place import KeptCopies, out_of_place, watched


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)

class InPlaceBlock(nn.Module):
    """As Flux: sums in place into its argument, which its norms have saved."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, img):
        img += self.a(F.layer_norm(img, (4,))).tanh()
        img += self.b(F.layer_norm(img, (4,))).tanh()
        img *= 0.5
        return img


class MutatingBlock(InPlaceBlock):
    """As LTX: a call whose result nobody takes."""

    def forward(self, img):
        img = img + self.a(F.layer_norm(img, (4,)))
        y = F.layer_norm(img, (4,))
        img.addcmul_(self.b(y), y)
        return img.sin()


class ModulatedBlock(InPlaceBlock):
    """As PixelDiT: a chain of calls, whose first reads what it overwrites."""

    def forward(self, img):
        y = F.layer_norm(img, (4,))
        return img + self.a(y.addcmul_(y, self.b(img)).add_(0.5))


class SliceBlock(InPlaceBlock):
    """As Krea: changes parts, through views."""

    def forward(self, img):
        y = self.a(img).sigmoid()
        y[:, :2].mul_(self.b(img)[:, 2:]).add_(1.0)
        y[:, 2:].mul_(y[:, :2])
        return y


class ReusedBlock(InPlaceBlock):
    """Overwrites a tensor twice, and reads it in between."""

    def forward(self, img):
        y = self.a(img).exp()
        z = self.b(y)
        y.copy_(z.tanh())
        w = y * z
        y.zero_()
        return w + y


class ArgumentBlock(InPlaceBlock):
    """Changes what it is given, and nothing that is saved."""

    def forward(self, img):
        img.add_(1.0)
        return img + self.a(self.b(img * 1.0))


def chain(kind):
    network = nn.Sequential(nn.Linear(4, 4), nn.ModuleList([kind(), kind()]))
    network.forward = lambda x: network[1][1](network[1][0](network[0](x)))
    return network


def test_in_place_sums_train_and_agree_with_finite_differences():
    network = chain(InPlaceBlock).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="inplace"):
        network(x).sum().backward()
    with torch.no_grad():
        expected = network(x)
    with out_of_place():
        assert torch.equal(network(x), expected)
        assert torch.autograd.gradcheck(network, x)
        wanted = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    assert checkpoint_blocks(network) == 2
    assert torch.autograd.gradcheck(network, x)
    grads = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b)


OVERWRITING = [MutatingBlock, ModulatedBlock, SliceBlock, ReusedBlock]


@pytest.mark.parametrize("kind", OVERWRITING)
def test_networks_that_overwrite_saved_tensors_train_and_agree_with_finite_differences(kind):
    network = chain(kind).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="inplace"):
        network(x).sum().backward()
    with torch.no_grad():
        expected = network(x)
    copies = KeptCopies()
    for _ in range(2):  # the first run finds the places, the second has them
        assert torch.equal(copies.run(lambda: network(x)), expected)
        assert torch.autograd.gradcheck(lambda x: copies.run(lambda: network(x)), x)
    plain = torch.autograd.grad(copies.run(lambda: network(x)).square().sum(), list(network.parameters()))
    assert checkpoint_blocks(network) == 2
    for _ in range(2):
        assert torch.autograd.gradcheck(network, x)
        assert torch.autograd.gradcheck(lambda x: copies.run(lambda: network(x)), x)
    grads = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    for a, b in zip(grads, plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", OVERWRITING)
def test_blocks_differ_in_what_needs_a_gradient(kind):
    """The first block's input needs none, and one layer of the second is frozen."""
    network = chain(kind).double()
    network[0].requires_grad_(False)
    network[1][1].a.requires_grad_(False)
    trained = [p for p in network.parameters() if p.requires_grad]
    x = torch.randn(2, 4, dtype=torch.float64)
    copies = KeptCopies()
    wanted = torch.autograd.grad(copies.run(lambda: network(x)).square().sum(), trained)
    checkpoint_blocks(network)
    for inputs in (x, x.clone().requires_grad_(), x):  # learned tokens make the input need one now and then
        grads = torch.autograd.grad(network(inputs).square().sum(), trained)
        for a, b in zip(grads, wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_a_network_that_overwrites_nothing_runs_once_and_without_hooks():
    runs = []
    network = chain(InPlaceBlock)
    copies = KeptCopies()

    def call():
        runs.append(torch._C._autograd._top_saved_tensors_default_hooks(True))
        with out_of_place():
            return network(torch.ones(2, 4))

    copies.run(call).sum().backward()
    copies.run(call).sum().backward()
    assert runs[0] is not None and runs[1:] == [None]


def test_a_network_that_overwrites_differently_in_every_run_is_refused():
    turn = iter(range(100))

    def call():
        kept = [torch.ones(2, requires_grad=True).exp() for _ in range(10)]
        kept[next(turn)].zero_()
        return torch.stack(kept).sum()

    with pytest.raises(DCOError, match="not the same ones in every run"):
        KeptCopies().run(call)


def test_hooks_around_a_watched_call_see_what_autograd_gets():
    """The estimate of memory counts that way; the copies count too."""
    network = chain(MutatingBlock)
    x = torch.randn(2, 4)
    _, places = watched(lambda: network(x))
    assert len(places) == 2  # of each block, what its second normalisation read
    seen, kept = [], []

    def pack(tensor):
        seen.append(tensor.untyped_storage().data_ptr())
        kept.append(tensor)
        return len(kept) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda place: kept[place]):
        result, left = watched(lambda: network(x), places)
    assert not left
    wanted = torch.autograd.grad(watched(lambda: network(x), places)[0].sum(), network[0].weight)
    assert torch.equal(torch.autograd.grad(result.sum(), network[0].weight)[0], wanted[0])
    without = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: without.append(t) or t, lambda t: t):
        network(x)
    assert len(seen) == len(without)
    assert len(set(seen)) > len({t.untyped_storage().data_ptr() for t in without})


def test_in_place_sums_keep_dtype_views_and_gradient_free_runs():
    half, buffer = torch.ones(2, dtype=torch.float16), torch.zeros(4, requires_grad=True) * 1
    with out_of_place():
        summed = half
        summed += torch.ones(2)
        assert summed.dtype == torch.float16 and half.sum() == 2
        buffer[1:3] += 2.0  # an item is assigned back
        with torch.no_grad():
            half += 1
        half.add_(1)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:  # another thread sees no change
            pool.submit(lambda: half.__iadd__(1)).result()
    assert half.sum() == 8 and buffer.tolist() == [0, 2, 2, 0]
    half += 1
    assert half.sum() == 10 and not {"__iadd__", "__isub__", "__imul__"} & vars(torch.Tensor).keys()


def test_another_thread_that_changes_tensors_meanwhile_notices_nothing():
    """In place is in place there: same object, same memory, same version, same gradients, same refusals."""
    stop, ready, errors = threading.Event(), threading.Event(), []

    def other():
        try:
            while not stop.is_set():
                x = torch.ones(3)
                same, place, version = x, x.data_ptr(), x._version
                x += 1
                x -= 0.5
                x *= 2
                assert x is same and x.data_ptr() == place and x._version == version + 3
                assert x.tolist() == [3, 3, 3]
                w = torch.ones(3, requires_grad=True)
                y = w.exp()
                z = y
                y += 1
                assert y is z
                try:
                    y.sum().backward()
                except RuntimeError:
                    pass
                else:
                    raise AssertionError("autograd watches what this thread changes")
                leaf = torch.ones(3, requires_grad=True)
                try:
                    leaf += 1
                except RuntimeError:
                    pass
                else:
                    raise AssertionError("a leaf was changed")
                with torch.inference_mode():
                    i = torch.ones(2)
                    i *= 3
                assert i.is_inference()
                ready.set()
        except BaseException as error:
            errors.append(error)
            ready.set()

    network = chain(MutatingBlock)
    checkpoint_blocks(network)
    copies = KeptCopies()

    def step():
        with out_of_place():
            return copies.run(lambda: network(torch.randn(2, 4)).square().sum())

    thread = threading.Thread(target=other)
    thread.start()
    try:
        with out_of_place():
            ready.clear()
            assert ready.wait(30)  # a whole round of the other thread's while the methods are replaced
        for _ in range(50):
            step().backward()
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]
    assert not {"__iadd__", "__isub__", "__imul__"} & vars(torch.Tensor).keys()


def test_blocks_that_change_their_arguments_are_refused():
    network = chain(ArgumentBlock)
    checkpoint_blocks(network)
    with pytest.raises(DCOError, match="ArgumentBlock"):
        network(torch.randn(2, 4))
