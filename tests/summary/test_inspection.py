"""What inspect tells of a network from plain data agrees with the network itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fsdtool.network import operations
from fsdtool.network.frozen import frozen_names
from fsdtool.network.per_example_gradients import blocks
from fsdtool.network.traced import FULL
from fsdtool.network.tracing.trace import trace
from fsdtool.summary import inspection
from tests.conftest import gaussian_classes


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
def test_trained_parameters_are_those_that_blocks_are_of(net, frozen):
    torch.manual_seed(0)
    model = NETS[net]().eval()
    for parameter in list(model.parameters())[:frozen]:
        parameter.requires_grad_(False)
    network = trace(model, torch.zeros(2, 4))
    graph = replace(network.graph, frozen=frozen_names(model))
    found = inspection.trained_parameters(graph.to_json(), graph.frozen)
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(found) == {name for block in blocks(graph, network.parameters) for name in block.names}


@pytest.mark.parametrize(("curvature", "where"), [("simulated", "records"), ("measured", "influence")])
def test_what_was_not_worth_its_bytes_is_said(curvature, where, summarized):
    net, (x, y) = NETS["mlp"](), gaussian_classes(60, 4, 3)
    few = dict(inspection.inspect_rows(summarized(net, x, y, curvature=curvature, record_bytes=24).path)[0])
    assert few["curvature"].startswith(f"{curvature}, 2 weights")
    assert few[f"not in {where}"] == "2 parameters: 1.weight, 1.bias"
    many = dict(inspection.inspect_rows(summarized(net, x, y, curvature=curvature, name="m.h5").path)[0])
    assert many["curvature"].startswith(f"{curvature}, 3 weights")
    assert not any(label.startswith("not in") for label in many)


def test_the_words_are_those_of_the_network():
    assert inspection.FULL == FULL
    buffers = {role for name in operations.names() for role in operations.named(name).buffers}
    assert all(role.startswith(inspection.NOT_TRAINED) for role in buffers)
