"""Parameters that training left alone: influence is that of the trained ones, from records, data and the file."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import FsdtoolError
from fsdtool.influence.scores import influence, self_influence
from fsdtool.summary.inspection import inspect_rows
from fsdtool.summary.reader import load
from tests.conftest import gaussian_classes, perceptron


@pytest.fixture
def data():
    return gaussian_classes(80, 4, 3)


def frozen_net(*names: str) -> nn.Sequential:
    model = perceptron(4, 6, 5, 3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    return model


def values(summary, path, tmp_path, name: str, **options) -> np.ndarray:
    influence(summary, load_dataset(str(path)), matrix=tmp_path / name, **options)
    return np.load(tmp_path / name)


def test_a_frozen_layer_has_neither_curvature_nor_records(summarized, data, caplog):
    caplog.set_level(logging.INFO, "fsdtool")
    summary = summarized(frozen_net("0.weight", "0.bias"), *data)
    assert [(c.weight, c.bias) for c in summary.curvature] == [("2.weight", "2.bias"), ("4.weight", "4.bias")]
    assert "influence leaves out 2 frozen parameters, '0.weight' first" in caplog.text
    assert "0.weight" not in summary.records._group["gradients"]
    assert summary.identity.graph.frozen == {"0.weight", "0.bias"}
    assert ("frozen", "2 parameters: 0.weight, 0.bias") in inspect_rows(summary.path)[0]


@pytest.mark.parametrize("solver", ["kronecker", "cg"])
def test_exact_influence_is_that_of_the_trained_part_alone(summarized, data, arrays, tmp_path, solver):
    """The head on frozen features: tau = g_q (G + lambda)^-1 g_i / N with its own gradients."""
    x, y = data
    model = frozen_net("0.weight", "0.bias", "2.weight", "2.bias")
    summary, path = summarized(model, x, y), arrays(x, y, "again.npz")
    found = values(summary, path, tmp_path, "m.npy", data=load_dataset(str(path)), solver=solver)
    features = model[:4](torch.from_numpy(x)).detach()
    outputs = model[4](features).detach()
    r = (outputs.softmax(1) - nn.functional.one_hot(torch.from_numpy(y), 3)).double()
    a = torch.cat([features, torch.ones(len(x), 1)], 1).double()
    g = (r[:, :, None] * a[:, None, :]).flatten(1)
    # G of the simulated curvature is known to the summary alone, so only its span and sign are compared closely.
    from fsdtool.influence.scores import whole_curvature

    (c,) = whole_curvature(summary)
    assert (c.weight, c.bias) == ("4.weight", "4.bias")
    if solver == "kronecker":
        solved = c.solve(g.reshape(len(x), 3, -1).float()).flatten(1).double()
        np.testing.assert_allclose(found, (solved @ g.T / len(x)).numpy(), rtol=1e-3, atol=1e-6)
    else:
        kronecker = values(summary, path, tmp_path, "k.npy", data=load_dataset(str(path)))
        assert np.corrcoef(found.ravel(), kronecker.ravel())[0, 1] > 0.9


def test_records_and_data_agree_and_so_does_self_influence(summarized, data, arrays, tmp_path):
    x, y = data
    summary, path = summarized(frozen_net("0.weight", "2.bias"), x, y), arrays(x, y, "again.npz")
    found = [("2.weight", None), ("4.weight", "4.bias"), ("0.bias", None)]
    assert [(c.weight, c.bias) for c in summary.curvature] == found
    source = load_dataset(str(path))
    recorded, exact = (values(summary, path, tmp_path, n, **o) for n, o in (("r.npy", {}), ("e.npy", {"data": source})))
    assert np.corrcoef(recorded.ravel(), exact.ravel())[0, 1] > 0.95
    selves = [self_influence(summary, **options).values for options in ({}, {"data": source})]
    assert np.corrcoef(*selves)[0, 1] > 0.95
    pbo = influence(summary, load_dataset(str(path)), data=source, solver="pbo", mean=True, top=2)
    assert len(list(pbo.rows()))


@pytest.mark.parametrize("curvature", ["simulated", "measured"])
def test_patterns_freeze_by_name(summarized, data, curvature):
    summary = summarized(perceptron(4, 6, 5, 3), *data, frozen=["0.*", "2.weight"], curvature=curvature)
    assert [c.weight for c in summary.curvature] == ["4.weight", "2.bias"]
    by_factory = summarized(frozen_net("0.weight", "0.bias", "2.weight"), *data, curvature=curvature, name="b.h5")
    for one, other in zip(summary.curvature, by_factory.curvature, strict=True):
        assert torch.equal(one.eigenvalues, other.eigenvalues)


def test_a_pattern_that_matches_nothing_is_refused(summarized, data):
    with pytest.raises(
        FsdtoolError, match=r"--frozen 'backbone.\*' matches no parameter of the model \(it has 0.weight"
    ):
        summarized(perceptron(4, 6, 3), *data, frozen=["backbone.*"])


def test_a_network_that_is_all_frozen_is_refused_but_for_statistics(summarized, data):
    with pytest.raises(FsdtoolError, match=r"is frozen .0.weight, 0.bias, 2.weight, 2.bias.*requires_grad=True"):
        summarized(perceptron(4, 6, 3).requires_grad_(False), *data)
    summary = summarized(perceptron(4, 6, 3).requires_grad_(False), *data, records=False)
    assert summary.curvature == []


def test_norms_alone_may_be_trained(summarized, data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))
    summary = summarized(model, *data, frozen=["0.*", "3.*"])
    assert [(c.weight, c.others) for c in summary.curvature] == [("1.weight", ("1.bias",))]


def test_a_tied_weight_is_frozen_under_all_its_names(summarized, data):
    model = perceptron(4, 4, 4, 3)
    model[2].weight = model[0].weight
    summary = summarized(model, *data, frozen=["2.weight", "*.bias"])
    assert [c.weight for c in summary.curvature] == ["4.weight"]


def test_a_checkpoint_does_not_thaw(summarized, data):
    summary = summarized(frozen_net("0.weight"), *data)
    assert load(summary.path).identity.graph.frozen == {"0.weight"}
