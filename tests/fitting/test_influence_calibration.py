"""Influence from records against exact gradients: the scale that is stored, and what it does to queries never seen."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from fsdtool.cli import main
from fsdtool.curvature.simulated import simulated_sums
from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import FsdtoolError
from fsdtool.fitting.influence_calibration import calibrate_influence
from fsdtool.influence.gradient_records import factors
from fsdtool.influence.scores import influence, self_influence
from fsdtool.network.per_example_gradients import blocks, capture, gradient
from fsdtool.statistics import eigen
from fsdtool.statistics.sample import Sample
from fsdtool.summary.inspection import inspect_rows
from fsdtool.summary.reader import load
from fsdtool.tasks.task import task_of
from fsdtool.util.memory import BatchSize
from tests.conftest import gaussian_classes, perceptron


def convolutions(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 3)
    )


def pictures(examples: int, seed: int = 0):
    x, y = gaussian_classes(examples, 36, 3, seed)
    return x.reshape(-1, 1, 6, 6), y


def matrices(summary, queries, training, path) -> tuple[np.ndarray, np.ndarray]:
    """All values (Q, N) from records and by exact gradients."""
    for name, data in (("records", None), ("exact", training)):
        influence(summary, queries, top=1, matrix=path / f"{name}.npy", data=data)
    return tuple(np.load(path / f"{name}.npy").astype(np.float64) for name in ("records", "exact"))


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Of y against x through the origin."""
    return float((x * y).sum() / (x * x).sum())


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_values_from_records_have_the_scale_of_exact_gradients_on_queries_not_seen(
    sample_paths, sample_data, tmp_path, network
):
    summary = load(sample_paths[network])
    training, queries = (load_dataset(str(sample_data / f"{name}.npz")) for name in ("train", "test"))
    records, exact = matrices(summary, queries, training, tmp_path)
    assert 0.9 < slope(exact, records) < 1.1
    assert 0.9 < slope(records, exact) < 1.1
    found = np.corrcoef(records.ravel(), exact.ravel())[0, 1]
    assert found == pytest.approx(summary.influence.correlation, abs=0.04)
    own, true = self_influence(summary).values, self_influence(summary, data=training).values
    assert 0.9 < slope(true, own) < 1.1
    assert 0.9 < slope(own, true) < 1.1


@pytest.mark.parametrize("curvature", ["simulated", "measured"])
def test_without_the_scale_the_values_of_a_convolutional_network_are_too_small(summarized, arrays, tmp_path, curvature):
    x, y = pictures(300)
    summary = summarized(convolutions(), x, y, curvature=curvature)
    training, queries = load_dataset(str(arrays(x, y))), load_dataset(str(arrays(*pictures(40, 1), name="q.npz")))
    records, exact = matrices(summary, queries, training, tmp_path)
    assert summary.influence.scale > 1.3
    assert 0.85 < slope(exact, records) < 1.1
    summary.influence = None
    bare, _ = matrices(summary, queries, training, tmp_path)
    np.testing.assert_allclose(bare.sum() * load(summary.path).influence.scale, records.sum(), rtol=1e-4)


@pytest.mark.parametrize("numbers", [6, 20, 1000])
@pytest.mark.parametrize(("build", "data"), [(convolutions, pictures), (None, None)], ids=["convolutions", "dense"])
def test_the_calibration_is_that_of_dense_matrices_over_all_pairs(summarized, build, data, numbers):
    if build is None:
        network, (x, y) = perceptron(5, 12, 8, 3), gaussian_classes(60, 5, 3)
    else:
        network, (x, y) = build(), data(60)
    summary = summarized(network, x, y)
    graph, parameters = summary.identity.graph, summary.parameters
    sums = simulated_sums(graph, parameters, summary.statistics, seed=0, numbers=numbers, samples=300)
    kept, exact = [s.finalize("simulated") for s in sums], [s.complete("simulated") for s in sums]
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    task = task_of("classification")
    sample = Sample(graph, parameters, task, torch.arange(60), x, y, BatchSize(7))
    found = calibrate_influence(sample, kept, exact)
    assert (found.examples, found.pairs) == (60, 60 * 59)
    _, uses = capture(graph, parameters, x, task.loss_gradient(y))
    records, true, own = 0, 0, 0
    for block, few, whole in zip(blocks(graph, parameters), kept, exact, strict=True):
        g = gradient(block, uses).double()
        assert torch.equal(whole.eigenvalues[: few.eigenvalues.shape[0], : few.eigenvalues.shape[1]], few.eigenvalues)
        assert float(whole.eigenvalues.mean()) == pytest.approx(few.mean_eigenvalue, rel=1e-3)
        basis = torch.kron(whole.output_basis.contiguous(), whole.input_basis.contiguous()).double()
        inverse = basis @ torch.diag(1 / whole.damped.double().flatten()) @ basis.T
        true = true + g.flatten(1) @ inverse @ g.flatten(1).T
        b, a = (v.double() for v in factors(block, few, uses).part(slice(None)))
        recorded = b[:, :, None] * a[:, None, :]
        projected = few.output_basis.T.double() @ g @ few.input_basis.double()
        records = records + (projected / few.damped).flatten(1) @ recorded.flatten(1).T
        own = own + (recorded.square() / few.damped).sum((1, 2))
    apart = ~torch.eye(60, dtype=torch.bool)
    r, e = records[apart], true[apart]
    assert found.scale == pytest.approx(float(e.norm() / r.norm()), rel=1e-3)
    assert found.correlation == pytest.approx(float(torch.corrcoef(torch.stack([r, e]))[0, 1]), abs=1e-4)
    assert found.self_scale == pytest.approx(float(true.diagonal().norm() / own.norm()), rel=1e-3)


def test_directions_beyond_those_found_count_as_flat(monkeypatch, summarized):
    monkeypatch.setattr(eigen, "LARGEST", 4)
    monkeypatch.setattr(eigen, "LEADING", 5)
    network, (x, y) = convolutions(), pictures(60)
    summary = summarized(network, x, y, record_bytes=60)
    assert 0.5 < summary.influence.correlation <= 1
    assert summary.influence.self_scale > 1


def test_examples_that_the_network_is_sure_of_do_not_underflow(summarized):
    x, y = gaussian_classes(60, 5, 3)
    network = perceptron(5, 12, 3)
    with torch.no_grad():
        network[2].weight *= 1e-4
        network[2].bias.zero_()
    small = summarized(network, np.float32(1e-9) * x, y)
    assert small.influence is None or np.isfinite(small.influence.scale)


@pytest.mark.parametrize("examples", [1, 2, 3])
def test_a_handful_of_examples_is_summarized(summarized, examples):
    x, y = gaussian_classes(3, 5, 3)
    assert load(summarized(perceptron(5, 8, 3), x[:examples], y[:examples]).path).records is not None


def test_what_was_measured_is_said(convnet_summary, sample_data, capsys):
    correlation = f"{convnet_summary.influence.correlation:.3f}"
    pairs = f"{convnet_summary.influence.pairs:,}"
    path, queries = str(convnet_summary.path), str(sample_data / "test.npz")
    said = f"note: values from records: correlation {correlation} with exact gradients on {pairs} sampled pairs\n"
    assert main(["influence", path, "--queries", queries, "--top", "1"]) == 0
    assert said in capsys.readouterr().err
    assert main(["influence", path, "--self", "--top", "1"]) == 0
    assert "note: self-influence from records: correlation .9" in capsys.readouterr().err.replace(" 0.9", " .9")
    header = dict(inspect_rows(convnet_summary.path)[0])
    assert header["influence"].startswith(f"values from records: correlation {correlation}")


def test_without_a_calibration_values_are_as_recorded_and_said_to_be(
    convnet_summary, sample_data, edited, tmp_path, caplog
):
    path = edited(convnet_summary.path, lambda file: file.__delitem__("calibration"))
    older, queries = load(path), load_dataset(str(sample_data / "test.npz"))
    assert older.influence is None
    with caplog.at_level(logging.INFO, "fsdtool"):
        influence(older, queries, top=1, matrix=tmp_path / "older.npy")
    assert "values may be too small" in caplog.text
    influence(convnet_summary, queries, top=1, matrix=tmp_path / "now.npy")
    older, now = (np.load(tmp_path / f"{name}.npy") for name in ("older", "now"))
    np.testing.assert_allclose(older * convnet_summary.influence.scale, now, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_cannot_be_is_refused(convnet_summary, edited, value):
    path = edited(convnet_summary.path, lambda file: file["calibration/influence"].attrs.__setitem__("scale", value))
    with pytest.raises(FsdtoolError, match="edited"):
        load(path)


def test_values_that_have_little_in_common_are_warned_of(convnet_summary, sample_data, edited, caplog):
    def spoil(file):
        file["calibration/influence"].attrs["correlation"] = 0.3

    summary = load(edited(convnet_summary.path, spoil))
    influence(summary, load_dataset(str(sample_data / "test.npz")), top=1)
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert any("correlation 0.300" in message and "`data`" in message for message in warned)
