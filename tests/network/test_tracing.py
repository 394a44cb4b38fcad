"""Models that real users write: their network does what they do for other examples, numbers of them and weights."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsdtool.errors import FsdtoolError, SummaryError
from fsdtool.network.graph import Graph
from fsdtool.network.traced import FULL, LAST_LAYER
from fsdtool.network.tracing.comparing import Untraceable
from fsdtool.network.tracing.trace import trace, trace_full
from fsdtool.summary.network_file import read_network
from tests.network.test_graph import SERIES, VECTOR, Call, Opaque, encoder, linear


def empty_then_written(self, x):
    made = x.new_empty(len(x), 4)
    made[:, ::2], made[:, 1::2] = x[:, :2].sin(), x[:, 2:4].cos()
    return self.fc(made)


def causal(self, x):
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
    return self.fc(self.body(x, mask=mask)[:, -1])


def other_sequence(self, x):
    return self.fc(self.attention(self.query.expand(len(x), -1, -1), x, x)[0].flatten(1))


AS_THEY_ARE = {
    "empty, then written to": (VECTOR, lambda: Call(empty_then_written, fc=linear(4))),
    "attention with a mask": ((5, 4), lambda: Call(causal, body=encoder(True), fc=linear(4))),
    "attention to another sequence": (
        (5, 4),
        lambda: Call(
            other_sequence,
            attention=nn.MultiheadAttention(4, 2, batch_first=True),
            query=nn.Parameter(torch.randn(1, 2, 4)),
            fc=linear(8),
        ),
    ),
    "bags of words": (
        VECTOR,
        lambda: Call(lambda self, x: self.fc(self.bag(x.abs().long() % 5)), bag=nn.EmbeddingBag(5, 4), fc=linear(4)),
    ),
    "quotients rounded down": (VECTOR, lambda: Call(lambda self, x: self.fc(x // 0.3 + 3 // (1 + x**2)), fc=linear(6))),
    "numbers of numpy": (
        VECTOR,
        lambda: Call(lambda self, x: self.fc((x * np.float32(2)).T.reshape(np.int64(6), -1).T), fc=linear(6)),
    ),
    "spectral norm": (
        VECTOR,
        lambda: Call(lambda self, x: self.fc(x), fc=nn.utils.parametrizations.spectral_norm(linear(6))),
    ),
}


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_rare_functions_run_as_they_are(name):
    torch.manual_seed(0)
    shape, build = AS_THEY_ARE[name]
    model = build().eval()
    network = trace(model, torch.randn(3, *shape))
    x = torch.randn(7, *shape)
    assert network.mode == FULL, network.reasons
    assert torch.allclose(network.graph.run(network.parameters, x), model(x), atol=1e-5)


def zero_state(self, x):
    _, last = self.net(x.transpose(1, 2), torch.zeros(1, len(x), 3))
    return self.fc(last[0] * torch.tensor([1.0, 2.0, 3.0]) + F.one_hot((x[:, 0, 0] > 0).long(), 3).float())


def test_a_network_runs_in_double_precision_where_its_code_makes_single():
    model = Call(zero_state, net=nn.GRU(4, 3, batch_first=True), fc=linear(3)).eval()
    x = torch.randn(5, *SERIES)
    network = trace(model, x)
    wide = {name: value.double() for name, value in network.parameters.items()}
    found = network.graph.run(wide, x.double())
    assert found.dtype == torch.float64
    assert torch.allclose(found.float(), model(x), atol=1e-5)


UNSTORED = {
    "bfloat16": lambda self, x: self.fc(x * torch.full((6,), 0.5, dtype=torch.bfloat16)),
    "no entries": lambda self, x: self.fc(torch.cat([x[:, :0], x], 1)),
    "vmap": lambda self, x: self.fc(torch.func.vmap(lambda row: row * row)(x)),
}


@pytest.mark.parametrize("name", UNSTORED)
def test_what_a_file_cannot_hold_leaves_the_last_layer(name):
    network = trace(Call(UNSTORED[name], fc=linear(6)).eval(), torch.randn(3, 6))
    assert network.mode == LAST_LAYER


def test_a_last_layer_with_a_computed_weight_is_refused():
    model = nn.Sequential(nn.Linear(6, 5), Opaque(), nn.utils.parametrizations.weight_norm(linear(5))).eval()
    with pytest.raises(FsdtoolError, match="not those of a last"):
        trace(model, torch.randn(3, 6))


@pytest.mark.parametrize(
    "change",
    [
        {"tensor": "~~~~~"},
        {"tensor": "0000000"},
        {"shape": [-3]},
        {"shape": [2**62, 4]},
        {"shape": [2**40]},
        {"dtype": "O"},
        {"dtype": "V100000000"},
        {"dtype": "no"},
    ],
    ids=str,
)
def test_a_constant_that_is_none_is_no_traceback(change):
    network = trace(Call(lambda self, x: self.fc(x + torch.arange(6)), fc=linear(6)).eval(), torch.randn(3, 6))
    steps = json.loads(json.dumps(network.graph.to_json()))
    constant = next(step for step in steps if step["operation"] == "constant")
    constant["options"] |= change
    with pytest.raises(FsdtoolError, match="network in the summary"):
        Graph.from_json(steps)


def written(path, steps, model):
    """A file with nothing but this network."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    with h5py.File(path, "w") as file:
        for name, content in {"graph": steps, "shapes": shapes}.items():
            file[f"model/{name}"] = np.frombuffer(json.dumps(content).encode(), np.uint8)
    return path


LOADING = {
    "a function that refuses no examples": lambda: nn.Sequential(
        nn.Conv2d(4, 2, 3), nn.InstanceNorm2d(2, affine=True), nn.Flatten(), linear(72)
    ),
    "a stored table of indices": lambda: Call(
        lambda self, x: self.fc(x[:, self.order].flatten(1)), order=torch.tensor([2, 0]), fc=linear(128)
    ),
    "stored flags": lambda: Call(
        lambda self, x: self.fc(x.flatten(1).masked_fill(self.out, 0.0)), out=torch.rand(256) > 0.5, fc=linear(256)
    ),
}


@pytest.mark.parametrize("name", LOADING)
def test_a_network_can_be_read_from_its_file(name, tmp_path):
    model = LOADING[name]().eval()
    network = trace(model, torch.randn(3, 4, 8, 8))
    with h5py.File(written(tmp_path / "x.h5", network.graph.to_json(), model)) as file:
        graph, _ = read_network(file)
    x = torch.randn(5, 4, 8, 8)
    assert torch.allclose(graph.run(network.parameters, x), model(x), atol=1e-5)


HUGE = {
    "zeros": ("torch.zeros", [10**6, 10**5]),
    "ones for each example": ("torch.ones", [{"batch": 10**11}]),
    "range": ("torch.arange", [1e11]),
    "repeated": ("Tensor.repeat", [{"input": 0}, 10**6, 10**5]),
    "padded": ("F.pad", [{"input": 0}, [10**11, 0]]),
    "square": ("torch.eye", [300_000]),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_function_that_would_take_all_memory_is_refused_before(name, tmp_path):
    model = Call(lambda self, x: self.fc(x * x.sin()), fc=linear(6)).eval()
    steps = json.loads(json.dumps(trace(model, torch.randn(3, 6)).graph.to_json()))
    step = next(step for step in steps if step["operation"] == "function")
    step["options"]["function"], step["options"]["arguments"] = HUGE[name]
    with h5py.File(written(tmp_path / "x.h5", steps, model)) as file, pytest.raises(SummaryError, match="it makes"):
        read_network(file)


def clamped(self, x):
    with torch.no_grad():
        self.fc.weight.clamp_(min=-0.1)
    return self.fc(x)


def clamped_elsewhere(self, x):
    self.fc.weight.data.clamp_(min=-0.1)
    return self.fc(x)


BY_WEIGHTS = {
    "number of a weight": lambda self, x: self.fc(x) * self.fc.bias[0].item(),
    "tensor of a weight": lambda self, x: F.linear(x, torch.from_numpy(self.fc.weight.detach().numpy() * 2)),
    "weight overwritten": clamped,
    "weight overwritten by another name": clamped_elsewhere,
}


@pytest.mark.parametrize("name", BY_WEIGHTS)
def test_what_other_weights_would_change_unseen_is_refused(name):
    model = Call(BY_WEIGHTS[name], fc=linear(6)).eval()
    model(torch.randn(3, 6))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(Untraceable, match="weight"):
        trace_full(model, torch.randn(3, 6))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def counted(self, x):
    self.calls += 1
    hidden = self.a(x)
    self.mean.mul_(0.9).add_(0.1 * hidden.mean(0))
    self.entropy = hidden.softmax(0).log().sum()
    return self.fc(hidden)


def test_what_no_output_depends_on_is_no_reason_to_refuse():
    model = Call(counted, a=linear(6, 4), fc=linear(4), calls=torch.zeros(()), mean=torch.zeros(4)).eval()
    network = trace(model, torch.randn(3, 6))
    assert network.mode == FULL
    assert [step.operation for step in network.graph.steps] == ["input", "linear", "linear"]


class Kept(nn.Module):
    """A layer that keeps what it computed of its weight in eval mode, as some of timm do."""

    def __init__(self):
        super().__init__()
        self.weight, self.kept = nn.Parameter(torch.randn(5, 6)), {}

    def train(self, mode=True):
        self.kept = {} if mode else self.kept
        return super().train(mode)

    def forward(self, x):
        if "square" not in self.kept:
            self.kept["square"] = self.weight.square()
        return F.linear(x, self.kept["square"])


def test_what_a_layer_keeps_of_its_weights_is_computed_again():
    model, x = Kept().eval(), torch.randn(4, 6)
    model(x)
    network = trace(model, x)
    other = {name: value + 1 for name, value in network.parameters.items()}
    assert network.mode == FULL
    assert torch.allclose(network.graph.run(other, x), x @ (model.weight + 1).square().T, atol=1e-5)


def test_a_number_that_is_read_from_the_data_is_refused():
    model = Call(lambda self, x: self.fc(x * float(x.detach().numpy().mean())), fc=linear(6)).eval()
    with pytest.raises(Untraceable, match="a number that is computed from the examples"):
        trace_full(model, torch.randn(3, 6))


def test_a_part_for_each_example_is_refused():
    model = Call(lambda self, x: self.fc(torch.stack(x.unbind(0))), fc=linear(6)).eval()
    with pytest.raises(Untraceable, match="as many results as there are examples"):
        trace_full(model, torch.randn(3, 6))


def four_at_a_time(self, x):
    return torch.cat([self.fc(x[start : start + 4]) for start in range(0, len(x), 4)])


FIXED = {
    "slices": four_at_a_time,
    "parts": lambda self, x: torch.cat([self.fc(part) for part in x.split(4)]),
    "parts of a sequence": lambda self, x: self.fc(torch.cat(x.T.split(4, dim=1), 1).T),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_number_of_examples_is_refused(name):
    with pytest.raises(Untraceable, match="a fixed number of examples"):
        trace_full(Call(FIXED[name], fc=linear(6)).eval(), torch.randn(3, 6))


def test_a_detached_weight_has_no_gradient():
    model = Call(lambda self, x: F.linear(self.a(x), self.fc.weight.detach()), a=linear(6, 6), fc=linear(6)).eval()
    network = trace(model, torch.randn(3, 6), task="regression")
    weights = {name: value.clone().requires_grad_() for name, value in network.parameters.items()}
    network.graph.run(weights, torch.randn(4, 6)).sum().backward()
    assert weights["fc.weight"].grad is None
    assert weights["a.weight"].grad.any()
