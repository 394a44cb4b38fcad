"""Accumulators against plain loops over the examples, in float64; batches, order and shards do not matter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from fsdtool.errors import FsdtoolError
from fsdtool.network.activations import MODULES
from fsdtool.network.graph import Step
from fsdtool.statistics.accumulators import (
    CentredMoments,
    GateMoments,
    OutputMoments,
    OutputReservoir,
    names_present,
    principal_basis,
)
from fsdtool.statistics.component_laws import Statistics
from fsdtool.tasks.task import task_of

COMPONENTS, EXAMPLES, DIMENSIONS = 4, 47, 6
ACTIVATIONS = [
    nn.ReLU(),
    nn.LeakyReLU(0.2),
    nn.ReLU6(),
    nn.Hardtanh(-0.3, 0.9),
    nn.GELU(),
    nn.SiLU(),
    nn.Tanh(),
]


@pytest.fixture
def data():
    """Vectors (47, 6) float64 around a large mean, and components: 0 and 1 many, 2 a single one, 3 none."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(EXAMPLES, DIMENSIONS, generator=generator, dtype=torch.float64)
    mixing = torch.randn(DIMENSIONS, DIMENSIONS, generator=generator, dtype=torch.float64)
    component = torch.randint(0, 2, (EXAMPLES,), generator=generator)
    component[20] = 2
    return x @ mixing + 100, component


def activation_step(module: nn.Module) -> Step:
    options = {"function": MODULES[type(module)], "settings": {}}
    for key in ("negative_slope", "min_val", "max_val"):
        if hasattr(module, key) and not isinstance(module, nn.ReLU6):
            options["settings"][key] = getattr(module, key)
    return Step("act", "activation", (0,), options, {}, (DIMENSIONS,))


def orthonormal_basis(rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.linalg.qr(torch.randn(DIMENSIONS, rank, generator=generator, dtype=torch.float64)).Q


def makers():
    """For each accumulator: a function that makes an empty one and one that adds (x, component) to it."""
    yield "input", lambda: CentredMoments(COMPONENTS, DIMENSIONS), lambda a, x, k: a.update(x, k)
    basis = orthonormal_basis(3)
    yield (
        "input in a basis",
        lambda: CentredMoments(COMPONENTS, DIMENSIONS, basis),
        lambda a, x, k: a.update(x, k),
    )
    for module in ACTIVATIONS:
        yield (
            f"gates {module}",
            lambda module=module: GateMoments(activation_step(module), COMPONENTS),
            lambda a, x, k: a.update(x - 100, k),
        )
    for task in ("classification", "regression"):
        yield (
            task,
            lambda task=task: OutputMoments(COMPONENTS, DIMENSIONS, task_of(task)),
            lambda a, x, k: a.update(x - 100, k),
        )


MAKERS = [pytest.param(make, add, id=name) for name, make, add in makers()]


def values(accumulator) -> list[torch.Tensor]:
    """Every number of the finalized statistics."""
    final = accumulator.finalize()
    if isinstance(final, torch.Tensor):
        return [final]
    fields = vars(final).values()
    return [value for value in fields if isinstance(value, torch.Tensor)]


def assert_same(found, expected, rtol=1e-10):
    for a, b in zip(values(found), values(expected), strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


def accumulate(make, add, x, component, batch):
    accumulator = make()
    for start in range(0, len(x), batch):
        add(accumulator, x[start : start + batch], component[start : start + batch])
    return accumulator


@pytest.mark.parametrize(("make", "add"), MAKERS)
def test_batch_size_and_order_do_not_matter(make, add, data):
    x, component = data
    whole = accumulate(make, add, x, component, EXAMPLES)
    order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(0))
    for batch in (1, 10):
        assert_same(accumulate(make, add, x, component, batch), whole)
        assert_same(accumulate(make, add, x[order], component[order], batch), whole)


@pytest.mark.parametrize(("make", "add"), MAKERS)
@pytest.mark.parametrize("cut", [1, 20, 21, 46])
def test_two_parts_merged_equal_the_whole(make, add, data, cut):
    x, component = data
    whole = accumulate(make, add, x, component, 7)
    first, second = (accumulate(make, add, x[part], component[part], 7) for part in (slice(cut), slice(cut, None)))
    first.merge(second)
    assert_same(first, whole)
    assert torch.equal(first.count, whole.count)
    empty = make()
    empty.merge(whole)
    assert_same(empty, whole)
    whole.merge(make())
    assert_same(empty, whole)


@pytest.mark.parametrize(("make", "add"), MAKERS)
def test_uneven_parts_in_any_order_equal_the_whole(make, add, data):
    x, component = data
    whole = accumulate(make, add, x, component, 7)
    parts = [
        accumulate(make, add, x[start:stop], component[start:stop], 5) for start, stop in ((0, 1), (1, 30), (30, 47))
    ]
    for order in itertools.permutations(parts):
        total = make()
        for part in order:
            total.merge(part)
        assert_same(total, whole)


@pytest.mark.parametrize(("make", "add"), MAKERS)
def test_an_accumulator_comes_back_from_its_state(make, add, data):
    x, component = data
    first, rest = (accumulate(make, add, x[part], component[part], 7) for part in (slice(20), slice(20, None)))
    state = first.state()
    assert all(value.dtype == np.float64 for value in state.values())
    again = make().from_state(state)
    first.merge(rest)  # the state is a copy
    again.merge(rest)
    assert_same(again, first, rtol=0)


def test_a_sample_of_outputs_comes_back_from_its_state():
    first = OutputReservoir(4, 2, numbers=64)
    first.update(torch.randn(50, 2), torch.arange(50) % 3)
    again = OutputReservoir(4, 2, numbers=64).from_state(first.state())
    for reservoir in (first, again):
        reservoir.update(torch.arange(20.0).view(10, 2), torch.arange(10) % 4)
    assert torch.equal(again.finalize().values, first.finalize().values)
    assert torch.equal(again.finalize().component, first.finalize().component)


def test_input_moments_equal_a_loop(data):
    x, component = data
    found = accumulate(*next((m, a) for n, m, a in makers() if n == "input"), x, component, 10).finalize()
    assert found.basis is None
    for k in range(3):  # component 3 has no examples and is left out
        rows = [row.numpy() for row, c in zip(x, component.tolist(), strict=True) if c == k]
        mean = sum(rows) / len(rows)
        covariance = sum(np.outer(row - mean, row - mean) for row in rows) / len(rows)
        np.testing.assert_allclose(found.mean[k], mean, rtol=1e-13)
        np.testing.assert_allclose(found.covariance(k), covariance, rtol=1e-10, atol=1e-12)
    assert found.mean.shape == (3, DIMENSIONS)
    assert not found.covariance(2).any()


def test_a_basis_keeps_the_covariance_inside_it_and_no_less_than_every_variance(data):
    x, component = data
    dense = accumulate(lambda: CentredMoments(COMPONENTS, DIMENSIONS), CentredMoments.update, x, component, 10)
    for rank in (1, 3, 6):
        basis = orthonormal_basis(rank)
        low = accumulate(
            lambda b=basis: CentredMoments(COMPONENTS, DIMENSIONS, b), CentredMoments.update, x, component, 10
        )
        for k in range(3):
            full, found = dense.finalize().covariance(k), low.finalize()
            inside = basis.T @ full @ basis
            variance = torch.maximum(full.diagonal(), (basis @ inside @ basis.T).diagonal())
            assert torch.allclose(found.core[k], inside, rtol=1e-10, atol=1e-10)
            assert torch.allclose(found.covariance(k).diagonal(), variance, rtol=1e-10, atol=1e-10)
            if rank == DIMENSIONS:
                assert torch.allclose(found.covariance(k), full, rtol=1e-9, atol=1e-9)


def test_samples_have_the_moments_they_are_drawn_from(data):
    x, component = data
    for basis in (None, orthonormal_basis(3)):
        moments = CentredMoments(COMPONENTS, DIMENSIONS, basis)
        moments.update(x, component)
        statistics = moments.finalize()
        draw = statistics.sample(0, 40_000, torch.Generator().manual_seed(0))
        covariance, scale = statistics.covariance(0), statistics.covariance(0).diagonal().sqrt()
        error = (draw.mean(0) - statistics.mean[0]) / scale
        assert error.abs().max() < 5 / 200
        assert ((draw.T.cov() - covariance) / torch.outer(scale, scale)).abs().max() < 5 * 2**0.5 / 200
        # Component 2 is a single example, which its Gaussian repeats.
        alone = statistics.sample(2, 3, torch.Generator().manual_seed(0))
        assert torch.allclose(alone, x[20].expand(3, -1))


@pytest.mark.parametrize("module", ACTIVATIONS, ids=str)
def test_gate_moments_equal_a_loop_over_the_derivative(module, data):
    x, component = data
    s = x - 100
    accumulator = GateMoments(activation_step(module), COMPONENTS)
    accumulator.update(s, component)
    found = accumulator.finalize()
    for k in range(3):
        rows = []
        for example in s[component == k]:
            point = example.clone().requires_grad_()
            (m,) = torch.autograd.grad(module(point).sum(), point)
            c = module(example) - m * example
            rows.append(torch.stack([m, m * m, c, m * c, c * c]))
        expected = torch.stack(rows).mean(0)
        assert torch.allclose(found.expectations(k), expected, rtol=1e-10, atol=1e-10)
    if isinstance(module, nn.ReLU):
        assert torch.equal(found.probabilities[0, 0], (s[component == 0] > 0).double().mean(0))


def test_gate_moments_take_units_of_any_shape(data):
    x, component = data
    step = Step("act", "activation", (0,), {"function": "relu", "settings": {}}, {}, (2, 3))
    shaped, flat = GateMoments(step, COMPONENTS), GateMoments(step, COMPONENTS)
    shaped.update((x - 100).float().view(-1, 3, 2).transpose(1, 2), component)
    flat.update((x - 100).float().view(-1, 3, 2).transpose(1, 2).reshape(-1, 6), component)
    assert torch.equal(shaped.sums, flat.sums)
    assert torch.equal(shaped.sums, shaped.sums.round())


def test_output_hessians_equal_a_loop(data):
    x, component = data
    logits = x - 100
    accumulator = OutputMoments(COMPONENTS, DIMENSIONS, task_of("classification"))
    accumulator.update(logits, component)
    for k in range(3):
        p = [torch.softmax(row, 0).numpy() for row in logits[component == k]]
        expected = sum(np.diag(q) - np.outer(q, q) for q in p) / len(p)
        np.testing.assert_allclose(accumulator.finalize()[k], expected, rtol=1e-12, atol=1e-14)
    regression = OutputMoments(COMPONENTS, DIMENSIONS, task_of("regression"))
    regression.update(logits, component)
    assert torch.equal(regression.finalize(), torch.eye(DIMENSIONS, dtype=torch.float64).expand(3, -1, -1))


def test_a_hessian_of_very_many_outputs_is_not_kept():
    accumulator = OutputMoments(2, OutputMoments.LARGEST + 1, task_of("classification"))
    accumulator.update(torch.randn(3, OutputMoments.LARGEST + 1), torch.tensor([0, 1, 1]))
    assert accumulator.finalize() is None
    assert accumulator.count.tolist() == [1, 2]


def test_moments_over_different_bases_do_not_merge(data):
    x, component = data
    one = CentredMoments(COMPONENTS, DIMENSIONS, orthonormal_basis(2))
    for other in (
        CentredMoments(COMPONENTS, DIMENSIONS),
        CentredMoments(COMPONENTS, DIMENSIONS, orthonormal_basis(3)),
    ):
        other.update(x, component)
        with pytest.raises(FsdtoolError, match="cannot be merged"):
            one.merge(other)


def test_the_principal_basis_spans_the_scatter_within_components():
    generator = torch.Generator().manual_seed(1)
    inside = torch.linalg.qr(torch.randn(30, 4, generator=generator, dtype=torch.float64)).Q
    component = torch.randint(0, 3, (200,), generator=generator)
    means = 50 * torch.randn(3, 30, generator=generator, dtype=torch.float64)  # no part of the scatter within
    x = torch.randn(200, 4, generator=generator, dtype=torch.float64) @ inside.T + means[component]
    before = x.clone()
    basis = principal_basis(x, component, 4, seed=0)
    assert torch.equal(x, before)
    assert torch.allclose(basis.T @ basis, torch.eye(4, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(basis @ (basis.T @ inside), inside, atol=1e-8)
    state = torch.random.get_rng_state()
    assert torch.equal(principal_basis(x, component, 4, seed=0), basis)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert principal_basis(x, component, 30, seed=0) is None
    few = principal_basis(x[:3], component[:3], 10, seed=0)
    assert few.shape == (30, 3)
    assert torch.allclose(few.T @ few, torch.eye(3, dtype=torch.float64), atol=1e-10)


def test_statistics_move_between_precisions(data):
    x, component = data
    moments = CentredMoments(COMPONENTS, DIMENSIONS)
    moments.update(x, component)
    gates = GateMoments(activation_step(nn.GELU()), COMPONENTS)
    gates.update(x - 100, component)
    names = names_present(["a", "b", "c", "d"], moments.count)
    assert names == ("a", "b", "c")
    count = moments.count[moments.count > 0]
    statistics = Statistics("class", names, count, moments.finalize(), {1: gates.finalize()}, None)
    single = statistics.to(dtype=torch.float32)
    assert single.input.core.dtype == single.gates[1].moments.dtype == torch.float32
    assert statistics.to(torch.device("cpu")).input.mean.dtype == torch.float64
    assert float(single.weight.sum()) == pytest.approx(1, rel=1e-12)
    assert single.weight.tolist() == pytest.approx((count / EXAMPLES).tolist())


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_sample_of_outputs_is_even_and_small_whatever_the_batch(batch, monkeypatch):
    monkeypatch.setattr(OutputReservoir, "NUMBERS", 64)
    reservoir = OutputReservoir(2, 2)
    rows = torch.arange(100.0)
    for part in rows.split(batch):
        reservoir.update(part[:, None].expand(-1, 2), (part % 2).long())
    sample = reservoir.finalize()
    assert sample.of(0)[:, 0].tolist() == list(range(0, 100, 8))
    assert sample.of(1)[:, 0].tolist() == list(range(1, 100, 8))


def test_samples_of_outputs_merge(monkeypatch):
    monkeypatch.setattr(OutputReservoir, "NUMBERS", 64)
    parts = [OutputReservoir(2, 2) for _ in range(2)]
    for part, count in zip(parts, (100, 10), strict=True):
        part.update(torch.randn(count, 2), torch.zeros(count, dtype=torch.int64))
    parts[0].merge(parts[1])
    assert len(parts[0].finalize().of(0)) == 15  # every eighth of 100 and of 10
