"""Gauss-Newton products and conjugate gradients against dense matrices in float64 and autograd's Jacobians."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev

from fsdtool.curvature import gauss_newton as module
from fsdtool.curvature.gauss_newton import ConjugateGradients, GaussNewton
from fsdtool.curvature.simulated import simulated_curvature
from fsdtool.data.formats.load import load_dataset
from fsdtool.influence.scores import whole_curvature
from fsdtool.network.per_example_gradients import blocks, has_rank_one
from tests.conftest import gaussian_classes, perceptron
from tests.influence.test_scores import assert_close_to_scale, matrix_of, weight_gradients
from tests.influence.test_streamed_influence import CASES


def gauss_newton(summary, samples: int = 64) -> GaussNewton:
    graph = summary.identity.graph
    found = blocks(graph, summary.parameters)
    return GaussNewton(graph, summary.parameters, summary.statistics, found, samples=samples)


def dense(matrix: GaussNewton) -> Tensor:
    """The whole Gauss-Newton matrix in float64 from Jacobians under the recorded gates, in the order of the blocks."""
    total = 0
    for draw in matrix.pool:
        point = {name: matrix.parameters[name] for block in matrix.blocks for name in block.names}

        def outputs(changed, draw=draw):
            return matrix.graph.run({**matrix.parameters, **changed}, draw.x, gate=draw.tape.replay)

        jacobian = matrix.matrices(jacrev(outputs)(point), 2)
        j = torch.cat([part.flatten(2) for part in jacobian], 2).double()  # (n, O, P)
        h = matrix.hessians[draw.component].double()
        total = total + draw.weight * torch.einsum("nop,oq,nqr->pr", j, h, j)
    return total


def flat(vectors: list[Tensor]) -> Tensor:
    return torch.cat([v.flatten(1) for v in vectors], 1).double()


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 200)


@pytest.fixture(params=CASES)
def case(request, summarized):
    build, draw = CASES[request.param]
    network, (x, y) = build(), draw(50, 0)
    return network, summarized(network, x, y), draw


def drawn_vectors(matrix: GaussNewton, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(count, block.d_out, block.d_in, generator=generator) for block in matrix.blocks]


def test_products_equal_the_dense_matrix(case, monkeypatch):
    _, summary, _ = case
    matrix = gauss_newton(summary)
    vectors = drawn_vectors(matrix, 3)
    expected = flat(vectors) @ dense(matrix)
    torch.testing.assert_close(flat(matrix.product(vectors)), expected, rtol=1e-4, atol=1e-5 * float(expected.max()))
    monkeypatch.setattr(module, "TANGENTS", 1)  # one vector at a time, by derivatives
    matrix = gauss_newton(summary)
    assert matrix._jacobian is None
    torch.testing.assert_close(flat(matrix.product(vectors)), expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


def test_products_go_through_max_pooling_and_batch_norm(summarized):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    )  # fmt: skip
    network(torch.randn(20, 1, 6, 6))  # batch norm has seen something
    generator = np.random.default_rng(0)
    summary = summarized(network, generator.normal(size=(40, 1, 6, 6)).astype(np.float32), np.arange(40) % 3)
    matrix = gauss_newton(summary)
    vectors = drawn_vectors(matrix, 2)
    expected = flat(vectors) @ dense(matrix)
    torch.testing.assert_close(flat(matrix.product(vectors)), expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


def test_without_a_stored_hessian_the_samples_own_is_used(case):
    _, summary, _ = case
    matrix = gauss_newton(summary)
    matrix.hessians = None
    draw, u = matrix.pool[0], torch.randn(2, len(matrix.pool[0].x), 3)
    p = torch.softmax(draw.outputs, 1)
    own = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(matrix.times_hessian(draw, u), torch.einsum("nop,qnp->qno", own, u))


def test_conjugate_gradients_solve_the_damped_matrix(case):
    _, summary, _ = case
    matrix, kronecker = gauss_newton(summary), whole_curvature(summary)
    offsets = torch.cat([torch.full((b.size,), c.damping_value) for b, c in zip(matrix.blocks, kronecker, strict=True)])
    right = drawn_vectors(matrix, 4)
    right[0][1] = right[1][1] = right[-1][1] = 0  # nothing to solve for the second
    solver = ConjugateGradients(matrix, kronecker, tolerance=1e-5)
    expected = torch.linalg.solve(dense(matrix) + torch.diag(offsets.double()), flat(right).T).T
    found = flat(solver.solve(right))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3 * float(expected.max()))
    assert solver.residual <= 1e-5
    assert 1 < solver.iterations < 60


def test_conjugate_gradients_that_do_not_converge_are_warned_of(case, caplog):
    _, summary, _ = case
    matrix = gauss_newton(summary)
    solver = ConjugateGradients(matrix, whole_curvature(summary), most=1)
    solver.solve(drawn_vectors(matrix, 1))
    with caplog.at_level(logging.WARNING, "fsdtool"):
        solver.say()
    assert "conjugate gradients: 1 iterations" in caplog.text
    assert "not converged" in caplog.text


def test_influence_by_conjugate_gradients_is_the_dense_answer(case, arrays, tmp_path, caplog):
    network, summary, draw = case
    (x, y), (queries, labels) = draw(50, 0), draw(5, 1)
    data, asked = (load_dataset(str(arrays(*p, name))) for p, name in (((x, y), "t.npz"), ((queries, labels), "q.npz")))
    with caplog.at_level(logging.INFO, "fsdtool"):
        found = matrix_of(summary, asked, tmp_path / "m.npy", data=data, solver="cg")
    assert "relative residual" in caplog.text
    kronecker = whole_curvature(summary)
    matrix = gauss_newton(summary, 200)
    offsets = torch.cat([torch.full((b.size,), c.damping_value) for b, c in zip(matrix.blocks, kronecker, strict=True)])
    of_queries, of_training = (
        flat(weight_gradients(network, summary, torch.from_numpy(a), torch.from_numpy(b)))
        for a, b in ((queries, labels), (x, y))
    )
    whole = dense(matrix) + torch.diag(offsets.double())
    expected = of_queries @ torch.linalg.solve(whole, of_training.T) / 50
    assert_close_to_scale(found, expected, 3e-2)
    exact = all(has_rank_one(block, matrix.graph) for block in matrix.blocks)
    if exact and summary.curvature[0].damped_rest is None:
        recorded = matrix_of(summary, asked, tmp_path / "r.npy", solver="cg")  # exact factors in every direction
        assert_close_to_scale(recorded, expected, 5e-2)


def test_for_one_layer_it_is_close_to_the_kronecker_solve(summarized, arrays, tmp_path):
    x, y = gaussian_classes(200, 4, 3)
    summary = summarized(perceptron(4, 3), x, y, components=1)
    queries = load_dataset(str(arrays(*gaussian_classes(20, 4, 3, seed=1))))
    kronecker, whole = (matrix_of(summary, queries, tmp_path / "m.npy", solver=s) for s in ("kronecker", "cg"))
    assert np.corrcoef(kronecker.ravel(), whole.ravel())[0, 1] > 0.99


def test_the_mean_of_queries_is_solved_once(case, arrays, tmp_path):
    _, summary, draw = case
    queries = load_dataset(str(arrays(*draw(6, 1))))
    each = matrix_of(summary, queries, tmp_path / "m.npy", solver="cg")
    mean = matrix_of(summary, queries, tmp_path / "n.npy", solver="cg", mean=True)
    assert_close_to_scale(mean, torch.from_numpy(each.mean(0, keepdims=True)).double(), 2e-2)


def test_a_cut_curvature_preconditions_as_well(case):
    _, summary, _ = case
    identity = summary.identity
    cut = simulated_curvature(identity.graph, summary.parameters, summary.statistics, seed=0, numbers=12)
    matrix = gauss_newton(summary)
    solver = ConjugateGradients(matrix, cut)
    solver.solve(drawn_vectors(matrix, 2))
    assert solver.residual <= solver.tolerance
