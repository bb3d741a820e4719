"""Checkpointed networks against the same networks without: the same gradients from fewer saved bytes."""

import copy

import pytest
import torch
from torch import nn

from dco_core.network.gradient_checkpointing import checkpoint_blocks
from dco_core.network.lora_layers import AdapterConfig, adapter_off, add_adapter, dropout_on
from dco_core.toy_world.unet import UNet


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def saved_bytes(run):
    """(result of run(), bytes of distinct storages that autograd saved meanwhile)."""
    storages = {}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = (
            t,
            t.untyped_storage().nbytes(),
        )  # t: the address stays taken
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    return result, sum(size for _, size in storages.values())


def toy(**config):
    unet = UNet()
    nn.init.normal_(unet.conv_out.weight, std=0.1)
    trainable = add_adapter(unet, AdapterConfig(rank=2, **config))
    for name, parameter in trainable.items():
        if name.endswith(".up"):
            nn.init.normal_(parameter, std=0.1)
    return unet, trainable


def toy_inputs(batch=2):
    return torch.randn(batch, 3, 32, 32), torch.rand(batch), torch.randn(batch, 20, 128)


def gradients(loss, parameters):
    return torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)


def test_the_toy_network_has_the_same_gradients_and_saves_a_fraction():
    unet, trainable = toy()
    x, t, context = toy_inputs()
    context.requires_grad_()

    def step():
        loss, size = saved_bytes(lambda: unet(x, t, context).square().sum())
        return loss.detach(), gradients(loss, trainable | {"context": context}), size

    plain_loss, plain, plain_size = step()
    assert checkpoint_blocks(unet) == 7
    assert checkpoint_blocks(unet) == 0  # not twice
    loss, grads, size = step()
    assert torch.equal(loss, plain_loss)
    for a, b in zip(grads, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert size < plain_size / 3


def test_without_gradients_nothing_is_wrapped_up():
    unet, _ = toy()
    x, t, context = toy_inputs()
    with torch.no_grad():
        before = unet(x, t, context)
        checkpoint_blocks(unet)
        assert torch.equal(unet(x, t, context), before)
    with torch.inference_mode():
        assert torch.equal(unet(x, t, context), before)


@pytest.mark.parametrize("layers", ["attention", "all linear and convolution"])
def test_dropout_drops_the_same_in_the_second_run(layers):
    """The LoRA's dropout is switched on around the forward pass only."""
    unet, trainable = toy(layers=layers, dropout=0.5)
    inputs = toy_inputs(1)

    def step():
        torch.manual_seed(3)
        with dropout_on(unet):
            loss = unet(*inputs).square().sum()
        torch.manual_seed(4)
        return loss.detach(), gradients(loss, trainable), torch.rand(1)

    plain = step()
    checkpoint_blocks(unet)
    for _ in range(2):
        loss, grads, drawn = step()
        assert torch.equal(loss, plain[0]) and torch.equal(drawn, plain[2])
        for a, b in zip(grads, plain[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_run_with_the_adapter_off_stays_so_in_the_second_run():
    unet, _ = toy()
    x, t, context = toy_inputs(1)
    context.requires_grad_()

    def step():
        with adapter_off(unet):
            loss = unet(x, t, context).square().sum()
        return torch.autograd.grad(loss, context)[0]

    plain = step()
    checkpoint_blocks(unet)
    torch.testing.assert_close(step(), plain, rtol=1e-6, atol=1e-7)


def test_autocast_holds_in_the_second_run():
    unet, trainable = toy()
    inputs = toy_inputs(1)

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            loss = unet(*inputs).float().square().sum()
        return gradients(loss, trainable)

    plain = step()
    checkpoint_blocks(unet)
    for a, b in zip(step(), plain, strict=True):
        torch.testing.assert_close(a, b)


# ---- which modules are blocks ----


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.0), nn.Linear(8, 4))

    def forward(self, x):
        return self.net(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.to_out = nn.ModuleList([nn.Linear(4, 4), nn.Dropout(0.0)])

    def forward(self, x, context):
        weights = torch.softmax(self.to_q(x) @ self.to_k(context).transpose(-1, -2), -1)
        return self.to_out[0](weights @ self.to_v(context))


class TransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attn, self.ff = nn.LayerNorm(4), Attention(), FeedForward()

    def forward(self, x, *, context, options):
        options["seen"] = options.get("seen", 0) + 1
        x = x * options["seen"]
        x = x + self.attn(self.norm(x), context)
        return x + self.ff(x)


class Stage(nn.Module):
    """A diffusers-like stage: no block, it holds a chain of them."""

    def __init__(self, depth):
        super().__init__()
        self.proj_in, self.blocks = nn.Linear(4, 4), nn.ModuleList(TransformerBlock() for _ in range(depth))

    def forward(self, x, context, options):
        x = self.proj_in(x)
        for block in self.blocks:
            x = block(x, context=context, options=options)
        return x


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4))
        self.stages = nn.ModuleList([nn.Sequential(Stage(2)), nn.Sequential(Stage(1))])

    def forward(self, x, context, options):
        x = self.embed(x)
        for stage in self.stages:
            x = stage[0](x, context, options)
        return x


def test_blocks_are_the_links_of_the_innermost_chain():
    network = Stages()
    add_adapter(network, AdapterConfig(rank=2, layers="all linear"))
    assert checkpoint_blocks(network) == 3
    wrapped = [n for n, m in network.named_modules() if "forward" in vars(m)]
    assert wrapped == ["stages.0.0.blocks.0", "stages.0.0.blocks.1", "stages.1.0.blocks.0"]


def test_options_that_blocks_change_are_read_as_they_were():
    network = Stages()
    parameters = dict(network.named_parameters())
    x, context = torch.randn(1, 3, 4), torch.randn(1, 5, 4)

    def step():
        options = {}
        loss = network(x, context, options).square().sum()
        return options["seen"], gradients(loss, parameters)

    seen, plain = step()
    checkpoint_blocks(network)
    for count, grads in (step(), step()):
        assert count >= seen  # the first run also looks at the block once, on a copy of the options
        for a, b in zip(grads, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert step()[0] == seen


def test_a_wrapped_network_of_half_precision_weights_trains_through_frozen_layers():
    """Both savings together: neither activations nor cast weights."""
    from dco_core.network.frozen_layers import frozen_linear

    class Frozen(nn.Linear):
        def forward(self, x):
            return frozen_linear(x, self.weight, self.bias)

    def build(kind):
        torch.manual_seed(0)
        network = nn.Sequential(*(nn.Sequential(FeedForward()) for _ in range(3)))
        for module in list(network.modules()):
            if isinstance(module, nn.Linear):
                module.__class__ = kind
        add_adapter(network, AdapterConfig(rank=2, layers="all linear"))
        return network

    frozen = build(Frozen)
    plain = copy.deepcopy(build(nn.Linear))
    assert checkpoint_blocks(frozen) == 3
    x = torch.randn(5, 4)
    for p, q in zip(frozen.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
    grads = [
        torch.autograd.grad(n(x).square().sum(), [p for p in n.parameters() if p.requires_grad])
        for n in (frozen, plain)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_offloaded_block_inputs_give_the_same_gradients():
    """What is kept goes through torch's save_on_cpu: hooks around the step see nothing of it."""
    from dco_core.toy_world.model import ToyDenoiser

    results = {}
    for offload in (False, True):
        denoiser = ToyDenoiser(AdapterConfig(rank=2))
        assert denoiser.checkpoint_blocks(offload) > 0
        torch.manual_seed(1)
        for parameter in denoiser.trainable().values():
            parameter.data += 0.1 * torch.randn_like(parameter)
        x, t, context = torch.randn(2, 3, 32, 32), torch.tensor([100, 800]), torch.randn(2, 20, 128)
        out, kept = saved_bytes(lambda d=denoiser, a=(x, t, context): d.predict(*a, adapter=True))
        results[offload] = (kept, gradients(out.square().mean(), denoiser.trainable()))
    assert results[True][0] < 0.05 * results[False][0]
    assert all(torch.equal(a, b) for a, b in zip(results[False][1], results[True][1], strict=True))
