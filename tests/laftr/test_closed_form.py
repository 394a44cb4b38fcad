"""LAFTR against the enumeration of every gate pattern, its own Hessian, and its own samples."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from fsdtool.laftr.closed_form import chain, closed_form, kronecker_factors
from fsdtool.laftr.output_matching import OutputCoupling, margin
from fsdtool.laftr.sampling import Simulation
from fsdtool.network.activations import activation
from fsdtool.network.graph import Graph, Step
from fsdtool.network.tracing.trace import trace
from fsdtool.statistics.component_laws import GateStatistics, Statistics
from fsdtool.statistics.gaussian_inputs import GaussianInputs

DOUBLE = torch.float64
COMPONENTS = 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=DOUBLE)


def covariances(n: int, seed: int) -> torch.Tensor:
    root = normal(COMPONENTS, n, n, seed=seed)
    return root @ root.mT


def network_of(model: nn.Module, shape: tuple[int, ...]) -> tuple[Graph, dict[str, torch.Tensor]]:
    """Graph and random float64 parameters, batch norm statistics included."""
    network = trace(model.eval(), torch.zeros(2, *shape), task="regression")
    parameters = {}
    for seed, (name, value) in enumerate(network.parameters.items()):
        draw = normal(*value.shape, seed=seed)
        parameters[name] = draw.abs() + 0.5 if name.endswith("running_var") else draw
    return network.graph, parameters


def moved(parameters: dict[str, torch.Tensor], seed: int = 50) -> dict[str, torch.Tensor]:
    """Other weights far away, batch norm statistics included."""
    return {
        name: (value + normal(*value.shape, seed=seed + i)).abs() + 0.1
        if name.endswith("running_var")
        else value + normal(*value.shape, seed=seed + i)
        for i, (name, value) in enumerate(parameters.items())
    }


def random_law(step: Step, seed: int) -> tuple[GateStatistics, list[list[list[tuple[float, float, float]]]]]:
    """A random law of one step's gates: as statistics, and [component][unit] lists of (probability, m, c)."""
    pieces = step.activation().pieces
    if pieces is not None:
        count = len(pieces.slopes)
        p = torch.softmax(normal(COMPONENTS, count, step.units, seed=seed), 1)
        table = [
            [
                [(float(p[k, j, u]), pieces.slopes[j], pieces.intercepts[j]) for j in range(count)]
                for u in range(step.units)
            ]
            for k in range(COMPONENTS)
        ]
        return GateStatistics(pieces, probabilities=p[:, 1:]), table
    p = torch.rand(COMPONENTS, step.units, generator=generator(seed), dtype=DOUBLE)
    points = normal(COMPONENTS, step.units, 2, 2, seed=seed)  # two values of (m, c)
    table = [
        [
            [(float(q), *points[k, u, j].tolist()) for j, q in enumerate((p[k, u], 1 - p[k, u]))]
            for u in range(step.units)
        ]
        for k in range(COMPONENTS)
    ]
    moments = torch.tensor(
        [[[sum(q * f(m, c) for q, m, c in unit) for unit in units] for f in MOMENTS] for units in table],
        dtype=DOUBLE,
    )
    return GateStatistics(None, moments=moments), table


MOMENTS = (lambda m, c: m, lambda m, c: m * m, lambda m, c: c, lambda m, c: m * c, lambda m, c: c * c)


def random_statistics(graph: Graph, seed: int = 20) -> tuple[Statistics, dict[int, list]]:
    n = graph.steps[0].units
    inputs = GaussianInputs(
        normal(COMPONENTS, n, seed=seed), None, covariances(n, seed), torch.zeros(COMPONENTS, n, dtype=DOUBLE)
    )
    laws = {i: random_law(graph.steps[i], seed + i) for i in graph.indices("activation")}
    count = torch.tensor([5.0, 3.0, 2.0], dtype=DOUBLE)
    gates = {i: law[0] for i, law in laws.items()}
    statistics = Statistics("class", ("a", "b", "c"), count, inputs, gates, covariances(graph.outputs, seed + 40))
    return statistics, {i: law[1] for i, law in laws.items()}


def enumerated(graph: Graph, reference, other, statistics: Statistics, laws: dict[int, list], k: int) -> float:
    """E[1/2 df^T H df] as the sum over every joint choice of (m, c), given the input's second moments.

    Given the gates both networks are affine: f = A x + b, read off from 0 and the unit vectors.
    """
    n, hessian = graph.steps[0].units, statistics.output_hessian[k]
    points = torch.cat([torch.zeros(1, n, dtype=DOUBLE), torch.eye(n, dtype=DOUBLE)]).reshape(-1, *graph.input_shape)
    mean = statistics.input.mean[k]
    second = statistics.input.covariance(k) + torch.outer(mean, mean)
    units = [(i, u) for i in laws for u in range(graph.steps[i].units)]
    total = 0.0
    for choice in itertools.product(*(laws[i][k][u] for i, u in units)):
        probability = 1.0
        gates = {graph.steps[i].name: ([], []) for i in laws}
        for (i, _), (p, m, c) in zip(units, choice, strict=True):
            probability *= p
            gates[graph.steps[i].name][0].append(m)
            gates[graph.steps[i].name][1].append(c)
        tensors = {name: [torch.tensor(v, dtype=DOUBLE) for v in pair] for name, pair in gates.items()}

        def gate(step, s, tensors=tensors):
            m, c = tensors[step.name]
            return m * s + c

        f0, f1 = (graph.run(weights, points, gate=gate) for weights in (reference, other))
        df = f1 - f0  # at 0 and at each unit vector: (1 + n, O)
        slope, offset = (df[1:] - df[0]).T, df[0]
        cross = torch.outer(slope @ mean, offset)
        outer = slope @ second @ slope.T + cross + cross.T + torch.outer(offset, offset)
        total += probability * 0.5 * float((hessian * outer).sum())
    return total


TINY = {
    "ReLU": lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)),
    "ReLU without bias": lambda: nn.Sequential(
        nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)
    ),
    "LeakyReLU": lambda: nn.Sequential(
        nn.Linear(3, 2), nn.LeakyReLU(0.3), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)
    ),
    "ReLU6": lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU6(), nn.Linear(2, 2), nn.ReLU6(), nn.Linear(2, 3)),
    "Hardtanh": lambda: nn.Sequential(
        nn.Linear(3, 2), nn.Hardtanh(-0.7, 0.2), nn.Linear(2, 2), nn.Hardtanh(), nn.Linear(2, 1)
    ),
    "GELU": lambda: nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 2)),
    "BatchNorm": lambda: nn.Sequential(
        nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2),
        nn.BatchNorm1d(2, affine=False), nn.Tanh(), nn.Linear(2, 2),
    ),
    "first and last an activation": lambda: nn.Sequential(
        nn.ReLU6(), nn.Linear(3, 2), nn.Sigmoid(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Tanh()
    ),
    "two affine maps in a row, scaled": lambda: Scaled(),
    "no activation": lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)),
}  # fmt: skip


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.c(torch.relu(self.b(self.a(2 - 3 * x.flatten(1))) / 4 + 0.5))


@pytest.mark.parametrize("name", TINY)
def test_the_closed_form_equals_the_enumeration_of_all_gates(name):
    graph, reference = network_of(TINY[name](), (3, 1) if "scaled" in name else (3,))
    assert graph.is_chain()
    statistics, laws = random_statistics(graph)
    other = moved(reference)
    found = closed_form(graph, reference, other, statistics, statistics.output_hessian)
    for k in range(COMPONENTS):
        assert float(found[k]) == pytest.approx(enumerated(graph, reference, other, statistics, laws, k), rel=1e-10)
    assert not closed_form(graph, reference, reference, statistics, statistics.output_hessian).any()


@pytest.mark.parametrize("name", ["ReLU", "GELU", "BatchNorm"])
def test_the_closed_form_is_differentiable_in_the_other_weights(name):
    graph, reference = network_of(TINY[name](), (3,))
    statistics, _ = random_statistics(graph)
    other = moved(reference)
    names = [name for name in other if "running" not in name]

    def distance(*tensors):
        weights = {**other, **dict(zip(names, tensors, strict=True))}
        return closed_form(graph, reference, weights, statistics, statistics.output_hessian)

    assert torch.autograd.gradcheck(distance, [other[name].clone().requires_grad_() for name in names])


# Elsewhere a block of the Hessian belongs to a product of several layers, not to one weight.
LINEAR_LAYERS_ONLY = [
    name for name in TINY if name not in ("BatchNorm", "two affine maps in a row, scaled", "no activation")
]


@pytest.mark.parametrize("name", LINEAR_LAYERS_ONLY)
def test_the_hessian_at_the_reference_is_the_kronecker_blocks(name):
    graph, reference = network_of(TINY[name](), (3,))
    statistics, _ = random_statistics(graph)
    maps = [step for step in graph.steps if step.operation == "linear"]
    for k in range(COMPONENTS):
        factors = kronecker_factors(graph, reference, statistics, statistics.output_hessian, k)
        factors = [
            f for f, affine in zip(factors, chain(graph, reference)[0], strict=True) if affine.weight is not None
        ]
        for step, (a, s) in zip(maps, factors, strict=True):
            weight, bias = step.parameters["weight"], step.parameters.get("bias")
            columns = reference[weight].shape[1]

            def distance(block, weight=weight, bias=bias, columns=columns, k=k):
                change = {weight: reference[weight] + block[:, :columns]}
                if bias is not None:
                    change[bias] = reference[bias] + block[:, columns]
                others = {**reference, **change}
                return closed_form(graph, reference, others, statistics, statistics.output_hessian)[k]

            width = columns + (bias is not None)
            zero = torch.zeros(len(s), width, dtype=DOUBLE)
            found = torch.autograd.functional.hessian(distance, zero)  # (rows, width, rows, width)
            expected = torch.einsum("ij,ab->iajb", s, a[:width, :width])
            assert torch.allclose(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


def low_rank_inputs(n: int, rank: int) -> GaussianInputs:
    basis = torch.linalg.qr(normal(n, rank, seed=5)).Q
    diagonal = normal(COMPONENTS, n, seed=6).abs()
    return GaussianInputs(normal(COMPONENTS, n, seed=7), basis, covariances(rank, 8), diagonal)


def with_inputs(statistics: Statistics, inputs: GaussianInputs) -> Statistics:
    return Statistics(
        statistics.kind,
        statistics.names,
        statistics.count,
        inputs,
        statistics.gates,
        statistics.output_hessian,
    )


def test_low_rank_inputs_give_what_their_dense_covariance_gives():
    model = nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2))
    graph, reference = network_of(model, (9,))
    other = moved(reference)
    statistics, _ = random_statistics(graph)
    low = low_rank_inputs(9, 3)
    dense = GaussianInputs(
        low.mean,
        None,
        torch.stack([low.covariance(k) for k in range(COMPONENTS)]),
        torch.zeros_like(low.diagonal),
    )
    both = [
        closed_form(graph, reference, other, with_inputs(statistics, inputs), statistics.output_hessian)
        for inputs in (low, dense)
    ]
    assert torch.allclose(*both, rtol=1e-10)
    factors = [
        kronecker_factors(graph, reference, with_inputs(statistics, inputs), statistics.output_hessian, 1)
        for inputs in (low, dense)
    ]
    for (a, s), (a_dense, s_dense) in zip(*factors, strict=True):
        assert torch.allclose(a, a_dense, rtol=1e-10)
        assert torch.allclose(s, s_dense, rtol=1e-10)


# Samples.


def wide(name: str) -> tuple[Graph, dict[str, torch.Tensor], dict[str, torch.Tensor], Statistics]:
    """A net of tens of units in float32, with weights of a sensible size, and other weights not far away."""
    act = {"ReLU": nn.ReLU(), "ReLU6": nn.ReLU6(), "GELU": nn.GELU()}[name]
    model = nn.Sequential(nn.Linear(12, 40), act, nn.Linear(40, 30), nn.BatchNorm1d(30), act, nn.Linear(30, 4))
    graph, reference = network_of(model, (12,))
    reference = {n: v / v.shape[-1] ** 0.5 if v.dim() == 2 else v for n, v in reference.items()}
    other = {n: v + 0.1 * normal(*v.shape, seed=70 + i) for i, (n, v) in enumerate(reference.items()) if v.dim()}
    other["3.running_var"] = reference["3.running_var"]
    statistics, _ = random_statistics(graph)
    return graph, reference, other, statistics


def single(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in parameters.items()}


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("name", ["ReLU", "ReLU6", "GELU"])
def test_independent_samples_agree_with_the_closed_form(name, low_rank):
    graph, reference, other, statistics = wide(name)
    if low_rank:
        statistics = with_inputs(statistics, low_rank_inputs(12, 4))
    expected = closed_form(graph, reference, other, statistics, statistics.output_hessian)
    simulation = Simulation(graph, single(reference), statistics, gates="independent", seed=1)
    hessian = statistics.output_hessian.float()
    for k in range(COMPONENTS):
        x, f0, tape = simulation.forward(k, 20_000)
        with torch.no_grad():
            df = graph.run(single(other), x, gate=tape.replay) - f0
        rho = 0.5 * ((df @ hessian[k]) * df).sum(1)
        assert abs(float(rho.mean() - expected[k])) < 3 * float(rho.std()) / 20_000**0.5


@pytest.mark.parametrize("gates", ["coupled", "independent"])
@pytest.mark.parametrize("name", ["ReLU", "ReLU6", "GELU"])
def test_a_tape_replayed_under_the_reference_gives_the_same_outputs(name, gates):
    graph, reference, _, statistics = wide(name)
    x, f0, tape = Simulation(graph, single(reference), statistics, gates=gates).forward(1, 50)
    assert x.shape == (50, 12)
    with torch.no_grad():
        assert torch.equal(graph.run(single(reference), x, gate=tape.replay), f0)


@pytest.mark.parametrize("name", ["ReLU", "ReLU6", "GELU"])
def test_moving_gates_replayed_under_the_reference_give_the_same_outputs(name):
    graph, reference, _, statistics = wide(name)
    x, f0, tape = Simulation(graph, single(reference), statistics, gates="moving").forward(1, 50)
    with torch.no_grad():
        found = graph.run(single(reference), x, gate=tape.replay)
    assert torch.equal(found, f0) if name == "ReLU" else torch.allclose(found, f0, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["ReLU", "ReLU6", "GELU"])
def test_to_first_order_moving_gates_are_fixed_ones(name):
    graph, reference, _, statistics = wide(name)
    slopes = []
    for gates in ("coupled", "moving"):
        x, _, tape = Simulation(graph, single(reference), statistics, gates=gates, seed=3).forward(0, 40)
        point = {key: value.requires_grad_() for key, value in single(reference).items()}
        loss = (graph.run(point, x, gate=tape.replay) * normal(40, graph.outputs, seed=5).float()).sum()
        loss.backward()
        slopes.append({key: value.grad for key, value in point.items() if value.grad is not None})
    for key, slope in slopes[0].items():
        assert torch.allclose(slopes[1][key], slope, rtol=1e-4, atol=1e-4 * float(slope.abs().max()))


@pytest.mark.parametrize("function", ["relu", "relu6", "abs", "hardtanh"])
def test_moving_gates_switch_halfway_between_the_samples_on_either_side(function):
    units, count = 40, 30
    pieces = activation(function).pieces
    levels = len(pieces.breaks)
    p = torch.softmax(torch.randn(levels + 1, units, generator=generator(1)), 0)
    p[:, 0], p[:, 1] = 0, 0
    p[0, 0], p[levels, 1] = 1, 1  # no sample above any break; no sample below one
    graph, statistics = one_layer(function, units, probabilities=p[None, 1:])
    x, f0, tape = Simulation(graph, {}, statistics, gates="moving", seed=2).forward(0, count)
    fixed = Simulation(graph, {}, statistics, gates="coupled", seed=2).forward(0, count)[2].held["act"]
    slope = fixed[0]
    piece = (slope[..., None] - torch.tensor(pieces.slopes)).abs().argmin(-1)
    if function in ("relu6", "hardtanh"):
        piece = torch.where((slope == 0) & (fixed[1] == pieces.intercepts[2]), 2, piece)
    s1 = x + torch.randn(count, units, generator=generator(9))
    found = graph.run({}, s1, gate=tape.replay)
    for u in range(units):
        breaks = []
        for j in range(levels):
            over = [float(v) for v, q in zip(x[:, u], piece[:, u], strict=True) if q > j]
            under = [float(v) for v, q in zip(x[:, u], piece[:, u], strict=True) if q <= j]
            if over and under:
                breaks.append((min(over) + max(under)) / 2)
            else:
                breaks.append(min(*over, pieces.breaks[j]) if over else max(*under, pieces.breaks[j]))

        def psi(s, breaks=breaks):
            value = pieces.slopes[0] * s
            for t, before, after in zip(breaks, pieces.slopes, pieces.slopes[1:], strict=False):
                value += (after - before) * max(s - t, 0.0)
            return value

        for i in range(count):
            expected = float(f0[i, u]) + psi(float(s1[i, u])) - psi(float(x[i, u]))
            assert float(found[i, u]) == pytest.approx(expected, abs=1e-5)


def test_maxima_keep_the_positions_of_the_reference():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    graph, reference = network_of(model, (2, 6, 6))
    statistics, _ = random_statistics(graph)
    simulation = Simulation(graph, single(reference), statistics)
    x, f0, tape = simulation.forward(0, 20)
    other = single(moved(reference))
    with torch.no_grad():
        assert torch.equal(graph.run(single(reference), x, gate=tape.replay), f0)
        s = torch.conv2d(x, single(reference)["0.weight"], single(reference)["0.bias"])
        t = torch.conv2d(x, other["0.weight"], other["0.bias"])
        open_gates = tape.held["1"][0]
        windows = (open_gates * s).unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
        moved_windows = (open_gates * t).unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
        kept = moved_windows.gather(4, windows.argmax(4, keepdim=True))
        expected = kept.flatten(1) @ other["4.weight"].T + other["4.bias"]
        assert torch.allclose(graph.run(other, x, gate=tape.replay), expected, atol=1e-4)


def test_a_seed_reproduces_the_samples():
    graph, reference, _, statistics = wide("ReLU")

    def draw(seed):
        return Simulation(graph, single(reference), statistics, seed=seed).forward(0, 30)[1]

    state = torch.random.get_rng_state()
    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_batches_share_the_samples_by_weight():
    graph, reference, _, statistics = wide("ReLU")
    simulation = Simulation(graph, single(reference), statistics)

    def asked(samples: int) -> list[tuple[int, int]]:
        return list(simulation.batches(samples, lambda k, count: (k, count)))

    assert asked(100) == [(0, 50), (1, 30), (2, 20)]
    assert asked(1) == [(0, 2), (1, 2), (2, 2)]


def one_layer(function: str, units: int, probabilities=None, moments=None) -> tuple[Graph, Statistics]:
    """A graph that is one activation on standard normal inputs, with the law given."""
    steps = (
        Step("x", "input", shape=(units,)),
        Step("act", "activation", (0,), {"function": function, "settings": {}}, {}, (units,)),
    )
    inputs = GaussianInputs(torch.zeros(1, units), None, torch.eye(units)[None], torch.zeros(1, units))
    gates = GateStatistics(activation(function).pieces, probabilities, moments)
    return Graph(steps), Statistics("all", ("all",), torch.tensor([9.0]), inputs, {1: gates}, None)


@pytest.mark.parametrize("function", ["relu", "relu6"])
def test_coupled_gates_meet_their_fractions_in_the_order_of_the_signal(function):
    units, count = 200, 77
    levels = len(activation(function).pieces.breaks)
    p = torch.softmax(2 * torch.randn(levels + 1, units, generator=generator(1)), 0)
    p[:, 0], p[:, 1] = 0, 0
    p[0, 0], p[levels, 1] = 1, 1  # a unit that is never and one that is always in the highest piece
    graph, statistics = one_layer(function, units, probabilities=p[None, 1:])
    simulation = Simulation(graph, {}, statistics, seed=2)
    rounds, total = 400, torch.zeros(levels, units)
    for _ in range(rounds):
        x, _, tape = simulation.forward(0, count)
        m, c = tape.held["act"]
        piece = m.long() if function == "relu" else (c > 0) * 2 + m.long()
        for j in range(levels):
            above = (piece >= j + 1).sum(0)
            wanted = p[j + 1 :].sum(0) * count
            assert ((above - wanted).abs() < 1 + 1e-3).all()
            total[j] += above
        ordered = piece.gather(0, x.argsort(0))
        assert (ordered.diff(dim=0) >= 0).all()
    fraction = torch.stack([p[j + 1 :].sum(0) for j in range(levels)])
    error = total / rounds / count - fraction
    assert (error.abs() < 5 * 0.5 / count / rounds**0.5 + 1e-6).all()  # rounding is unbiased


@pytest.mark.parametrize("function", ["relu", "relu6"])
def test_coupled_gates_meet_their_fractions_among_equal_signals(function):
    units, count = 60, 50
    levels = len(activation(function).pieces.breaks)
    p = torch.softmax(torch.randn(levels + 1, units, generator=generator(1)), 0)
    graph, statistics = one_layer(function, units, probabilities=p[None, 1:])
    simulation = Simulation(graph, {}, statistics, seed=2)
    s = torch.randn(count, units, generator=generator(3)).relu()  # half of the samples are at zero
    s[:, 0] = 1.5
    _, gate, tape = simulation.inputs_and_gates(0, count)
    gate(graph.steps[1], s)
    m, c = tape.held["act"]
    piece = m.long() if function == "relu" else (c > 0) * 2 + m.long()
    for j in range(levels):
        assert (((piece >= j + 1).sum(0) - p[j + 1 :].sum(0) * count).abs() < 1 + 1e-3).all()
    order = s.argsort(0)
    sorted_s, sorted_piece = s.gather(0, order), piece.gather(0, order)
    falls = sorted_piece.diff(dim=0) < 0
    assert (sorted_s.diff(dim=0)[falls] == 0).all()  # only among equal signals


def test_independent_gates_have_their_probabilities_and_no_relation_to_the_signal():
    units, count = 20, 20_000
    p = torch.softmax(torch.randn(3, units, generator=generator(1)), 0)
    graph, statistics = one_layer("relu6", units, probabilities=p[None, 1:])
    x, _, tape = Simulation(graph, {}, statistics, gates="independent", seed=2).forward(0, count)
    m, c = tape.held["act"]
    found = torch.stack([(m == 0) & (c == 0), m == 1, c == 6]).float()
    assert torch.equal(found.sum(0), torch.ones(count, units))
    assert ((found.mean(1) - p).abs() < 5 * 0.5 / count**0.5).all()
    both = torch.cat([m, x], 1).T.corrcoef()
    assert (both - torch.eye(2 * units)).abs().max() < 5.5 / count**0.5


def smooth_moments(units: int) -> torch.Tensor:
    m, c = torch.randn(2, 500, units, generator=generator(4)) * 0.3 + 0.5
    c = c + m
    return torch.stack([m.mean(0), (m * m).mean(0), c.mean(0), (m * c).mean(0), (c * c).mean(0)])


@pytest.mark.parametrize("gates", ["coupled", "independent"])
def test_smooth_gates_have_their_recorded_first_and_second_moments(gates):
    units, count = 15, 20_000
    moments = smooth_moments(units)
    moments[:, 0] = torch.tensor([1.0, 1, 0, 0, 0])  # always the identity
    graph, statistics = one_layer("gelu", units, moments=moments[None])
    _, _, tape = Simulation(graph, {}, statistics, gates=gates, seed=2).forward(0, count)
    m, c = tape.held["act"]
    found = torch.stack([m.mean(0), (m * m).mean(0), c.mean(0), (m * c).mean(0), (c * c).mean(0)])
    tolerance = 1e-3 if gates == "coupled" else 0.03
    assert (found - moments).abs().max() < tolerance
    assert (m[:, 0] == 1).all()
    assert (c[:, 0] == 0).all()


def test_coupled_batches_of_convolutions_keep_their_shapes():
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.SiLU(), nn.Conv2d(3, 2, 2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(18, 2)
    )
    graph, reference = network_of(model, (2, 6, 6))
    statistics, _ = random_statistics(graph)
    x, logits, tape = Simulation(graph, single(reference), statistics).forward(0, 9)
    assert (x.shape, logits.shape) == ((9, 2, 6, 6), (9, 2))
    assert tape.held["1"][0].shape == tape.held["1"][1].shape == (9, 3, 4, 4)
    assert tape.held["3"][0].shape == (9, 2, 3, 3)
    assert tape.held["3"][1] is None


def test_coupled_outputs_have_the_recorded_law():
    generator = torch.Generator().manual_seed(0)
    recorded = 3 + 2 * torch.randn(400, 5, generator=generator)
    f0 = torch.randn(400, 5, generator=generator)
    coupling = OutputCoupling(f0, recorded, one_class=False, generator=generator)
    assert {tuple(row) for row in coupling.f0.tolist()} == {tuple(row) for row in recorded.tolist()}
    torch.testing.assert_close(margin(coupling.f0, None).argsort(), margin(f0, None).argsort())


def test_changes_follow_the_outputs_that_are_coupled():
    generator = torch.Generator().manual_seed(0)
    f0 = torch.randn(2000, 5, generator=generator)
    recorded = 4 * torch.randn(2000, 5, generator=generator)
    coupling = OutputCoupling(f0, recorded, one_class=True, generator=generator)
    torch.testing.assert_close(coupling.other(f0), coupling.f0)
    # Weights scaled by 0.9 at the last layer: the regression, shrunk by 0.3 / 1.3, finds the rest.
    missed = (coupling.other(0.9 * f0) - 0.9 * coupling.f0).norm()
    assert missed < 0.25 * 0.1 * (coupling.f0 - f0).norm()


@pytest.mark.parametrize(("samples", "outputs"), [(7, 20), (20, 20), (30, 5)])
def test_the_regression_of_changes_is_the_same_by_either_matrix(samples, outputs):
    generator = torch.Generator().manual_seed(0)
    f0, recorded, f1 = (torch.randn(samples, outputs, generator=generator).double() for _ in range(3))
    coupling = OutputCoupling(f0, recorded, one_class=False, generator=generator)
    d = f0 - f0.mean(0)
    penalty = OutputCoupling.RIDGE * (d.T @ d).diagonal().mean()
    slope = torch.linalg.inv(d.T @ d + penalty * torch.eye(outputs)) @ d.T @ (f1 - f0)
    torch.testing.assert_close(coupling.other(f1), f1 + (coupling.f0 - f0) @ (torch.eye(outputs) + slope))
