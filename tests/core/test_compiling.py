"""torch.compile by block."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from dco_core.errors import DCOError
from dco_core.network.compiling import compile_blocks
from dco_core.network.lora_layers import AdapterConfig
from dco_core.schedules import Schedule
from dco_core.training.config import TrainingConfig
from dco_core.training.trainer import Training
from tests.small_network import Denoiser, small_base, small_examples


def trained(prepare, **changes):
    torch._dynamo.reset()
    denoiser = Denoiser(small_base(), Schedule.stable_diffusion(), AdapterConfig(rank=2))
    prepare(denoiser)
    run = Training(denoiser, small_examples(), TrainingConfig(steps=4, learning_rate=1e-2, **changes))
    run.run()
    return denoiser.lora(), run


@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_blocks_learn_the_same(checkpointed):
    counter = CompileCounter()

    def prepare(denoiser):
        assert compile_blocks(denoiser.network, counter) == 1
        if checkpointed:
            assert denoiser.checkpoint_blocks() == 1

    plain, _ = trained(lambda denoiser: None)
    compiled, _ = trained(prepare)
    assert counter.frame_count > 0
    for name, layer in plain.items():
        torch.testing.assert_close(compiled[name].up, layer.up, rtol=1e-4, atol=1e-6)


def test_more_variants_than_torch_allows_by_default_are_compiled():
    torch._dynamo.reset()
    counter = CompileCounter()
    networks = []
    for width in range(12):
        network = torch.nn.Sequential(Wide(width + 2), Wide(width + 2))
        compile_blocks(network, counter)
        networks.append(network)
    for network in networks:
        network(torch.ones(1, network[0].width))
    assert counter.frame_count >= 12


class Wide(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width
        self.a, self.b = torch.nn.Linear(width, width), torch.nn.Linear(width, width)

    def forward(self, x):
        return self.b(self.a(x)) * self.width


def test_a_machine_that_cannot_compile_says_so():
    def no_compiler(graph, inputs):
        raise RuntimeError("no compiler here")

    with pytest.raises(DCOError, match="Attention on this machine: switch it off"):
        trained(lambda denoiser: compile_blocks(denoiser.network, no_compiler))
