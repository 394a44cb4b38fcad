"""Tracing reproduces the model's outputs step by step, or says in plain words why it cannot."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsdtool.errors import FsdtoolError
from fsdtool.model.libraries import import_torchvision
from fsdtool.network import activations
from fsdtool.network.graph import Graph
from fsdtool.network.operations.base import gated
from fsdtool.network.traced import FULL, LAST_LAYER
from fsdtool.network.tracing.trace import trace, trace_full

# Activations: a gate is the tangent of the function.

OPTIONS = {
    "gelu": {"approximate": "tanh"},
    "elu": {"alpha": 1.7},
    "celu": {"alpha": 0.6},
    "softplus": {"beta": 2.0},
    "leaky_relu": {"negative_slope": 0.2},
    "hardtanh": {"min_val": -0.4, "max_val": 1.3},
}
CASES = [(name, {}) for name in sorted(activations.names())] + sorted(OPTIONS.items())


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
def test_a_gate_is_the_tangent_of_the_activation(name, options):
    activation = activations.activation(name, options)
    s = torch.linspace(-7.03, 7.01, 60, dtype=torch.float64).view(3, 20).requires_grad_()
    value = activation.function(s)
    (slope,) = torch.autograd.grad(value.sum(), s)
    m, c = activation.gate(s.detach())
    # Not to rounding: torch's derivative of hardsigmoid is float32's 1/6.
    assert torch.allclose(m, slope, rtol=1e-12, atol=1e-8)
    assert torch.allclose(m * s + c, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(activations.PIECEWISE))
def test_pieces_agree_with_the_function_at_their_breaks_too(name):
    activation = activations.activation(name)
    s = torch.tensor(activation.pieces.breaks, dtype=torch.float64)
    m, c = activation.gate(s)
    assert torch.allclose(m * s + c, activation.function(s), atol=1e-12)
    below = torch.tensor(activation.pieces.slopes[:-1], dtype=torch.float64)
    assert torch.allclose(m, below)  # s = break is in the piece below
    assert activation.pieces.through_origin == (name in ("relu", "leaky_relu", "abs"))


@pytest.mark.parametrize("kind", sorted(activations.MODULES, key=lambda kind: kind.__name__))
def test_every_activation_module_has_its_own_options(kind):
    options = {nn.Softplus: {"beta": 3.0}, nn.GELU: {"approximate": "tanh"}, nn.ELU: {"alpha": 0.3}}
    module = kind(**options.get(kind, {})).eval()
    function = activations.activation(activations.MODULES[kind], activations.module_options(module)).function
    s = torch.linspace(-9, 9, 41)
    assert torch.equal(function(s), module(s))


# Models that trace in full.


class Call(nn.Module):
    """A module whose forward is the function given, with its layers as attributes."""

    def __init__(self, function, **members):
        super().__init__()
        for name, member in members.items():
            if isinstance(member, torch.Tensor) and not isinstance(member, nn.Parameter):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


class Opaque(nn.Module):
    """The identity, by a way that no tracer sees."""

    def forward(self, x):
        return torch.from_numpy(x.detach().cpu().numpy().copy())


def randomized(model: nn.Module) -> nn.Module:
    """Batch norm statistics away from 0 and 1, so that leaving them out would show."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    return model.eval()


def residual(self, x):
    y = F.relu(self.bn(self.conv(x)), inplace=True)
    y = self.bn2(self.conv2(y))
    y += x
    return self.fc(y.relu_().mean([2, 3]))


def chunks(self, x):
    a, b = x.chunk(2, 1)
    c, d = torch.split(self.conv(a), [3, 1], dim=1)
    e = torch.unbind(b, dim=1)[1].unsqueeze(1)
    return self.fc(torch.cat((c, d, e, torch.cat(b.split(1, 1), dim=-3)), dim=1).flatten(1))


def shuffle(self, x):
    batch, channels, height, width = x.size()
    x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
    x = x.view(x.size(0), -1, height, width)
    return self.fc(F.avg_pool2d(x, x.size()[2:]).view(x.size(0), -1))


def option_a(self, x):  # the shortcut without parameters of the CIFAR residual networks
    short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1), "constant", 0)
    y = self.conv(x) + short
    return self.fc(F.adaptive_avg_pool2d(y, (1, None)).reshape(len_of(y), -1))


def len_of(x):
    return x.shape[0]


def linear(n, out=5):
    return nn.Linear(n, out)


def attention_by_hand(self, x):
    batch, tokens, width = x.shape
    q, k, v = self.qkv(self.norm(x)).reshape(batch, tokens, 3, 2, width // 2 // 1).permute(2, 0, 3, 1, 4).unbind(0)
    weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + self.bias[self.index], dim=-1)
    mixed = (weights @ v).transpose(1, 2).flatten(2)
    return self.head(torch.cat([self.token.expand(batch, -1, -1), x + self.out(mixed)], 1)[:, 1:].mean(1))


def windows(self, x):  # counted together with the examples, as Swin's
    batch = x.shape[0]
    x = torch.roll(x.permute(0, 2, 3, 1), (-1, -1), dims=(1, 2))
    x = x.view(batch, 2, 4, 2, 4, 4).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, 4)
    x = x + self.out(F.gelu(self.fc(x)))
    x = x.view(batch, 2, 2, 4, 4, 4).permute(0, 1, 3, 2, 4, 5).reshape(batch, 64, 4)
    return self.head(x.mean(1))


def inner_batch(self, x):  # examples that change fastest
    x = x.flatten(2).permute(2, 0, 1)
    x = F.relu(self.fc(x.reshape(-1, 4))).view(64, -1, 4)
    return self.head(x.mean(0))


def squeeze_and_excite(self, x):
    x = self.conv(x)
    return self.fc((x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))).flatten(1))


def overwriting(self, x):
    y = torch.zeros(len(x), 6)
    y[:, :3] = x[:, 3:]
    y[x < -1] = 0.5
    y.clamp_(min=-0.1)
    x = x.clone()
    x[:, 0] = 1.0
    return self.fc(torch.cat([y, x], 1))


def position_table(self, x):
    tokens = x.flatten(2).transpose(1, 2)
    places = torch.arange(tokens.shape[1], device=x.device).unsqueeze(0).expand(len(x), -1)
    return self.fc((tokens + self.table(places)).flatten(1))


def recurrent(self, x):
    outputs, last = self.net(x.transpose(1, 2))
    last = last[0] if isinstance(last, tuple) else last
    return self.fc(outputs[:, -1] + last[-1])


def encoder(first):
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=first, norm_first=first),
        2,
        enable_nested_tensor=False,
    )


IMAGE, VECTOR, SERIES, VOLUME = (4, 8, 8), (6,), (4, 12), (2, 5, 6, 7)
MODELS = {
    "product and quotient": (
        VECTOR,
        lambda: Call(lambda self, x: self.fc(x * torch.relu(x) / (1 + x**2) + 1 / (2 + x.exp())), fc=linear(6)),
    ),
    "norms": (
        IMAGE,
        lambda: Call(
            lambda self, x: self.fc(
                F.normalize(self.layer(self.instance(self.group(x)).permute(0, 2, 3, 1)).flatten(1), dim=1)
            ),
            group=nn.GroupNorm(2, 4),
            instance=nn.InstanceNorm2d(4, affine=True),
            layer=nn.LayerNorm(4),
            fc=linear(256),
        ),
    ),
    "attention by hand": (
        (5, 4),
        lambda: Call(
            attention_by_hand,
            norm=nn.LayerNorm(4),
            qkv=linear(4, 12),
            bias=nn.Parameter(torch.randn(9)),
            index=torch.randint(0, 9, (5, 5)),
            token=nn.Parameter(torch.randn(1, 1, 4)),
            out=linear(4, 4),
            head=linear(4),
        ),
    ),
    "windows": (IMAGE, lambda: Call(windows, fc=linear(4, 7), out=linear(7, 4), head=linear(4))),
    "examples that change fastest": (IMAGE, lambda: Call(inner_batch, fc=linear(4, 4), head=linear(4))),
    "transformer encoder": (
        (5, 4),
        lambda: Call(lambda self, x: self.fc(self.body(x)[:, 0]), body=encoder(True), fc=linear(4)),
    ),
    "transformer encoder, tokens first": (
        (5, 4),
        lambda: Call(lambda self, x: self.fc(self.body(x.transpose(0, 1))[0]), body=encoder(False), fc=linear(4)),
    ),
    "transformer encoder, causal": (
        (5, 4),
        lambda: Call(
            lambda self, x: self.fc(self.body(x, mask=nn.Transformer.generate_square_subsequent_mask(5))[:, -1]),
            body=encoder(True),
            fc=linear(4),
        ),
    ),
    "transformer encoder, padded": (
        (5, 4),
        lambda: Call(
            lambda self, x: self.fc(
                self.body(
                    x,
                    torch.ones(5, 5, dtype=torch.bool).triu(1),
                    (x[..., 0].cumsum(1) > 1) & (torch.arange(5) > 0),
                )[:, 0]
            ),
            body=encoder(True),
            fc=linear(4),
        ),
    ),
    "a cache that holds nothing yet": (
        (5, 4),
        lambda: Call(lambda self, x: self.fc(torch.cat([torch.tensor([]), x], dim=-2)[:, -1]), fc=linear(4)),
    ),
    "squeeze and excitation": (
        IMAGE,
        lambda: Call(squeeze_and_excite, conv=nn.Conv2d(4, 3, 3), gate=nn.Conv2d(3, 3, 1), fc=linear(108)),
    ),
    "overwriting": (VECTOR, lambda: Call(overwriting, fc=linear(12))),
    "position table": (IMAGE, lambda: Call(position_table, table=nn.Embedding(64, 4), fc=linear(256))),
    "lstm": (SERIES, lambda: Call(recurrent, net=nn.LSTM(4, 3, 2, batch_first=True), fc=linear(3))),
    "gru": (SERIES, lambda: Call(recurrent, net=nn.GRU(4, 3, batch_first=True), fc=linear(3))),
    "rnn": (SERIES, lambda: Call(recurrent, net=nn.RNN(4, 3, batch_first=True), fc=linear(3))),
    "prelu, glu, einsum": (
        SERIES,
        lambda: Call(
            lambda self, x: self.fc(torch.einsum("bct,kc->bk", F.glu(self.act(x), 1), self.w)),
            act=nn.PReLU(4),
            w=nn.Parameter(torch.randn(6, 2)),
            fc=linear(6),
        ),
    ),
    "computed weights": (
        VECTOR,
        lambda: Call(
            lambda self, x: F.linear(x, self.w / self.w.norm(dim=1, keepdim=True), self.b * 0.5),
            w=nn.Parameter(torch.randn(5, 6)),
            b=nn.Parameter(torch.randn(5)),
        ),
    ),
    "constants": (
        VECTOR,
        lambda: Call(
            lambda self, x: self.fc(
                F.pad((x + torch.ones(6)).masked_fill(torch.arange(6) > 3, 0.5)[:, 1:], (1, 0), value=1.0)
            ),
            fc=linear(6),
        ),
    ),
    "batch moved, split and put back": (
        VECTOR,
        lambda: Call(
            lambda self, x: self.fc(torch.cat([x.T.T.to(torch.float64).float(), x], 0)[: len(x)]), fc=linear(6)
        ),
    ),
    "mlp": (VECTOR, lambda: nn.Sequential(linear(6, 9), nn.GELU(), nn.Dropout(), linear(9))),
    "batch norm 1d": (VECTOR, lambda: nn.Sequential(linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), linear(9))),
    "batch norm over series": (
        SERIES,
        lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6, affine=False), nn.Flatten(), linear(60)),
    ),
    "functions": (
        VECTOR,
        lambda: Call(
            lambda self, x: self.b(F.leaky_relu(torch.tanh(self.a(x)).sigmoid(), 0.3) - 0.5),
            a=linear(6, 7),
            b=linear(7),
        ),
    ),
    "inplace method": (
        VECTOR,
        lambda: Call(lambda self, x: self.b(self.a(x).relu_()), a=linear(6), b=linear(5)),
    ),
    "inplace on the input": (VECTOR, lambda: Call(lambda self, x: self.a(x.sub_(0.5).div_(2)), a=linear(6))),
    "plain arithmetic": (
        VECTOR,
        lambda: Call(lambda self, x: self.a((1 - x) * 2 / 3 + -x + (3 + x) - (x - 1)), a=linear(6)),
    ),
    "buffers": (
        IMAGE,
        lambda: Call(
            lambda self, x: self.fc(
                ((x - self.mean) / self.std.view(1, 4, 1, 1) * self.scale[:, None, None]).flatten(1)
            ),
            mean=torch.randn(1, 4, 1, 1),
            std=torch.rand(4) + 0.5,
            scale=nn.Parameter(torch.randn(4)),
            fc=linear(256),
        ),
    ),
    "parameter minus signal": (
        VECTOR,
        lambda: Call(lambda self, x: self.a(self.p - x) + self.q, p=torch.randn(6), q=torch.randn(1), a=linear(6)),
    ),
    "functional weights": (
        VECTOR,
        lambda: Call(
            lambda self, x: F.linear(F.relu(F.linear(x, self.w, bias=self.b)), self.v),
            w=nn.Parameter(torch.randn(7, 6)),
            b=nn.Parameter(torch.randn(7)),
            v=nn.Parameter(torch.randn(5, 7)),
        ),
    ),
    "functional convolution": (
        IMAGE,
        lambda: Call(
            lambda self, x: self.fc(F.conv2d(x, self.w, None, 2, padding=(1, 0), groups=2).flatten(1)),
            w=nn.Parameter(torch.randn(6, 2, 3, 2)),
            fc=linear(96),
        ),
    ),
    "same module twice": (
        VECTOR,
        lambda: Call(lambda self, x: self.b(self.a(self.a(x).relu()).relu()), a=linear(6, 6), b=linear(6)),
    ),
    "residual": (
        IMAGE,
        lambda: Call(
            residual,
            conv=nn.Conv2d(4, 6, 3, padding=1, bias=False),
            bn=nn.BatchNorm2d(6),
            conv2=nn.Conv2d(6, 4, 3, padding="same"),
            bn2=nn.BatchNorm2d(4),
            fc=linear(4),
        ),
    ),
    "chunk, split, unbind, cat": (
        IMAGE,
        lambda: Call(chunks, conv=nn.Conv2d(2, 4, 1), fc=linear(7 * 64)),
    ),
    "channel shuffle": (IMAGE, lambda: Call(shuffle, fc=linear(4))),
    "strided shortcut": (
        IMAGE,
        lambda: Call(option_a, conv=nn.Conv2d(4, 6, 3, stride=2, padding=1), fc=linear(24)),
    ),
    "slices": (
        IMAGE,
        lambda: Call(
            lambda self, x: self.fc(
                torch.cat([x[:, 1:, -1, 2:-1].flatten(1), x[:, 0, ..., 3], x[..., : x.shape[1] - 1, 3].mean(1)], 1)
            ),
            fc=linear(26),
        ),
    ),
    "permute and tokens": (
        IMAGE,
        lambda: Call(
            lambda self, x: self.out(F.gelu(self.fc(x.flatten(2).permute(0, 2, 1))).sum(1)),
            fc=linear(4, 9),
            out=linear(9),
        ),
    ),
    "torch.permute": (
        IMAGE,
        lambda: Call(lambda self, x: self.fc(torch.permute(x, (0, 2, 3, 1))).mean((1, 2)), fc=linear(4)),
    ),
    "convolution, groups, stride, dilation": (
        IMAGE,
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
            nn.ReLU6(),
            nn.Flatten(),
            linear(96),
        ),
    ),
    "padding modes": (
        IMAGE,
        lambda: nn.Sequential(
            nn.Conv2d(4, 3, 3, padding=(1, 2), padding_mode="circular"),
            nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(3, 3, (3, 2), padding="same", padding_mode="replicate"),
            nn.Flatten(),
            linear(240),
        ),
    ),
    "1d pools": (
        SERIES,
        lambda: nn.Sequential(
            nn.Conv1d(4, 6, 3, padding=1),
            nn.MaxPool1d(3, stride=2, padding=1),
            nn.AvgPool1d(2),
            nn.AdaptiveMaxPool1d(2),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            linear(6),
        ),
    ),
    "2d pools": (
        IMAGE,
        lambda: nn.Sequential(
            nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
            nn.AvgPool2d(2, padding=1, count_include_pad=False),
            nn.AdaptiveAvgPool2d((2, None)),
            nn.Flatten(),
            linear(24),
        ),
    ),
    "functional pools": (
        IMAGE,
        lambda: Call(
            lambda self, x: self.fc(F.adaptive_max_pool2d(F.max_pool2d(x, 2, dilation=1), 2).flatten(start_dim=1)),
            fc=linear(16),
        ),
    ),
    "3d": (
        VOLUME,
        lambda: nn.Sequential(
            nn.Conv3d(2, 3, (2, 3, 2)),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.AdaptiveAvgPool3d((None, 1, 2)),
            nn.Flatten(),
            linear(12),
        ),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_steps_reproduce_the_model(name):
    torch.manual_seed(0)
    shape, build = MODELS[name]
    model = randomized(build())
    x = torch.randn(7, *shape)
    network = trace(model, x[:2])
    assert (network.mode, network.reasons) == (FULL, ())
    with torch.no_grad():
        expected = model(x.clone())
        found = network.graph.run(network.parameters, x)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert_json_round_trip(network, x)
    assert network.graph.outputs == expected.shape[1]


def assert_json_round_trip(network, x):
    again = Graph.from_json(json.loads(json.dumps(network.graph.to_json())))
    with torch.no_grad():
        assert torch.equal(again.run(network.parameters, x), network.graph.run(network.parameters, x))
    assert [(step.kind, step.shape) for step in again.steps] == [
        (step.kind, step.shape) for step in network.graph.steps
    ]


def test_tied_weights_are_one_parameter():
    model = nn.Sequential(linear(6, 6), nn.ReLU(), linear(6, 6), nn.ReLU(), linear(6))
    model[2].weight = model[0].weight
    graph = trace(model.eval(), torch.randn(2, 6)).graph
    assert graph.parameter_names() == ["0.weight", "0.bias", "2.bias", "4.weight", "4.bias"]


def test_steps_that_the_output_does_not_need_are_left_out():
    model = Call(lambda self, x: (self.a(x), self.b(x))[1], a=linear(6), b=linear(6))
    assert [step.name for step in trace(model, torch.randn(2, 6)).graph.steps] == ["input", "b"]


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 64), ("vgg11_bn", 32), ("mobilenet_v2", 32), ("densenet121", 32)]
)
def test_torchvision_networks_trace_in_full(name, size):
    torch.manual_seed(0)
    model = randomized(getattr(import_torchvision().models, name)(num_classes=7))
    x = torch.randn(4, 3, size, size)
    network = trace(model, x[:2])
    assert network.mode == FULL
    with torch.no_grad():
        expected, found = model(x), network.graph.run(network.parameters, x)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert_json_round_trip(network, x[:1])
    assert not network.graph.is_chain()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("mobilenet_v3_small", 64), ("convnext_tiny", 64), ("vit_b_16", 224), ("swin_t", 64)]
)
def test_torchvision_networks_with_attention_and_the_like_trace_in_full(name, size):
    torch.manual_seed(0)
    model = randomized(getattr(import_torchvision().models, name)(num_classes=7))
    x = torch.randn(4, 3, size, size)
    network = trace(model, x[:2])
    assert (network.mode, network.reasons) == (FULL, ())
    with torch.no_grad():
        expected, found = model(x), network.graph.run(network.parameters, x)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert_json_round_trip(network, x[:1])


def test_hooks_see_activations_where_only_the_last_layer_is_traced():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Flatten(), linear(144, 8), nn.GELU(), Opaque(), linear(8)
    ).eval()
    network = trace(model, torch.randn(1, 3, 8, 8))
    assert network.mode == LAST_LAYER
    assert network.hooked == ("1", "4")
    x = torch.randn(2, 3, 8, 8)
    seen = []

    def watch(layer, activation, s, channels_last):
        value = activation.function(s).clone()
        return lambda output: seen.append((layer, torch.allclose(value, output, atol=1e-5), channels_last))

    with torch.no_grad():
        features = network.signal(x, watch)
        assert torch.allclose(network.graph.run(network.parameters, features), model(x), atol=1e-5)
    assert seen == [("1", True, False), ("4", True, True)]


# Refusals.


def refusals():
    fc = linear(6)
    yield "no statistics", nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), fc), "without running"
    yield (
        "control flow",
        Call(lambda self, x: self.fc(x if x[0].sum() > 0 else -x), fc=fc),
        "depends on the examples",
    )
    yield "custom kernel", nn.Sequential(linear(6, 6), Opaque(), fc), "where no call of torch is seen"
    yield (
        "mixing reshape",
        Call(lambda self, x: self.fc(x.reshape(6, -1).T.reshape(-1, 6)), fc=fc),
        "depend on the others in its batch",
    )
    yield "batch mean", Call(lambda self, x: self.fc(x - x.mean(0)), fc=fc), "mean (an operation across the batch)"
    yield "batch slice", Call(lambda self, x: self.fc(x[:1] + x), fc=fc), "getitem (an operation across the batch)"
    yield "batch roll", Call(lambda self, x: self.fc(x.roll(1, 0)), fc=fc), "depend on the others in its batch"
    yield "batch attention", Call(lambda self, x: self.fc(x @ x.T @ x), fc=fc), "matmul (an operation across the batch)"
    yield (
        "batch broadcast",
        Call(lambda self, x: self.fc((x.unsqueeze(1).expand(-1, 3, -1) + x).mean(1)), fc=fc),
        "it fails on 2 examples",
    )
    yield (
        "parameter per example",
        Call(lambda self, x: self.fc(x + self.p), fc=fc, p=torch.randn(3, 6)),
        "it fails on 2 examples",
    )
    yield "noise", Call(lambda self, x: self.fc(F.dropout(x)), fc=fc), "other values when it is run again"
    yield "random", Call(lambda self, x: self.fc(x + torch.randn(6)), fc=fc), "where no call of torch is seen"
    yield "shared inplace", Call(lambda self, x: self.fc(x[:, :3].mul_(2).repeat(1, 2) + x), fc=fc), "in-place"
    yield "scaled slope", Call(lambda self, x: self.fc(F.leaky_relu(x, x.mean().item())), fc=fc), "across the batch"
    yield (
        "number from the data",
        Call(lambda self, x: self.fc(x * float(x.flatten()[0])), fc=fc),
        "across the batch",
    )


@pytest.mark.parametrize(("model", "reason"), [pytest.param(m, r, id=n) for n, m, r in refusals()])
def test_what_has_no_place_in_a_graph_is_refused_with_its_reason(model, reason):
    torch.manual_seed(0)
    x = torch.randn(3, 6).abs()
    x[0] = -x[0]
    try:
        network = trace(model.eval(), x)
    except FsdtoolError as error:
        message = str(error)
        assert "let it return the outputs of its last linear layer" in message
        assert "\n" not in message
    else:
        assert network.mode == LAST_LAYER
        message = "; ".join(network.reasons)
    assert reason in message


def test_outputs_that_are_no_rows_are_refused():
    class Spread(nn.Module):
        def forward(self, x):
            return x[:, :, None]

    with pytest.raises(FsdtoolError, match=r"outputs of shape \(batch, \(3, 1\)\)"):
        trace(Spread(), torch.randn(2, 3))


def test_every_refusal_of_a_model_is_listed():
    model = Call(
        lambda self, x: self.fc(torch.hsplit(torch.renorm(self.relu(x - x.mean(0)), 2, 0, 1.0), 1)[0]),
        relu=nn.ReLU(),
        fc=linear(6),
    )
    network = trace(model.eval(), torch.randn(2, 6))
    assert network.reasons == ("forward: mean (an operation across the batch)", "forward: renorm", "forward: hsplit")
    assert network.hooked == ("relu",)


def test_a_model_that_looks_at_its_data_is_summarized_as_it_does_and_said(caplog):
    model = Call(lambda self, x: self.fc(x if bool(x.isfinite().all()) else x.nan_to_num()), fc=linear(6))
    assert trace(model.eval(), torch.randn(2, 6)).mode == FULL
    assert "looks at values of its data (forward: bool)" in caplog.text


def test_an_empty_example_is_the_users_fault():
    with pytest.raises(FsdtoolError, match="empty"):
        trace(linear(3), torch.zeros(0, 3))


def test_tracing_leaves_the_example_and_the_model_alone():
    model = nn.Sequential(nn.ReLU(inplace=True), linear(6)).eval()
    x = torch.randn(3, 6)
    before, state = x.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    trace_full(model, x.clone())
    trace(model, x)
    assert torch.equal(x, before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# Graphs.


def test_a_gate_rule_and_an_observer_replace_outputs():
    model = nn.Sequential(linear(6, 4), nn.ReLU(), linear(4)).eval()
    network = trace(model, torch.randn(2, 6))
    x, names = torch.randn(3, 6), []

    def observe(step, inputs, output):
        names.append(step.name)
        return output * 0 if step.name == "2" else None

    with torch.no_grad():
        found = network.graph.run(network.parameters, x, gate=lambda step, s: s)
        assert torch.allclose(found, model[2](model[0](x)), atol=1e-6)
        assert not network.graph.run(network.parameters, x, observe=observe).any()
    assert names == [step.name for step in network.graph.steps]


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.MaxPool2d(2, dilation=2),
        nn.AdaptiveMaxPool2d((3, 2)),
        nn.MaxPool1d(3, 1),
        nn.AdaptiveMaxPool1d(4),
        nn.MaxPool3d(2),
        nn.AdaptiveMaxPool3d(2),
    ],
    ids=str,
)
def test_positions_of_maxima_select_what_the_pool_keeps(pool):
    dimensions = int(type(pool).__name__[-2])
    x = torch.randn(3, 2, *(7, 8, 6)[:dimensions])
    model = nn.Sequential(pool, nn.Flatten())
    step = trace(model, x).graph.steps[1]
    operation = gated(step)
    assert torch.equal(operation.replay(step, x, operation.hold(step, x)), pool(x))


def test_channels_are_last_after_a_linear_layer_and_first_after_a_convolution():
    model = Call(
        lambda self, x: self.out(F.relu(self.fc(F.relu(self.conv(x)).flatten(2).permute(0, 2, 1))).mean(1)),
        conv=nn.Conv2d(4, 3, 1),
        fc=linear(3),
        out=linear(5),
    )
    graph = trace(model, torch.randn(2, *IMAGE)).graph
    assert [graph.channels_last(i) for i in graph.indices("activation")] == [False, True]


def test_a_chain_is_a_fully_connected_net():
    def is_chain(model, shape):
        return trace(model.eval(), torch.randn(2, *shape)).graph.is_chain()

    assert is_chain(nn.Sequential(nn.Flatten(), linear(256, 3), nn.BatchNorm1d(3), nn.Tanh(), linear(3)), IMAGE)
    assert not is_chain(nn.Sequential(nn.Conv2d(4, 2, 8), nn.Flatten(), nn.ReLU(), linear(2)), IMAGE)
    assert not is_chain(Call(lambda self, x: self.a(x) + x, a=linear(6, 6)), VECTOR)
    assert not is_chain(Call(lambda self, x: self.a(x).sum(1), a=linear(4)), (3, 4))


def steps_of(model, shape):
    return json.loads(json.dumps(trace(model.eval(), torch.randn(2, *shape)).graph.to_json()))


def break_step(index, **changes):
    def broken(steps):
        steps[index] = {**steps[index], **changes}
        return steps

    return broken


@pytest.mark.parametrize(
    "broken",
    [
        lambda steps: None,
        lambda steps: [],
        lambda steps: {"steps": steps},
        lambda steps: "steps",
        lambda steps: [1, 2],
        lambda steps: steps[1:],
        lambda steps: [{key: value for key, value in steps[0].items() if key != "options"}, *steps[1:]],
        break_step(1, operation="__import__"),
        break_step(1, operation=["linear"]),
        break_step(1, operation="input"),
        break_step(0, operation="linear"),
        break_step(1, inputs=[1]),
        break_step(1, inputs=[-1]),
        break_step(1, inputs=[]),
        break_step(1, inputs=None),
        break_step(1, inputs=["0"]),
        break_step(1, options=[]),
        break_step(1, parameters="weight"),
        break_step(1, shape=[0]),
        break_step(1, shape=[1.5]),
        break_step(2, options={"function": "system", "settings": {}}),
        break_step(2, options={"settings": {}}),
        break_step(3, shape=[5, 1]),
    ],
)
def test_a_malformed_graph_is_refused_in_one_line(broken):
    steps = steps_of(nn.Sequential(linear(6, 4), nn.ReLU(), linear(4)), VECTOR)
    Graph.from_json(steps)
    with pytest.raises(FsdtoolError, match="write the summary again"):
        Graph.from_json(broken(steps))
