"""Streamed weights against resident ones: the same bits, in less memory, and copied ahead of use."""

import gc

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from dco_core.network.denoiser import NetworkDenoiser
from dco_core.network.lora_layers import AdapterConfig
from dco_core.network.weight_stream import ImmediateCopies, resident_blocks, stream_blocks
from dco_core.schedules import Schedule
from dco_core.training.config import TrainingConfig
from dco_core.training.examples import Example
from dco_core.training.trainer import train

WIDTHS = (12, 20, 16, 28, 24, 10, 18)  # of the blocks' inner layers: no two blocks are of one size


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(2, 6)
        self.conv_in = nn.Conv2d(6, width, 3, padding=1, padding_mode="circular" if width == 16 else "zeros")
        self.ff = nn.Linear(width, 6, bias=width != 20)
        self.text = nn.Linear(5, 6)

    def forward(self, x, context):
        inner = torch.nn.functional.silu(self.conv_in(self.norm(x)))
        x = x + self.ff(inner.movedim(1, -1)).movedim(-1, 1)
        return x + self.text(context).mean(1)[..., None, None]


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.time, self.blocks = nn.Linear(1, 6), nn.ModuleList(map(Block, WIDTHS))
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x, t, context):
        x = x + self.time(t.float()[:, None] / 1000)[..., None, None]
        for block in self.blocks:
            x = block(x, context)
        return x * self.scale


class Denoiser(NetworkDenoiser):
    def __init__(self, network, compute=None):
        super().__init__(
            network, Schedule.stable_diffusion(), AdapterConfig(rank=2, layers="all linear and convolution")
        )
        self.compute = compute

    def forward(self, x_t, t, conditioning):
        with torch.autocast("cpu", self.compute or torch.bfloat16, enabled=self.compute is not None):
            return self.network(x_t, t, torch.stack(list(conditioning))).float()


class CountedCopies(ImmediateCopies):
    """Copies of the CPU, counted: what is alive at once, and which units were there before they were needed."""

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.alive: list[tuple[StorageWeakRef, int]] = []
        self.most, self.begun, self.in_time, self.waits = 0, [], 0, 0

    def begin(self, weights):
        copies = super().begin(weights)
        self.alive += [(StorageWeakRef(c.untyped_storage()), c.nbytes) for c in copies]
        self.alive = [(ref, size) for ref, size in self.alive if not ref.expired()]
        self.most = max(self.most, sum(size for _, size in self.alive))
        self.begun.append(id(copies))
        return copies

    def wait(self, copies):
        self.waits += 1
        self.in_time += self.begun[-1] != id(copies) or len(self.begun) < 2


def network(dtype=torch.float32):
    torch.manual_seed(0)
    blocks = Blocks().requires_grad_(False).to(dtype)
    for block in blocks.blocks:
        block.norm.float()  # as mixed checkpoints keep them
    return blocks


def examples():
    g = torch.Generator().manual_seed(1)
    return [Example(*(torch.randn(s, generator=g) for s in ((6, 4, 3), (4, 5), (4, 5)))) for _ in range(3)]


def trained(denoiser, **config):
    config = {"steps": 4, "learning_rate": 1e-2, "beta": 0.01, "seed": 3, "batch_size": 2, **config}
    return train(denoiser, examples(), TrainingConfig(**config))


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].up, b[name].up) and torch.equal(a[name].down, b[name].down), name


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("resident", [0, 2])
@pytest.mark.parametrize(
    "stored, compute",
    [(torch.float32, None), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)],
    ids=["fp32", "fp32 as bf16", "bf16"],
)
def test_a_streamed_run_learns_the_same_bits(checkpointed, resident, stored, compute):
    plain, streamed = Denoiser(network(stored), compute), Denoiser(network(stored), compute)
    before = {
        name: value.clone() for name, value in streamed.network.state_dict().items() if "lora" not in name
    }
    copies = CountedCopies()
    stream = stream_blocks(streamed.network, torch.device("cpu"), resident, copies=copies)
    assert len(stream) == len(WIDTHS) - resident
    if checkpointed:
        assert plain.checkpoint_blocks() == streamed.checkpoint_blocks() == len(WIDTHS)
    same(trained(plain), trained(streamed))
    after = streamed.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert copies.most <= stream.resident_bytes < stream.nbytes
    stream.clear()
    gc.collect()
    assert all(ref.expired() for ref, _ in copies.alive)


def test_blocks_are_on_their_way_before_they_are_needed():
    denoiser = Denoiser(network())
    copies = CountedCopies()
    stream_blocks(denoiser.network, torch.device("cpu"), ahead=1, copies=copies)
    denoiser.checkpoint_blocks()
    trained(denoiser, steps=2)
    waits, in_time = copies.waits, copies.in_time
    trained(denoiser, steps=12)
    assert (copies.in_time - in_time) / (copies.waits - waits) > 0.8


def test_plain_training_with_accumulation_streams_too():
    nets = [Denoiser(network()), Denoiser(network())]
    stream_blocks(nets[1].network, torch.device("cpu"), copies=CountedCopies())
    same(*(trained(d, objective="dreambooth", gradient_accumulation_steps=2) for d in nets))


def test_as_many_blocks_stay_as_there_is_room_for():
    net = network()
    everything = sum(t.nbytes for t in [*net.parameters(), *net.buffers()])
    found = [resident_blocks(net, free) for free in range(0, 2 * everything, 64)]
    assert found == sorted(found) and found[0] == 0 and found[-1] == len(WIDTHS)
    assert resident_blocks(net, everything) == len(WIDTHS)


def test_without_blocks_nothing_is_streamed():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.only = nn.Linear(3, 3)

    assert stream_blocks(Flat(), torch.device("cpu")) is None
