"""Curvature measured on the data: draws, eigenvalues, and what it serves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.data.formats.load import load_dataset
from fsdtool.influence.scores import influence
from fsdtool.summary.inspection import inspect_rows
from fsdtool.tasks.task import task_of
from tests.conftest import gaussian_classes, perceptron

CLASSES = 3


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_curvature_draws_have_the_hessian_as_second_moment(task):
    outputs = torch.randn(4, generator=torch.Generator().manual_seed(0)).expand(200_000, 4)
    v = task_of(task).curvature_draw(torch.Generator().manual_seed(1))(outputs)
    p = torch.softmax(outputs[0], 0)
    hessian = torch.diag(p) - torch.outer(p, p) if task == "classification" else torch.eye(4)
    assert torch.allclose(v.T @ v / len(v), hessian, atol=0.01)


def exact_eigenvalues(network: nn.Module, x: torch.Tensor, c: BlockCurvature) -> torch.Tensor:
    """E[(U_S^T G U_A)^2] over the data for G drawn from the Hessian: Jacobians in float64, by columns of its root."""
    network = copy.deepcopy(network).double()
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    of_one = jacrev(lambda p, example: functional_call(network, p, (example[None],))[0])
    jacobian = torch.vmap(of_one, (None, 0))(parameters, x.double())
    g = torch.cat([jacobian[c.weight], jacobian[c.bias][..., None]], 3)  # (N, O, rows, columns)
    p = torch.softmax(network(x.double()).detach(), 1)
    root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
    rooted = torch.einsum("nor,noab->nrab", root, g)
    return (c.output_basis.T.double() @ rooted @ c.input_basis.double()).square().sum(1).mean(0)


@pytest.mark.parametrize("records", [True, False])
def test_measured_eigenvalues_are_those_of_the_data(records, summarized):
    x, y = gaussian_classes(2000, 4, CLASSES)
    network = perceptron(4, 6, CLASSES)
    summary = summarized(network, x, y, curvature="measured", records=records)
    assert {c.source for c in summary.curvature} == {"measured"}
    for c in summary.curvature:
        expected = exact_eigenvalues(network, torch.from_numpy(x), c)
        assert c.mean_eigenvalue == pytest.approx(float(expected.mean()), rel=0.1)
        assert torch.allclose(c.eigenvalues.double(), expected, rtol=0.2, atol=0.02 * float(expected.max()))


def test_measured_curvature_serves_influence_with_and_without_records(summarized, arrays):
    x, y = gaussian_classes(100, 4, CLASSES)
    queries = load_dataset(str(arrays(x[:5], y[:5])))
    summary = summarized(perceptron(4, 6, CLASSES), x, y, curvature="measured")
    recorded = influence(summary, queries, top=100)
    without = summarized(perceptron(4, 6, CLASSES), x, y, name="w.h5", curvature="measured", records=False)
    data = load_dataset(str(arrays(x, y, "t.npz")))
    streamed = influence(without, queries, data=data, top=100)
    for q in range(5):
        ours, theirs = (dict(zip(*(v[q].tolist() for v in r.proponents), strict=True)) for r in (recorded, streamed))
        biggest = max(ours.values())
        assert all(abs(ours[i] - theirs[i]) < 0.01 * biggest for i in ours)


def test_inspect_says_which_curvature_and_what_it_leaves_out(summarized, edited):
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, CLASSES))
    summary = summarized(network, *gaussian_classes(50, 4, CLASSES), curvature="measured")
    header = dict(inspect_rows(summary.path)[0])
    assert header["curvature"].startswith("measured, 3 weights")
    assert "not in influence" not in header
    header = dict(inspect_rows(edited(summary.path, lambda file: file["curvature"].pop("1.weight")))[0])
    assert header["not in influence"] == "2 parameters: 1.weight, 1.bias"
    plain = summarized(perceptron(4, CLASSES), *gaussian_classes(50, 4, CLASSES), name="p.h5")
    header = dict(inspect_rows(plain.path)[0])
    assert header["curvature"].startswith("simulated, 1 weights")
    assert "not in influence" not in header
