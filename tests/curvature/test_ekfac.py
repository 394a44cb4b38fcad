"""Which directions are kept, blocks without curvature, and vectors as blocks."""

from __future__ import annotations

import torch
from torch import nn

from fsdtool.curvature.ekfac import BlockCurvature, allot, eigenbases
from fsdtool.network.per_example_gradients import blocks, capture
from fsdtool.network.tracing.trace import trace
from fsdtool.statistics.eigen import Axis


def axes(rows: list[float], columns: list[float]) -> tuple[Axis, Axis]:
    values = (torch.tensor(side, dtype=torch.float64) for side in (rows, columns))
    return tuple(Axis(v, torch.eye(len(v)), float(v.sum())) for v in values)


def test_the_budget_goes_to_the_greatest_contributions():
    spectra = [axes([4, 1, 0], [3, 2, 1, 0]), axes([5, 0], [1, 0, 0])]
    assert allot(spectra, None) == [(3, 4), (2, 3)]
    gains = []
    for i, (rows, columns) in enumerate(spectra):
        product = torch.outer(rows.values, columns.values)
        contribution = product / (product + product.mean())
        for side in (0, 1):
            gains += [(float(g), i, side) for g in contribution.sum(1 - side)[1:]]
    gains.sort(key=lambda gain: -gain[0])
    for numbers in range(4, 13):
        widths = [[1, 1], [1, 1]]  # one direction of each side whatever it contributes
        for _, i, side in gains[: numbers - 4]:
            widths[i][side] += 1
        assert allot(spectra, numbers) == [tuple(width) for width in widths]
    assert allot(spectra, 0) == [(1, 1), (1, 1)]


def test_a_vector_with_one_direction_gets_none_and_the_others_get_its_share():
    spectra = [axes([4, 1, 0], [3, 2, 1, 0]), axes([5, 0], [1]), axes([1, 1, 1, 1], [1])]
    assert allot(spectra, None, [1, 2]) == [(3, 4), (2, 1), (4, 1)]
    matrix = spectra[:1]
    assert allot(spectra, 5, [1, 2]) == [
        *allot(matrix, 5),
        (0, 1),
        (0, 1),
    ]  # of what both would have cost, nothing is lost
    rich = allot(spectra, 18, [1, 2])
    assert rich[2] == (4, 1)
    assert sum(sum(width) for width in rich) + 2 * sum(ks > 0 for ks, _ in rich[1:]) <= 18
    assert sum(allot(spectra, 7, [1])[0]) > 2


def test_a_vector_without_directions_is_flat():
    g = torch.randn(5, 3, 1)
    flat = BlockCurvature("scale", None, torch.eye(1), torch.zeros(3, 0), torch.zeros(0, 1), 0.5)
    assert not flat.recorded
    torch.testing.assert_close(flat.solve(g), g / flat.damped_rest)
    assert flat.damped_rest == 1.0


def test_a_block_without_curvature_is_damped_by_one():
    flat = BlockCurvature("w", None, torch.eye(2), torch.eye(3), torch.zeros(3, 2), 0.0)
    assert torch.equal(flat.damped, torch.ones(3, 2))
    assert allot([axes([0, 0], [0, 0])], 2) == [(1, 1)]
    assert flat.to(torch.device("cpu")).weight == "w"


def test_the_curvature_of_a_vector_is_the_covariance_of_its_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)).eval()
    x = torch.randn(40, 5)
    network, v = trace(model, x), torch.randn(40, 3)
    _, uses = capture(network.graph, network.parameters, x, lambda logits: v)
    found = blocks(network.graph, network.parameters)
    assert found[-1].names == ("1.weight", "1.bias")
    sums = eigenbases(found, [(uses, 1.0)], numbers=None, seed=0)[-1]
    sums.update(uses)
    c = sums.finalize("measured")
    rows = []
    for i in range(40):
        grads = torch.autograd.grad((model(x[i : i + 1]) * v[i]).sum(), [model[1].weight, model[1].bias])
        rows.append(torch.cat(grads).double())
    g = torch.stack(rows)
    covariance = g.T @ g / 40
    basis = c.output_basis.double() * c.input_basis.double()
    torch.testing.assert_close(
        basis @ torch.diag(c.eigenvalues[:, 0].double()) @ basis.T, covariance, rtol=0, atol=1e-5
    )
    assert abs(c.mean_eigenvalue - float(covariance.trace()) / 12) < 1e-6
