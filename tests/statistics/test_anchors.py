"""Distances on the examples that a summary keeps, and what it says of their error."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn

from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import FsdtoolError
from fsdtool.fsd.drift import distances
from fsdtool.laftr.distance_calibration import DistanceCalibration, _fit
from fsdtool.laftr.distance_forms import _stratified
from fsdtool.laftr.metrics import measure, metrics
from fsdtool.model.checkpoint import Checkpoint
from fsdtool.network.graph import Graph
from fsdtool.statistics.anchors import AnchorPlan, AnchorRows, anchor_count, expand, met
from fsdtool.statistics.gaussian_inputs import GaussianInputs
from fsdtool.statistics.merging import BatchView
from fsdtool.statistics.sample import even_rows
from tests.conftest import gaussian_classes, perceptron


def moved(network: nn.Module, size: float) -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    other = dict(network.state_dict())
    for name, value in network.named_parameters():
        other[name] = value.detach() + size * value.std() * torch.randn(value.shape, generator=generator)
    return Checkpoint(f"{size}.pt", "0", other, ())


def exact(metric: str, network: nn.Module, other: Checkpoint, x: np.ndarray) -> float:
    """The mean over examples, one at a time."""
    twin = copy.deepcopy(network)
    twin.load_state_dict(other.state)
    with torch.no_grad():
        each = [measure(metric, network(row[None]), twin(row[None])) for row in torch.from_numpy(x)]
    return float(torch.cat(each).mean())


@pytest.mark.parametrize("metric", metrics())
@pytest.mark.parametrize("components", [None, 1, 5])
def test_where_all_examples_are_kept_whole_the_distance_is_exact(summarized, metric, components):
    network, (x, y) = perceptron(4, 12, 3), gaussian_classes(90, 4, 3)
    summary = summarized(network, x, y, components=components)
    other = moved(network, 0.3)
    (found,) = distances(summary, [other], metric=metric).found
    assert found.form == "examples"
    assert found.distance == pytest.approx(exact(metric, network, other, x), rel=1e-4)
    assert found.standard_error == pytest.approx(0, abs=1e-12)
    assert found.model_error == pytest.approx(0.01)


@pytest.mark.parametrize("kind", ["lognormal", "counts", "database"])
def test_heavy_tails_through_batch_norm_do_not_mislead(summarized, kind):
    rng = np.random.default_rng(3)
    z = rng.normal(size=(400, 5))
    columns = {
        "lognormal": np.exp(2 * z),
        "counts": rng.poisson(np.exp(z)),
        "database": np.c_[1.7e9 + 1e6 * z[:, 0], np.ones(400), np.exp(3 * z[:, 1]), 1e-6 * z[:, 2], z[:, 3] > 1],
    }
    x = columns[kind].astype(np.float32)
    network = nn.Sequential(nn.BatchNorm1d(5), *perceptron(5, 16, 2))
    network.train()(torch.from_numpy(x))
    summary = summarized(network.eval(), x, (z[:, 0] > 0).astype(int))
    other = moved(network, 0.2)
    (found,) = distances(summary, [other]).found
    true = exact("kl", network, other, x)
    assert abs(found.distance - true) <= 2 * found.model_error * found.distance


def test_a_class_with_one_example_is_measured_or_left_open(summarized, caplog):
    network, (x, y) = perceptron(4, 12, 3), gaussian_classes(300, 4, 3)
    y[y == 2] = 1
    y[17] = 2
    other = moved(network, 0.3)
    whole = summarized(network, x, y)
    (found,) = distances(whole, [other]).found
    alone = exact("kl", network, other, x[17:18])
    assert found.components[2] == pytest.approx(alone, rel=1e-3)
    with caplog.at_level(logging.INFO, logger="fsdtool"):
        few = distances(whole, [other], samples=100)
    (row,) = [row for row in few.component_rows() if row["component"] == "2"]
    assert row["distance"] is None
    assert row["contribution"] is None
    assert "1 of 3 components (2; 0.3% of the data) have too few examples kept" in caplog.text


def test_simulated_distances_of_a_component_with_one_example_are_near_the_truth(summarized):
    network, (x, y) = perceptron(4, 12, 3), gaussian_classes(300, 4, 3)
    y[y == 2] = 1
    y[17] = 2
    summary = summarized(network, x, y, records=False)
    other = moved(network, 0.3)
    (found,) = distances(summary, [other], samples=6000).found
    factor = summary.distance_calibration.correction["kl"]
    alone = exact("kl", network, other, x[17:18])
    assert 1 / 1.5 < found.components[2] / factor / alone < 1.5


def test_the_sample_of_anchors_is_unbiased_and_knows_its_spread(summarized):
    """Over sub-samples of the anchors the errors are about as large as the standard errors stated."""
    network, (x, y) = perceptron(4, 12, 3), gaussian_classes(2000, 4, 3)
    summary = summarized(network, x, y)
    other = moved(network, 0.3)
    true = exact("kl", network, other, x)
    ratios = []
    for count in range(90, 110):
        (found,) = distances(summary, [other], samples=count).found
        ratios.append((found.distance - true) / found.standard_error)
    assert 0.3 < np.sqrt(np.mean(np.square(ratios))) < 2


def test_the_standard_error_of_a_stratified_mean():
    rng = np.random.default_rng(0)
    population = [rng.exponential(size=n) * (1 + k) for k, n in enumerate((50, 400))]
    count = torch.tensor([50.0, 400.0], dtype=torch.float64)
    means, errors = [], []
    for _ in range(500):
        drawn = [rng.choice(part, size=n, replace=False) for part, n in zip(population, (20, 40), strict=True)]
        component = torch.tensor([0] * 20 + [1] * 40)
        found = _stratified(torch.from_numpy(np.concatenate(drawn)), component, component > 1, count)
        means.append(found.distance)
        errors.append(found.standard_error)
    assert np.mean(means) == pytest.approx(np.concatenate(population).mean(), rel=0.02)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.15)


def test_a_heavy_tail_that_is_kept_whole_adds_no_sampling_error():
    rng = np.random.default_rng(0)
    tail, rest = 1000 * rng.exponential(size=10), rng.exponential(size=990)
    count = torch.tensor([1000.0], dtype=torch.float64)
    means = []
    for _ in range(200):
        drawn = torch.from_numpy(np.concatenate([tail, rng.choice(rest, size=100, replace=False)]))
        found = _stratified(drawn, torch.zeros(110, dtype=torch.int64), torch.arange(110) < 10, count)
        means.append(found.distance)
    assert np.mean(means) == pytest.approx((tail.sum() + rest.sum()) / 1000, rel=0.005)
    assert found.standard_error == pytest.approx(np.std(means), rel=0.4)
    assert found.standard_error < 0.02 * found.distance


def test_the_standard_error_of_simulated_distances_is_their_spread_over_seeds(summarized):
    network, (x, y) = perceptron(6, 16, 16, 3), gaussian_classes(400, 6, 3)
    summary = summarized(network, x, y, records=False)
    found = [distances(summary, [moved(network, 0.3)], samples=1200, seed=seed).found[0] for seed in range(24)]
    spread = np.std([d.distance for d in found], ddof=1)
    assert 0.6 < np.sqrt(np.mean([d.standard_error**2 for d in found])) / spread < 1.6


def test_kept_examples_do_not_depend_on_batches(summarized):
    network, (x, y) = perceptron(4, 12, 3), gaussian_classes(101, 4, 3)
    found = [summarized(network, x, y, batch_size=size, name=f"{size}.h5").anchors for size in (7, 101)]
    for part in ("inputs", "outputs", "component"):
        torch.testing.assert_close(getattr(found[0], part), getattr(found[1], part))
    torch.testing.assert_close(found[0].inputs, torch.from_numpy(x))
    assert found[0].component.tolist() == y.tolist()


def view(rows: slice, x: torch.Tensor, logits: torch.Tensor, component: torch.Tensor) -> BatchView:
    """The batch of some rows of x (N, n)."""
    return BatchView(rows, x[rows], x[rows], component, logits, component)


def test_anchors_are_taken_as_their_rows_come_by():
    x = torch.arange(40.0).reshape(20, 2)
    basis = torch.tensor([[1.0], [0.0]])
    rows = AnchorRows(AnchorPlan.of(20, 7, basis, x), 3)
    for part in (slice(0, 9), slice(9, 10), slice(10, 20), slice(10, 20)):
        size = part.stop - part.start
        rows.update(view(part, x, torch.zeros(size, 3), torch.full((size,), 2)))
    mean = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    statistics = GaussianInputs(mean, basis, torch.zeros(2, 1, 1), torch.zeros(2, 2))
    found = rows.finalize(torch.tensor([False, True, True]), statistics)
    assert found.inputs[:, 0].tolist() == pytest.approx((x[even_rows(20, 7), 0] - 3).tolist())
    assert found.component.tolist() == [1] * 7
    assert not found.alone.any()


def test_the_examples_farthest_out_are_kept_and_stand_for_themselves():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator) * torch.tensor([1.0, 100.0, 0.0])
    x[[5, 123, 399], 0] = 50
    rows = AnchorRows(AnchorPlan.of(400, 40, None, x[::7]), 2)
    for part in (slice(0, 100), slice(100, 250), slice(100, 250), slice(250, 400)):  # one comes twice
        size = part.stop - part.start
        rows.update(view(part, x, x[part, :2], torch.zeros(size, dtype=torch.int64)))
    statistics = GaussianInputs(torch.zeros(1, 3), None, torch.zeros(1, 3, 3), torch.zeros(1, 3))
    found = rows.finalize(torch.tensor([True]), statistics)
    assert int(found.alone.sum()) == 5
    assert (found.inputs[found.alone, 0] == 50).sum() == 3
    assert len(found.inputs.unique(dim=0)) == len(found)
    torch.testing.assert_close(found.inputs[:, :2], found.outputs)
    fewer = found.evenly(10)
    assert (int((~fewer.alone).sum()), int(fewer.alone.sum())) == (10, 5)


def test_what_a_projection_leaves_out_is_the_mean_of_the_component():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 2, generator=generator)).Q
    mean = torch.randn(2, 6, generator=generator)
    x, component = torch.randn(5, 6, generator=generator), torch.tensor([0, 1, 1, 0, 1])
    found = expand(mean, basis, (x - mean[component]) @ basis, component)
    torch.testing.assert_close(found @ basis, x @ basis)
    across = torch.eye(6) - basis @ basis.T
    torch.testing.assert_close(found @ across, mean[component] @ across)


def test_moved_inputs_meet_the_recorded_margins(convnet_summary):
    summary = convnet_summary
    graph, parameters = summary.identity.graph, summary.parameters
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, *graph.input_shape, generator=generator)
    with torch.no_grad():
        recorded = graph.run(parameters, x + 0.05 * torch.randn(x.shape, generator=generator))
        before = graph.run(parameters, x)
        after = graph.run(parameters, met(graph, parameters, x, recorded, torch.full_like(x, 0.01)))
    largest = recorded.topk(2, 1).indices
    gap = [((f - f.mean(1, keepdim=True)) - (recorded - recorded.mean(1, keepdim=True))) for f in (before, after)]
    was, now = (float(g.gather(1, largest).abs().mean()) for g in gap)
    assert now < 0.2 * was


def test_fewer_examples_are_kept_of_large_networks_and_within_the_budget(convnet_summary):
    graph = convnet_summary.identity.graph
    assert anchor_count(graph, 100, 10, 2**25) == 100
    assert anchor_count(graph, 10**6, 10, 2**25) == 8192
    assert anchor_count(graph, 10**6, 1000, 2**25) == 2**23 // 4000


def test_inputs_of_many_dimensions_are_kept_by_their_projections(summarized):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(600, 10)) @ rng.normal(size=(10, 400)) + 0.1 * rng.normal(size=(600, 400))).astype(np.float32)
    network = perceptron(400, 16, 3)
    summary = summarized(network, x, rng.integers(0, 3, 600))
    assert summary.anchors.inputs.shape == (600, 64)
    calibration = summary.distance_calibration
    assert calibration.changes >= 12
    others = [moved(network, size) for size in (0.05, 0.15, 0.3)]
    for other, found in zip(others, distances(summary, others).found, strict=True):
        true = exact("kl", network, other, x)
        assert abs(found.distance - true) <= 2 * found.model_error * found.distance


def test_a_summary_without_records_keeps_no_examples_and_says_how_far_off_it_is(summarized, caplog):
    rng = np.random.default_rng(3)
    x = np.exp(2 * rng.normal(size=(400, 5))).astype(np.float32)
    network = nn.Sequential(nn.BatchNorm1d(5), *perceptron(5, 16, 2))
    network.train()(torch.from_numpy(x))
    summary = summarized(network.eval(), x, rng.integers(0, 2, 400), records=False)
    assert summary.anchors is None
    with caplog.at_level(logging.WARNING, logger="fsdtool"):
        (found,) = distances(summary, [moved(network, 0.2)], samples=4096).found
    assert found.form == "sampled"
    assert found.model_error > 0.25
    assert "1 of 1 distances are in doubt" in caplog.text
    with pytest.raises(FsdtoolError, match="keeps no examples"):
        distances(summary, [moved(network, 0.2)], form="examples")


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
def test_directions_that_do_not_vary_are_kept(summarized, offset):
    """Constant columns fill the basis up; what matters is in their offset."""
    rng = np.random.default_rng(1)
    x = np.full((500, 300), offset, np.float32)
    x[:, :30] += rng.normal(size=(500, 30)).astype(np.float32)
    network = nn.Sequential(nn.BatchNorm1d(300), *perceptron(300, 16, 3))
    network.train()(torch.from_numpy(x))
    summary = summarized(network.eval(), x, rng.integers(0, 3, 500))
    other = moved(network, 0.2)
    for metric in ("kl", "squared_error"):
        (found,) = distances(summary, [other], metric=metric).found
        assert found.distance == pytest.approx(exact(metric, network, other, x), rel=0.02)


def test_kept_examples_keep_their_directions_where_the_budget_leaves_the_covariance_fewer(summarized):
    for columns, kept in ((100, 100), (400, 64)):
        network, (x, y) = perceptron(columns, 12, 3), gaussian_classes(300, columns, 3)
        summary = summarized(network, x, y, components=8, statistics_budget=200_000, name=f"{columns}.h5")
        assert summary.statistics.input.core.shape[1] < kept
        assert summary.anchors.inputs.shape[1] == kept
        other = moved(network, 0.3)
        (found,) = distances(summary, [other]).found
        true = exact("kl", network, other, x)
        assert abs(found.distance - true) <= 2 * found.model_error * found.distance


def test_a_component_of_few_projected_examples_is_left_open(summarized):
    network, (x, y) = perceptron(400, 12, 3), gaussian_classes(100, 400, 3)
    y[:] = 0
    y[:30], y[30:40] = 1, 2
    (found,) = distances(summarized(network, x, y), [moved(network, 0.3)]).found
    assert np.isnan(found.components).tolist() == [False, False, True]
    assert np.isfinite(found.distance)


def test_one_example_is_measured_right_kept_or_simulated(summarized):
    for columns in (4, 300):
        network = perceptron(columns, 12, 3)
        x = np.random.default_rng(0).normal(size=(1, columns)).astype(np.float32)
        other = moved(network, 0.3)
        for records in (True, False):
            summary = summarized(network, x, [1], records=records, name=f"{columns}{records}.h5")
            (found,) = distances(summary, [other], samples=600).found
            assert found.distance == pytest.approx(exact("kl", network, other, x), rel=0.02)


def test_an_anchor_for_each_component_has_a_standard_error():
    one_each = torch.tensor([0, 1, 2])
    found = _stratified(torch.tensor([1.0, 9, 3]).double(), one_each, one_each < 0, torch.full((3,), 100.0).double())
    assert found.standard_error > 1


def test_with_data_the_limit_is_for_the_exact_distance(summarized, tmp_path):
    network, (x, y) = perceptron(4, 12, 3), gaussian_classes(90, 4, 3)
    summary = summarized(network, x, y)
    data = load_dataset(summary.identity.data_spec)
    result = distances(summary, [moved(network, 0.3)], form="sampled", samples=300, data=data)
    assert result.distances == [result.found[0].exact]


def test_memory_that_runs_out_in_calibration_halves_the_batch(summarized, monkeypatch):
    network, (x, y) = perceptron(300, 12, 3), gaussian_classes(200, 300, 3)
    expected = summarized(network, x, y, name="whole.h5").distance_calibration
    run = Graph.run

    def small(self, parameters, x, **more):
        if len(x) > 50:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, parameters, x, **more)

    monkeypatch.setattr(Graph, "run", small)
    found = summarized(network, x, y, name="halved.h5").distance_calibration
    assert found.error == pytest.approx(expected.error, rel=0.05)


def test_a_loss_that_overflows_names_the_example(summarized):
    network = perceptron(4, 8, 1)
    x, y = np.ones((30, 4), np.float32), np.zeros((30, 1), np.float32)
    y[11] = 1e30
    with pytest.raises(FsdtoolError, match="the loss of example 11 is not finite"):
        summarized(network, x, y, task="regression", records=False)


def test_forms_that_were_not_calibrated_have_no_model_error(mlp_summary, sample_data):
    state = {name: value.clone() for name, value in mlp_summary.parameters.items()}
    other = [Checkpoint("same.pt", "0", state, ())]
    for options in ({"form": "sampled"}, {"gates": "coupled"}, {"form": "closed", "metric": "kl2"}):
        assert distances(mlp_summary, other, samples=300, **options).found[0].model_error is None
    with pytest.raises(FsdtoolError, match="gates of their own"):
        distances(mlp_summary, other, form="examples", gates="moving")


def test_ratios_that_agree_are_corrected_and_others_are_not():
    true = np.array([1.0, 2.0, 4.0, 8.0])
    assert _fit(true, true)[0] == 1
    correction, error = _fit(true, true * np.array([2.0, 2.1, 1.9, 2.0]))
    assert correction == pytest.approx(0.5, rel=0.05)
    assert 0.2 < error < 0.5
    correction, error = _fit(true, true * np.array([0.5, 2.0, 0.7, 1.9]))
    assert correction == 1
    assert error > 0.5
    for failed in (np.nan, 0.0, np.inf):
        assert _fit(np.ones(12), np.array([1.0] * 11 + [failed]))[1] > 100


def test_the_error_of_model_and_sampling_add_in_squares():
    found = DistanceCalibration("examples", 12, 100, {"kl": 1.0}, {"kl": 0.3})
    assert found.model_error("kl", 2.0, 0.8) == pytest.approx(0.5)
    assert found.model_error("kl", 0.0, 0.0) == pytest.approx(0.3)
