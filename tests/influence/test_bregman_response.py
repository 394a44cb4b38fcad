"""The proximal Bregman response: it minimizes what it says, and agrees with the quadratic form for small steps."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn.functional import cross_entropy

from fsdtool.curvature import gauss_newton
from fsdtool.curvature.gauss_newton import ConjugateGradients, GaussNewton
from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import FsdtoolError
from fsdtool.influence import bregman_response as module
from fsdtool.influence.bregman_response import FAR, Response
from fsdtool.influence.scores import influence, whole_curvature
from fsdtool.network.per_example_gradients import blocks
from tests.conftest import gaussian_classes, perceptron
from tests.influence.test_scores import matrix_of

EXAMPLES, CLASSES = 300, 3


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch):
    monkeypatch.setattr(gauss_newton, "SAMPLES", 100)


def trained(x, y) -> nn.Module:
    network = perceptron(4, 8, CLASSES)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        cross_entropy(network(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    return network


@pytest.fixture
def case(summarized, arrays):
    """A summary of a trained net, its training data and four queries, and the arrays of both."""
    x, y = gaussian_classes(EXAMPLES, 4, CLASSES)
    y[:6] = (y[:6] + 1) % CLASSES  # some that pull hard
    queries = gaussian_classes(4, 4, CLASSES, seed=0)
    summary = summarized(trained(x, y), x, y)
    data, asked = (load_dataset(str(arrays(*pair, name))) for pair, name in (((x, y), "t.npz"), (queries, "q.npz")))
    return summary, data, asked, (torch.from_numpy(x), torch.from_numpy(y))


def response_of(summary, examples: int = EXAMPLES) -> Response:
    graph, found = summary.identity.graph, blocks(summary.identity.graph, summary.parameters)
    matrix = GaussNewton(graph, summary.parameters, summary.statistics, found)
    return Response(matrix, whole_curvature(summary), summary.task, examples)


def objective(response: Response, weights, x, y) -> torch.Tensor:
    """The formula of the docstring, term by term."""
    reference, matrix = response.matrix.parameters, response.matrix
    total = -cross_entropy(matrix.graph.run(weights, x.double()), y) / response.examples
    for block, c in zip(matrix.blocks, response.curvature, strict=True):
        for name in (block.weight, block.bias):
            total = total + c.damping_value / 2 * (weights[name] - reference[name]).square().sum()
    for draw in matrix.pool:
        for n in range(len(draw.x)):
            df = (matrix.graph.run(weights, draw.x, gate=draw.tape.replay) - draw.outputs)[n]
            total = total + draw.weight / 2 * df @ matrix.hessians[draw.component] @ df
    return total


def test_the_weights_are_a_minimum_of_the_problem(case):
    summary, _, _, (x, y) = case
    response = response_of(summary)
    found = response.weights_without(x[:1], y[:1])
    names = [name for block in response.matrix.blocks for name in (block.weight, block.bias)]

    def gradient_at(weights) -> float:
        weights = {name: value.detach().requires_grad_(name in names) for name, value in weights.items()}
        gradients = torch.autograd.grad(objective(response, weights, x[:1], y[:1]), [weights[name] for name in names])
        return float(sum(g.square().sum() for g in gradients).sqrt())

    assert gradient_at(found) < 0.03 * gradient_at(response.matrix.parameters)
    reference = response.matrix.parameters
    assert objective(response, found, x[:1], y[:1]) < objective(response, reference, x[:1], y[:1])
    assert response.unsolved == 0
    assert len(response.lengths) == 1
    assert response.lengths[0] <= FAR


def test_for_a_small_step_it_is_the_quadratic_form(case):
    summary, *_, (x, y) = case
    response = response_of(summary, examples=10**6)
    kronecker = whole_curvature(summary)
    exact = ConjugateGradients(response.matrix, [c.to(torch.float64) for c in kronecker], tolerance=1e-6)
    found, expected = [], []
    for i in range(6):
        weights = response.weights_without(x[i : i + 1], y[i : i + 1])
        parameters = {n: p.clone().requires_grad_() for n, p in response.matrix.parameters.items()}
        loss = cross_entropy(response.matrix.graph.run(parameters, x[i : i + 1].double()), y[i : i + 1])
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        named = dict(zip(parameters, gradients, strict=True))
        solved = exact.solve([g[None] for g in response.matrix.matrices(named, 0)])
        moved = response.matrix.named(solved)
        for name, v in moved.items():
            found.append((weights[name] - response.matrix.parameters[name]).flatten())
            expected.append(v[0].flatten() / 10**6)
    found, expected = torch.cat(found), torch.cat(expected)
    assert float((found - expected).norm()) < 0.02 * float(expected.norm())


def test_it_ranks_as_the_quadratic_form_does_where_steps_are_small(case, tmp_path):
    summary, data, asked, _ = case
    summary.identity = replace(summary.identity, examples=100 * EXAMPLES)
    exact = matrix_of(summary, asked, tmp_path / "m.npy", data=data, solver="cg")
    result = influence(summary, asked, data=data, solver="pbo", top=8)
    for q in range(len(exact)):
        rows, values = (torch.cat([result.proponents[i][q], result.opponents[i][q]]) for i in (0, 1))
        assert len(rows.unique()) == 16
        assert spearmanr(exact[q][rows], values).statistic >= 0.9


def test_steps_that_are_not_small_are_said(case, caplog, monkeypatch):
    summary, data, asked, _ = case
    summary.identity = replace(summary.identity, examples=2)  # of two examples each weighs as much as the rest
    with caplog.at_level(logging.INFO, "fsdtool"):
        influence(summary, asked, data=data, solver="pbo", top=3)
    assert "moved the weights over 3 times as far as the quadratic form has it" in caplog.text
    assert "their values mean little" in caplog.text
    assert "all converged" not in caplog.text


def test_the_listed_are_measured_again_and_sorted(case, caplog):
    summary, data, asked, _ = case
    with caplog.at_level(logging.INFO, "fsdtool"):
        result = influence(summary, asked, data=data, solver="pbo", top=3)
    assert "all converged" in caplog.text
    quadratic = influence(summary, asked, data=data, top=3)
    for q, query in enumerate(result.queries):
        listed = [row for row in result.rows() if row["query_id"] == query]
        shortlist = {*quadratic.proponents[0][q].tolist(), *quadratic.opponents[0][q].tolist()}
        assert {row["id"] for row in listed} <= shortlist
        for kind, sign in (("proponent", 1), ("opponent", -1)):
            values = [sign * row["loss_change_if_removed"] for row in listed if row["kind"] == kind]
            assert values == sorted(values, reverse=True)
            assert all(value > 0 for value in values)


def test_the_mean_of_queries_is_the_mean_of_their_changes(case):
    summary, data, asked, _ = case
    mean = influence(summary, asked, data=data, solver="pbo", top=2, mean=True)
    response = response_of(summary)
    x, y = (torch.cat(parts) for parts in zip(*((b.x, b.y) for b in asked.batches(3)), strict=True))
    before = response.losses(response.matrix.parameters, x, y)
    for rows, values in (mean.opponents, mean.proponents):
        for i, value in zip(rows[0].tolist(), values[0].tolist(), strict=True):
            removed = next(data.batches(1, indices=[i]))
            after = response.losses(response.weights_without(removed.x, removed.y), x, y)
            assert value == pytest.approx(float((after - before).mean()), rel=1e-4)


def test_a_problem_that_does_not_converge_is_warned_of(case, monkeypatch, caplog):
    summary, data, asked, _ = case
    monkeypatch.setattr(module, "STEPS", 1)
    with caplog.at_level(logging.WARNING, "fsdtool"):
        influence(summary, asked, data=data, solver="pbo", top=1)
    assert "not converged" in caplog.text


def test_it_needs_the_training_data_and_has_no_matrix(case, tmp_path):
    summary, data, asked, _ = case
    with pytest.raises(FsdtoolError, match='`solver="pbo"` needs the training data; give it by `data`'):
        influence(summary, asked, solver="pbo")
    with pytest.raises(FsdtoolError, match="leave `matrix` out"):
        influence(summary, asked, solver="pbo", data=data, matrix=tmp_path / "m.npy")


def test_a_regression_is_measured_in_its_own_loss(summarized, arrays, tmp_path):
    x = np.random.default_rng(0).normal(size=(EXAMPLES, 3)).astype(np.float32)
    y = x.sum(1) + (x[:, 0] > 0)
    summary = summarized(perceptron(3, 6, 1), x, y, task="regression")
    data, asked = (load_dataset(str(arrays(x[:n], y[:n], f"{n}.npz")), task="regression") for n in (EXAMPLES, 2))
    exact = matrix_of(summary, asked, tmp_path / "m.npy", data=data, solver="cg")
    measured = influence(summary, asked, data=data, solver="pbo", top=4)
    for q in range(2):
        rows, values = (torch.cat([measured.proponents[i][q], measured.opponents[i][q]]) for i in (0, 1))
        assert spearmanr(exact[q][rows], values).statistic >= 0.9
