"""Curvature from pseudo-samples: orthonormal, right in trace, exact where the net is linear and Gaussian."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.curvature.simulated import default_samples, simulated_curvature
from fsdtool.laftr.closed_form import kronecker_factors
from fsdtool.network.graph import Graph, Parameters
from fsdtool.network.per_example_gradients import blocks
from fsdtool.network.tracing.trace import trace
from fsdtool.statistics.accumulators import CentredMoments, GateMoments, OutputMoments
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.gaussian_inputs import GaussianInputs
from fsdtool.tasks.task import task_of

CLASSES = 3


def measured(model: nn.Module, shape: tuple[int, ...], components: int = 2, examples: int = 300):
    """Graph, parameters and the statistics of random inputs in `components` groups of different means."""
    generator = torch.Generator().manual_seed(0)
    component = torch.randint(0, components, (examples,), generator=generator)
    mixing = torch.randn(shape[-1], shape[-1], generator=generator)
    x = torch.randn(examples, *shape, generator=generator) @ mixing + component.view(-1, *[1] * len(shape))
    network = trace(model.eval(), x[:2])
    graph, parameters = network.graph, network.parameters
    inputs = CentredMoments(components, graph.steps[0].units)
    inputs.update(x.flatten(1), component)
    gates = {i: GateMoments(graph.steps[i], components) for i in graph.indices("activation")}
    index = {step.name: i for i, step in enumerate(graph.steps)}

    def observe(step, given, output):
        if step.kind == "activation":
            gates[index[step.name]].update(given[0], component)

    outputs = OutputMoments(components, graph.outputs, task_of("classification"))
    with torch.no_grad():
        outputs.update(graph.run(parameters, x, observe=observe), component)
    statistics = Statistics(
        "cluster",
        tuple(str(k) for k in range(components)),
        inputs.count,
        inputs.finalize(),
        {i: moments.finalize() for i, moments in gates.items()},
        outputs.finalize(),
    )
    return graph, parameters, statistics


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.GELU(), nn.Linear(5, CLASSES))


def conv(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 3, groups=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(12, CLASSES),
    )  # fmt: skip


def dense(block: BlockCurvature) -> torch.Tensor:
    """The block's matrix over vec G (row by row)."""
    basis = torch.kron(block.output_basis, block.input_basis)
    return basis @ torch.diag(block.eigenvalues.flatten()) @ basis.T


def exact_block(graph, parameters, statistics, position: int) -> torch.Tensor:
    """sum_k pi_k S_k (x) A_k: exact for a net without gates, its factors being independent."""
    double = {name: value.double() for name, value in parameters.items()}
    total = 0
    for k, weight in enumerate(statistics.weight.tolist()):
        a, s = kronecker_factors(graph, double, statistics, statistics.output_hessian, k)[position]
        total = total + weight * torch.kron(s, a)
    return total.float()


def test_a_linear_gaussian_net_gets_its_exact_gauss_newton_block():
    torch.manual_seed(0)
    graph, parameters, statistics = measured(nn.Linear(4, CLASSES), (4,), components=1)
    (found,) = simulated_curvature(graph, parameters, statistics, seed=0, samples=60_000)
    expected = exact_block(graph, parameters, statistics, 0)
    assert float((dense(found) - expected).norm()) < 0.03 * float(expected.norm())
    assert found.mean_eigenvalue == pytest.approx(float(expected.trace()) / expected.shape[0], rel=0.02)


def test_over_several_components_the_block_is_the_closest_in_a_kronecker_eigenbasis():
    torch.manual_seed(0)
    graph, parameters, statistics = measured(nn.Linear(4, CLASSES), (4,))
    (found,) = simulated_curvature(graph, parameters, statistics, seed=0, samples=60_000)
    expected = exact_block(graph, parameters, statistics, 0)
    basis = torch.kron(found.output_basis, found.input_basis)
    diagonal = (basis.T @ expected @ basis).diagonal().view_as(found.eigenvalues)
    assert torch.allclose(found.eigenvalues, diagonal, rtol=0.05, atol=0.02 * float(diagonal.max()))
    off = basis.T @ expected @ basis - torch.diag(diagonal.flatten())
    assert float(off.norm()) < 0.3 * float(expected.norm())


@pytest.mark.parametrize(("model", "shape"), [(mlp, (6,)), (conv, (2, 8, 8))], ids=["mlp", "conv"])
def test_bases_are_orthonormal_and_complete(model, shape):
    graph, parameters, statistics = measured(model(), shape)
    found = simulated_curvature(graph, parameters, statistics, seed=0, samples=600)
    assert [c.weight for c in found] == [b.weight for b in blocks(graph, parameters)]
    for c, block in zip(found, blocks(graph, parameters), strict=True):
        assert c.eigenvalues.shape == (block.d_out, block.d_in)
        for basis in (c.input_basis, c.output_basis):
            assert torch.allclose(basis.T @ basis, torch.eye(len(basis)), atol=1e-4)
        assert c.mean_eigenvalue == pytest.approx(float(c.eigenvalues.mean()), rel=1e-4)
        assert (c.eigenvalues >= 0).all()
        assert (c.damped > c.eigenvalues).all()


@pytest.mark.parametrize(("model", "shape"), [(mlp, (6,)), (conv, (2, 8, 8))], ids=["mlp", "conv"])
def test_few_directions_are_the_leading_ones_and_keep_the_trace(model, shape):
    graph, parameters, statistics = measured(model(), shape)
    whole = simulated_curvature(graph, parameters, statistics, seed=0, samples=2000)
    few = simulated_curvature(graph, parameters, statistics, seed=0, samples=2000, numbers=20)
    assert sum(sum(c.eigenvalues.shape) for c in few) == 20
    for all_of, some in zip(whole, few, strict=True):
        ks, ka = some.eigenvalues.shape
        assert torch.equal(some.output_basis, all_of.output_basis[:, :ks])
        assert torch.equal(some.input_basis, all_of.input_basis[:, :ka])
        assert torch.allclose(some.eigenvalues, all_of.eigenvalues[:ks, :ka], rtol=1e-3)
        assert some.mean_eigenvalue == pytest.approx(all_of.mean_eigenvalue, rel=1e-3)  # the whole block's all the same


def unequal_classes(classes: int = 100, rare: int = 95) -> tuple[Graph, Parameters, Statistics]:
    """A linear network and classes of which `rare` have 1 example in 100,000, larger inputs and unsure outputs."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Linear(6, classes)
    traced = trace(network.eval(), torch.zeros(2, 6))
    is_rare = torch.arange(classes) < rare
    factor = torch.where(is_rare, 3.0, 1.0)
    mixing = torch.randn(classes, 6, 6, generator=generator) * factor[:, None, None]
    sure = torch.where(is_rare, 0.1, 5.0)[:, None] * torch.randn(classes, classes, generator=generator)
    p = torch.softmax(sure.double(), 1)
    inputs = GaussianInputs(
        torch.randn(classes, 6, generator=generator).double(),
        None,
        (mixing @ mixing.mT).double(),
        torch.zeros(classes, 6).double(),
    )
    count = torch.where(is_rare, 1.0, 20_000.0).double()
    hessians = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    names = tuple(str(k) for k in range(classes))
    return traced.graph, traced.parameters, Statistics("class", names, count, inputs, {}, hessians)


def test_rare_components_weigh_what_they_weigh_in_the_data():
    graph, parameters, statistics = unequal_classes()
    (found,) = simulated_curvature(graph, parameters, statistics, seed=0, samples=30_000)
    expected = 0.0
    for pi, mean, core, hessian in zip(
        statistics.weight, statistics.input.mean, statistics.input.core, statistics.output_hessian, strict=True
    ):
        expected += float(pi * hessian.trace() * (core.trace() + mean @ mean + 1))  # E||v||^2 E||[a; 1]||^2
    assert found.mean_eigenvalue == pytest.approx(expected / (100 * 7), rel=0.03)
    assert float(found.eigenvalues.mean()) == pytest.approx(found.mean_eigenvalue, rel=1e-4)


def test_curvature_is_deterministic_in_the_seed():
    graph, parameters, statistics = measured(conv(), (2, 8, 8))
    state = torch.random.get_rng_state()
    first, second, third = (
        simulated_curvature(graph, parameters, statistics, seed=seed, samples=100) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a.eigenvalues, b.eigenvalues)
        assert torch.equal(a.input_basis, b.input_basis)
        assert not torch.equal(a.eigenvalues, c.eigenvalues)


def test_without_a_stored_hessian_labels_are_drawn_from_the_simulated_outputs():
    torch.manual_seed(0)
    graph, parameters, statistics = measured(nn.Linear(4, CLASSES), (4,), components=1)
    drawn = Statistics(statistics.kind, statistics.names, statistics.count, statistics.input, statistics.gates, None)
    (found,) = simulated_curvature(graph, parameters, drawn, seed=0, samples=40_000)
    draw = statistics.input.sample(0, 40_000, torch.Generator().manual_seed(5)).float()
    with torch.no_grad():
        p = torch.softmax(graph.run(parameters, draw), 1)
    a = torch.cat([draw, torch.ones(len(draw), 1)], 1)
    trace_of_block = float(((1 - (p * p).sum(1)) * (a * a).sum(1)).mean())
    assert found.mean_eigenvalue * found.eigenvalues.numel() == pytest.approx(trace_of_block, rel=0.03)


def test_a_net_without_gates_before_its_last_layer_agrees_with_the_closed_form():
    torch.manual_seed(0)
    graph, parameters, statistics = measured(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, CLASSES)), (4,))
    found = simulated_curvature(graph, parameters, statistics, seed=0, samples=40_000)
    first = exact_block(graph, parameters, statistics, 0)
    # The gates do not change the input of the first layer; coupling them only rotates what comes back.
    ratio = found[0].mean_eigenvalue * first.shape[0] / float(first.trace())
    assert 0.7 < ratio < 1.4


def test_fewer_samples_are_drawn_for_convolutions():
    small, large = (measured(m(), shape)[0] for m, shape in ((conv, (2, 8, 8)), (mlp, (6,))))
    assert default_samples(small, 10**6) < default_samples(large, 10**6)
    assert [default_samples(small, n) for n in (1, 600, 10**6)] == [256, 600, 1024]


@pytest.mark.parametrize(("inputs", "samples"), [(784, 8192), (40_000, 3355), (4_000_000, 1024)])
def test_fewer_samples_are_drawn_for_very_wide_inputs(inputs, samples):
    steps = (
        SimpleNamespace(operation="input", units=inputs),
        SimpleNamespace(operation="linear", units=128, inputs=(0,)),
    )
    assert default_samples(SimpleNamespace(steps=steps), 10**6) == samples
