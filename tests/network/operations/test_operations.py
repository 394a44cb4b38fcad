"""Operations that fsdtool does not have: what one class with a name, or one registered function, gets without more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsdtool.laftr.closed_form import closed_form
from fsdtool.laftr.distance_forms import on_pseudo_samples
from fsdtool.network import activations, operations
from fsdtool.network.activations import Pieces
from fsdtool.network.graph import Graph
from fsdtool.network.operations.base import MAXIMUM, Gated, Operation, VectorMap, reader
from fsdtool.network.operations.weighted import Weighted, append_one
from fsdtool.network.per_example_gradients import blocks, capture, gradient, project, sampled_layer_io, squared_norms
from fsdtool.network.traced import FULL
from fsdtool.network.tracing.trace import trace
from fsdtool.statistics.collector import StatisticsSums
from fsdtool.statistics.merging import BatchView
from fsdtool.statistics.mixture import Assignment
from fsdtool.tasks.task import task_of

EXAMPLES = 60


class ScaledLinear(nn.Module):
    """y = W (factor x) + b."""

    def __init__(self, inputs: int, outputs: int, factor: float):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.randn(outputs))
        self.factor = factor

    def forward(self, x):
        return F.linear(self.factor * x, self.weight, self.bias)


class ReadScaledLinear(Weighted):
    names = ("scaled_linear",)
    spellings = (ScaledLinear,)
    arguments = ("factor",)

    def run(self, inputs, roles, options):
        return F.linear(options["factor"] * inputs[0], roles["weight"], roles["bias"])

    def positions(self, block, use):
        return append_one(block, use.step.options["factor"] * use.input)[:, None], use.gradient[:, None]

    def vector_map(self, step, roles, like):
        return VectorMap(step.options["factor"] * roles["weight"], roles["bias"])


class Ramp(nn.Module):
    """Zero, then 2 s, then `top`."""

    def __init__(self, top: float):
        super().__init__()
        self.top = top

    def forward(self, x):
        return ramp(x, self.top)


def ramp(s, top=1.0):
    return torch.minimum(2 * s.clamp(min=0), torch.tensor(top))


def pieces_of_ramp(top):
    return Pieces((0.0, top / 2), (0.0, 2.0, 0.0), (0.0, 0.0, top))


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The ramp, for the tests of this module alone."""
    with patch.dict(activations.PIECEWISE), patch.dict(activations.MODULES):
        activations.register("ramp", ramp, Ramp, defaults={"top": 1.0}, pieces=pieces_of_ramp)
        yield


class LargerHalf(nn.Module):
    """Of each unit and the one half the width further on the larger."""

    def forward(self, x):
        return torch.maximum(*x.chunk(2, 1))


class ReadLargerHalf(Gated):
    names = ("larger_half",)
    kind = MAXIMUM
    spellings = (LargerHalf,)

    def run(self, inputs, roles, options):
        return LargerHalf()(inputs[0])

    def hold(self, step, s):
        first, second = s.chunk(2, 1)
        return (second > first,)

    def replay(self, step, s, held):
        return torch.where(held[0], *s.chunk(2, 1)[::-1])


def strange() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(ScaledLinear(5, 6, 0.5), Ramp(1.5), ScaledLinear(6, 3, 2.0)).eval()


def twin(model: nn.Module) -> nn.Module:
    """The same function of plain layers: 2 s between 0 and 1.5 is a Hardtanh of a layer that is twice as large."""
    plain = nn.Sequential(nn.Linear(5, 6), nn.Hardtanh(0.0, 1.5), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        for layer, strange_layer, factor in ((plain[0], model[0], 2.0), (plain[2], model[2], 1.0)):
            layer.weight.copy_(strange_layer.weight * strange_layer.factor * factor)
            layer.bias.copy_(strange_layer.bias * factor)
    return plain


def data() -> torch.Tensor:
    return torch.randn(EXAMPLES, 5, generator=torch.Generator().manual_seed(1))


def moved(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            step = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(0.2 * step)
    return model


def statistics_of(network):
    sums = StatisticsSums(network.graph, Assignment("all", ("all",)), None, task_of("regression"))
    x = data()
    sums.start(torch.zeros(EXAMPLES))
    with torch.no_grad():
        logits = network.graph.run(network.parameters, x, observe=lambda step, inputs, output: sums.see(step, inputs))
    sums.update(BatchView(slice(0), x, x, x, logits, sums.assign()))
    return sums.finalize().to(torch.device("cpu"), torch.float32)


def test_a_network_of_new_operations_is_traced_in_full_and_runs_from_its_file():
    model = strange()
    network = trace(model, data(), task="regression")
    assert (network.mode, network.reasons) == (FULL, ())
    assert [step.operation for step in network.graph.steps] == ["input", "scaled_linear", "activation", "scaled_linear"]
    again = Graph.from_json(json.loads(json.dumps(network.graph.to_json())))
    with torch.no_grad():
        torch.testing.assert_close(again.run(network.parameters, data()), model(data()))


def test_its_distances_are_those_of_the_same_function_of_known_operations():
    found = {}
    for name, plain in (("strange", lambda model: model), ("twin", twin)):
        network = trace(plain(strange()), data(), task="regression")
        other = trace(plain(moved(strange())), data(), task="regression").parameters
        graph, statistics = network.graph, statistics_of(network)
        assert graph.is_chain()
        found[name] = [closed_form(graph, network.parameters, other, statistics, torch.eye(3)[None])]
        for gates in ("coupled", "moving"):
            drawn = on_pseudo_samples(
                graph,
                network.parameters,
                [other],
                statistics,
                ["squared_error"],
                gates=gates,
                samples=2000,
                seed=0,
                device=torch.device("cpu"),
            )
            found[name].append(drawn["squared_error"][0].components.float())
    assert all(float(value) > 0 for value in found["strange"])
    for a, b in zip(found["strange"], found["twin"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=0)


def test_its_gradients_are_those_of_a_loop_of_autograd():
    model, x = strange(), data()[:4]
    network = trace(model, x, task="regression")
    _, uses = capture(network.graph, network.parameters, x, lambda outputs: 2 * outputs)
    expected = []
    for i in range(len(x)):
        model.zero_grad()
        model(x[i : i + 1]).square().sum().backward()
        expected.append([torch.cat([model[j].weight.grad, model[j].bias.grad[:, None]], 1) for j in (0, 2)])
    found = blocks(network.graph, network.parameters)
    assert [block.weight for block in found] == ["0.weight", "2.weight"]
    for j, block in enumerate(found):
        whole = torch.stack([both[j] for both in expected])
        torch.testing.assert_close(gradient(block, uses), whole)
        torch.testing.assert_close(squared_norms(block, uses), whole.square().sum((1, 2)))
        rows, columns = torch.randn(block.d_out, 2), torch.randn(block.d_in, 3)
        torch.testing.assert_close(project(block, uses, rows, columns), rows.T @ whole @ columns)
        b, a = sampled_layer_io(block, uses, 10, torch.Generator())
        torch.testing.assert_close(b.T @ a, whole.sum(0))


@pytest.mark.parametrize("gates", ["coupled", "moving"])
def test_a_new_maximum_is_replayed_under_the_positions_it_took(gates):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), LargerHalf(), nn.Linear(3, 2)).eval()
    network = trace(model, data(), task="regression")
    assert network.mode == FULL
    other = dict(network.parameters)
    other["2.bias"] = other["2.bias"] + 1.0  # no gate depends on it, and the distance is 1/2 (1 + 1)
    drawn = on_pseudo_samples(
        network.graph,
        network.parameters,
        [other],
        statistics_of(network),
        ["squared_error"],
        gates=gates,
        samples=500,
        seed=0,
        device=torch.device("cpu"),
    )
    assert drawn["squared_error"][0].distance == pytest.approx(1.0, rel=1e-5)


def test_a_maximum_that_moves_differs_from_one_that_is_held():
    model = nn.Sequential(LargerHalf()).eval()
    step = trace(model, torch.randn(3, 6), task="regression").graph.steps[1]
    s, changed = torch.randn(4, 6), torch.randn(4, 6)
    held = step.definition.hold(step, s)
    torch.testing.assert_close(step.definition.replay(step, s, held), LargerHalf()(s))
    assert not torch.equal(step.definition.replay(step, changed, held), LargerHalf()(changed))


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(TypeError, match="two operations are named 'linear': Linear and Again"):
        type("Again", (Operation,), {"names": ("linear",)})
    with pytest.raises(ValueError, match="'gelu' already"):
        activations.register("gelu", torch.sin)
    with pytest.raises(ValueError, match="'relu_' already"):
        activations.register("another", torch.sin, aliases=["relu_"])
    with pytest.raises(ValueError, match="'ReLU' already"):
        activations.register("another", torch.sin, nn.ReLU)
    assert "another" not in activations.names()


def test_no_spelling_is_claimed_by_two_operations():
    known = {type(operations.named(name)) for name in operations.names()}
    spellings = [spelling for cls in known for spelling in (*cls.spellings, *cls.function_names)]
    assert len(spellings) > 80
    assert all(reader(spelling) in known for spelling in (*spellings, *activations.MODULES, *activations.names()))


def test_only_operations_and_the_tracer_know_an_operation_by_its_name():
    folder = Path(operations.__file__).parents[1]
    asked = re.compile(r"\.operation\s*(==|!=|in\b|not in\b)\s*[\"'({]|operation\.startswith")
    for path in folder.rglob("*.py"):
        if path.parent.name != "operations":
            assert not asked.search(path.read_text()), path.name
