"""What inspect tells of a network from plain data agrees with the network itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fsdtool.network import operations
from fsdtool.network.operations.weighted import Weighted
from fsdtool.network.per_example_gradients import parameters_without_block
from fsdtool.network.traced import FULL
from fsdtool.network.tracing.trace import trace
from fsdtool.summary import inspection


class Shared(nn.Module):
    """One weight used twice, with a bias of its own each time, and a scale by hand."""

    def __init__(self):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.eye(4)), nn.Parameter(torch.ones(4))
        self.a, self.b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))

    def forward(self, x):
        hidden = torch.relu(nn.functional.linear(x, self.weight, self.a))
        return nn.functional.linear(hidden, self.weight, self.b) * self.scale


NETS = {
    "mlp": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3, bias=False)),
    "conv": lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten()),
    "shared": Shared,
}


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("net", NETS)
def test_parameters_without_a_block_are_those_of_the_graph(net, frozen):
    torch.manual_seed(0)
    model = NETS[net]().eval()
    for parameter in list(model.parameters())[:frozen]:
        parameter.requires_grad_(False)
    network = trace(model, torch.zeros(2, 4))
    graph = network.graph
    found = inspection.parameters_without_block(graph.to_json(), graph.frozen)
    assert found == parameters_without_block(graph, network.parameters)
    assert found


def test_the_words_are_those_of_the_network():
    assert inspection.FULL == FULL
    known = [operations.named(name) for name in operations.names()]
    own = [operation for operation in known if type(operation).__module__.startswith("fsdtool.")]  # not those of tests
    assert set(inspection.WITH_BLOCK) == {operation.name for operation in own if isinstance(operation, Weighted)}
    buffers = {role for operation in own for role in operation.buffers}
    assert all(role.startswith(inspection.NOT_TRAINED) for role in buffers)
