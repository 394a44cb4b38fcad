"""Per-example gradients of every parameter against torch.autograd, one example at a time, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsdtool.network import per_example_gradients
from fsdtool.network.per_example_gradients import (
    blocks,
    capture,
    gradient,
    parameters_without_block,
    project,
    sampled_layer_io,
    squared_norms,
    vectors,
)
from fsdtool.network.tracing.trace import trace

EXAMPLES = 4
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


class Tokens(nn.Module):
    """A linear layer on every token, then the mean."""

    def __init__(self, bias: bool):
        super().__init__()
        self.fc, self.out = nn.Linear(5, 6, bias=bias), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.fc(x)).flatten(1, -2).mean(1))


class Shared(nn.Module):
    """One convolution and one linear layer, each used at two places."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3)

    def forward(self, x):
        x = torch.tanh(self.conv(torch.tanh(self.conv(x)))).mean((2, 3))
        return self.fc(torch.tanh(self.fc(x)))


class TiedWeight(nn.Module):
    """Two linear layers with one weight and a bias each."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Functional(nn.Module):
    """A convolution as a function, with positional and text arguments."""

    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(4, 1, 2, 3)), nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        y = F.conv2d(x, self.w, None, 1, "same", groups=2)
        return F.linear(torch.tanh(y).mean((2, 3)), self.v)


class EveryNorm(nn.Module):
    """Every norm, with positions and without."""

    def __init__(self):
        super().__init__()
        self.conv, self.batch = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.group, self.instance = nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)
        self.planes, self.channels, self.rms = nn.LayerNorm((5, 4)), nn.LayerNorm(4), nn.RMSNorm(4)
        self.fc, self.features = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.layer, self.groups, self.out = nn.LayerNorm(6, bias=False), nn.GroupNorm(3, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.tanh(self.instance(self.group(self.batch(self.conv(x)))))
        x = self.planes(x) + self.channels(x.movedim(1, -1)).movedim(-1, 1) + self.rms(x)
        x = self.groups(self.layer(self.features(self.fc(x.mean((2, 3))))))
        return self.out(torch.tanh(x))


class SequenceFirst(nn.Module):
    """Layer norm on tokens of which the examples come second, and on windows that are counted with the examples."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.windows, self.out = nn.Linear(5, 4), nn.LayerNorm(4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        batch = x.shape[0]
        x = torch.tanh(self.norm(self.fc(x.transpose(0, 1)))).transpose(0, 1)
        x = self.windows(x.reshape(batch * 2, -1, 4)).reshape(batch, -1, 4)
        return self.out(torch.tanh(x).mean(1))


class Vectors(nn.Module):
    """Parameters by hand: a class token, positions, scales, a quotient, a shift used twice, and an activation's."""

    def __init__(self):
        super().__init__()
        self.fc, self.out, self.act = nn.Linear(5, 4), nn.Linear(4, 3), nn.PReLU(4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 5, 4))
        self.scale, self.plane = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(5, 1))
        self.one, self.divisor = nn.Parameter(torch.randn(())), nn.Parameter(torch.rand(4) + 1)
        self.shift, self.slopes = nn.Parameter(torch.randn(4)), nn.Parameter(torch.rand(4))

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.fc(x)], 1) + self.position
        x = self.plane * x * self.scale[None] * self.one / self.divisor + self.shift
        x = torch.tanh(self.act(x[:, 0]) + F.prelu(self.shift - x[:, 1:].mean(1), self.slopes))
        return self.out(x)


def convolution(kind, *args, head: int, **kwargs):
    pool = {
        nn.Conv1d: nn.AdaptiveAvgPool1d,
        nn.Conv2d: nn.AdaptiveAvgPool2d,
        nn.Conv3d: nn.AdaptiveAvgPool3d,
    }[kind]
    return nn.Sequential(kind(*args, **kwargs), nn.Tanh(), pool(2), nn.Flatten(), nn.Linear(head, 3))


CONV2D = {
    "plain": {},
    "no bias": {"bias": False},
    "stride": {"stride": (2, 3)},
    "dilation": {"dilation": (2, 1)},
    "padding": {"padding": (2, 1), "stride": 2},
    "valid": {"padding": "valid"},
    "same": {"padding": "same", "dilation": 2},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflect, same": {"padding": "same", "padding_mode": "reflect"},
    "groups": {"groups": 2, "padding": 1},
    "depthwise without bias": {"groups": 4, "bias": False, "stride": 2},
}
MODELS = {
    "linear": ((5,), lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3, bias=False))),
    "tokens": ((4, 5), lambda: Tokens(True)),
    "tokens in two dimensions without bias": ((2, 3, 5), lambda: Tokens(False)),
    "shared": ((3, 5, 5), Shared),
    "tied weight, two biases": ((5,), TiedWeight),
    "functional": ((2, 5, 6), Functional),
    "norms": ((2, 5, 4), EveryNorm),
    "sequence first": ((4, 5), SequenceFirst),
    "vectors": ((4, 5), Vectors),
    "batch norm and pooling": (
        (2, 8, 8),
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 3, 3),
            nn.Flatten(),
        ),
    ),
    "conv1d": (
        (4, 11),
        lambda: convolution(nn.Conv1d, 4, 6, 3, stride=2, padding=2, dilation=2, groups=2, head=12),
    ),
    "conv1d same, even kernel": ((3, 9), lambda: convolution(nn.Conv1d, 3, 4, 4, padding="same", head=8)),
    "conv3d": (
        (2, 4, 5, 6),
        lambda: convolution(nn.Conv3d, 2, 4, (2, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1), head=32),
    ),
    "conv3d groups": ((2, 4, 4, 5), lambda: convolution(nn.Conv3d, 2, 4, 2, groups=2, bias=False, head=32)),
    **{
        f"conv2d {name}": (
            (4, 9, 8),
            lambda options=options: convolution(nn.Conv2d, 4, 8, (3, 3), head=32, **options),
        )
        for name, options in CONV2D.items()
    },
}


def seen(name: str):
    """The blocks of a model, what capture saw, and the gradients of every example by parameter name."""
    torch.manual_seed(0)
    shape, build = MODELS[name]
    model = build().double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
        if type(module).__name__.rstrip("123d").endswith("Norm") and hasattr(module, "weight"):
            nn.init.uniform_(module.weight, 0.5, 2)
    x, y = torch.randn(EXAMPLES, *shape).double(), torch.tensor([0, 2, 1, 1])
    if name == "batch norm and pooling":
        x, y = torch.randn(EXAMPLES, *shape).double(), y * 0
    network = trace(model, x)

    def loss_gradient(logits):
        with torch.enable_grad():
            point = logits.detach().requires_grad_()
            return torch.autograd.grad(F.cross_entropy(point, y, reduction="sum"), point)[0]

    logits, uses = capture(network.graph, network.parameters, x, loss_gradient)
    assert torch.allclose(logits, model(x), atol=1e-5)
    expected = []
    for i in range(EXAMPLES):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        expected.append({n: p.grad.clone() for n, p in model.named_parameters()})
    return blocks(network.graph, network.parameters), uses, expected, network


def reference(block, expected) -> torch.Tensor:
    """(examples, rows, columns) from the loop over examples."""
    return block.join({name: torch.stack([grads[name] for grads in expected]) for name in block.names}, 1)


def assert_close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


def bases(block, ks=2, ka=3):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(block.d_out, min(ks, block.d_out), generator=generator).double()
    return rows, torch.randn(block.d_in, min(ka, block.d_in), generator=generator).double()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_a_loop_of_autograd(name):
    found, uses, expected, _ = seen(name)
    assert {n for block in found for n in block.names} == set(expected[0])
    for block in found:
        whole = reference(block, expected)
        assert whole[0].numel() == block.size
        assert_close(gradient(block, uses), whole)
        pair = vectors(block, uses)
        if pair is not None:
            assert_close(pair[0][:, :, None] * pair[1][:, None, :], whole)


@pytest.mark.parametrize("unfolding", [0.0, float("inf")], ids=["whole first", "patches first"])
@pytest.mark.parametrize("name", MODELS)
def test_projected_gradients_equal_the_projection_of_the_loop(name, unfolding, monkeypatch):
    monkeypatch.setattr(per_example_gradients, "UNFOLDING", unfolding)
    found, uses, expected, _ = seen(name)
    for block in found:
        rows, columns = bases(block)
        assert_close(project(block, uses, rows, columns), rows.T @ reference(block, expected) @ columns)


@pytest.mark.parametrize("numbers", [1, 10**6], ids=["one at a time", "at once"])
@pytest.mark.parametrize("pairing", [0.0, float("inf")], ids=["pairs of positions", "formed"])
@pytest.mark.parametrize("name", MODELS)
def test_squared_norms_equal_those_of_the_loop(name, pairing, numbers, monkeypatch):
    monkeypatch.setattr(per_example_gradients, "PAIRING", pairing)
    monkeypatch.setattr(per_example_gradients, "GRADIENT_NUMBERS", numbers)
    found, uses, expected, _ = seen(name)
    for block in found:
        assert_close(squared_norms(block, uses), reference(block, expected).square().sum((1, 2)))


@pytest.mark.parametrize("name", MODELS)
def test_the_rows_of_the_factors_add_up_to_the_gradients(name):
    found, uses, expected, _ = seen(name)
    for block in found:
        b, a = sampled_layer_io(block, uses, 10**6, torch.Generator())
        assert (b.shape[1], a.shape[1], len(a)) == (block.d_out, block.d_in, len(b))
        assert_close(b.T @ a, reference(block, expected).sum(0))


def test_a_choice_of_positions_is_the_same_for_all_examples_and_seeded():
    found, uses, _, _ = seen("conv2d padding")
    block = found[0]
    every_b, every_a = sampled_layer_io(block, uses, 10**6, torch.Generator())
    b, a = sampled_layer_io(block, uses, 5, torch.Generator().manual_seed(2))
    again = sampled_layer_io(block, uses, 5, torch.Generator().manual_seed(2))
    assert torch.equal(b, again[0])
    assert torch.equal(a, again[1])
    assert len(a) == 5 * EXAMPLES
    every = torch.cat([every_b, every_a], 1).view(EXAMPLES, -1, block.d_out + block.d_in)
    few = torch.cat([b, a], 1).view(EXAMPLES, 5, -1)
    places = [torch.cdist(few[i], every[i]).argmin(1).tolist() for i in range(EXAMPLES)]
    assert all(place == places[0] for place in places)
    assert len(set(places[0])) == 5
    for i in range(EXAMPLES):
        assert torch.equal(every[i, places[0]], few[i])


def test_vectors_are_given_only_where_the_gradient_has_rank_one():
    for name, expected in (("linear", True), ("tokens", False), ("conv2d plain", False), ("shared", False)):
        found, uses, _, _ = seen(name)
        assert (vectors(found[0], uses) is not None) == expected


def test_scale_and_shift_are_one_block_after_the_weights():
    found, _, _, network = seen("batch norm and pooling")
    names = [block.names for block in found]
    assert names == [("0.weight", "0.bias"), ("4.weight", "4.bias"), ("1.weight", "1.bias")]
    assert (found[2].d_out, found[2].d_in, found[2].bias) == (8, 1, None)
    assert parameters_without_block(network.graph, found) == []
    assert parameters_without_block(network.graph, found[:2]) == ["1.weight", "1.bias"]


def test_biases_of_one_weight_are_blocks_of_their_own():
    found, *_ = seen("tied weight, two biases")
    assert [(block.names, block.steps) for block in found] == [
        (("a.weight",), (1, 3)),
        (("a.bias",), (1,)),
        (("b.bias",), (3,)),
    ]


def test_very_long_vectors_are_left_out_and_named(monkeypatch):
    found, _, _, network = seen("vectors")
    assert parameters_without_block(network.graph, found) == []
    monkeypatch.setattr(per_example_gradients, "MOST_NUMBERS", 8)
    kept = blocks(network.graph, network.parameters)
    assert parameters_without_block(network.graph, kept) == ["position"]
    assert [block.names for block in kept] == [block.names for block in found if "position" not in block.names]


def test_a_vector_splits_into_its_parameters_and_back():
    found, _, expected, network = seen("norms")
    for block in found:
        v = torch.randn(3, block.d_out, block.d_in).double()
        parts = block.split(v, network.parameters)
        assert {name: part.shape[1:] for name, part in parts.items()} == {n: expected[0][n].shape for n in block.names}
        assert torch.equal(block.join(parts, 1), v)


def test_capture_follows_the_gates_it_is_given():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    x, v = torch.randn(EXAMPLES, 5), torch.randn(EXAMPLES, 3)
    network = trace(model, x)
    gates = torch.randint(0, 2, (EXAMPLES, 7)).float()
    _, uses = capture(network.graph, network.parameters, x, lambda logits: v, gate=lambda step, s: gates * s)
    first, second = blocks(network.graph, network.parameters)
    b, a = vectors(first, uses)
    assert_close(b, (v @ model[2].weight * gates).detach())
    assert torch.equal(a, torch.cat([x, torch.ones(EXAMPLES, 1)], 1))
    assert_close(vectors(second, uses)[1][:, :-1], (gates * model[0](x)).detach())


def test_capture_shows_every_step_to_an_observer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    x = torch.randn(EXAMPLES, 5)
    network, shown = trace(model, x), {}

    def observe(step, inputs, output):
        shown[step.name] = output
        assert not output.requires_grad
        assert not torch.is_grad_enabled()

    logits, _ = capture(network.graph, network.parameters, x, lambda logits: logits, observe=observe)
    assert list(shown) == [step.name for step in network.graph.steps]
    assert torch.equal(shown["2"], logits)
