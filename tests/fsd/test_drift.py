"""Function space distances: metrics, forms, several checkpoints, and what is refused."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import FsdtoolError
from fsdtool.fsd.drift import distances
from fsdtool.laftr.closed_form import closed_form
from fsdtool.laftr.distance_forms import default_samples
from fsdtool.laftr.metrics import measure, metrics
from fsdtool.model.checkpoint import Checkpoint, read_checkpoint
from fsdtool.model.factory import load_model
from tests.conftest import gaussian_classes, perceptron

CLOSED = ("kl2", "squared_error")


def moved(network: nn.Module, size: float, seed: int = 0) -> nn.Module:
    """A copy with noise of this relative size on its weights."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for p in other.parameters():
            p += size * p.std() * torch.randn(p.shape, generator=generator)
    return other


def checkpoint_of(network: nn.Module, name: str = "other.pt", sha256: str = "0") -> Checkpoint:
    return Checkpoint(name, sha256, {k: v.clone() for k, v in network.state_dict().items()}, ())


def naive(metric: str, f0: np.ndarray, f1: np.ndarray) -> float:
    """rho of one example, from the definition."""
    p0, p1 = (np.exp(f - f.max()) / np.exp(f - f.max()).sum() for f in (f0, f1))
    if metric == "kl":
        return sum(a * np.log(a / b) for a, b in zip(p0, p1, strict=True))
    if metric == "kl2":
        return 0.5 * (f1 - f0) @ (np.diag(p0) - np.outer(p0, p0)) @ (f1 - f0)
    if metric == "squared_error":
        return 0.5 * ((f1 - f0) ** 2).sum()
    return 0.5 * ((p1 - p0) ** 2).sum()


@pytest.mark.parametrize("metric", metrics())
def test_the_metrics_are_those_of_their_definitions(metric):
    generator = np.random.default_rng(0)
    f0, f1 = 3 * generator.normal(size=(2, 20, 5))
    found = measure(metric, torch.from_numpy(f0), torch.from_numpy(f1))
    expected = [naive(metric, a, b) for a, b in zip(f0, f1, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("metric", ["kl", "kl2", "probability"])
def test_small_divergences_do_not_drown_in_rounding(metric):
    f0 = 5 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    f1 = f0 + 1e-3 * torch.randn(50, 10, generator=torch.Generator().manual_seed(1))
    expected = [naive(metric, a, b) for a, b in zip(f0.double().numpy(), f1.double().numpy(), strict=True)]
    np.testing.assert_allclose(measure(metric, f0, f1), expected, rtol=1e-6, atol=1e-15)


def test_kl2_is_the_second_order_of_kl():
    f0 = torch.randn(20, 5, dtype=torch.float64)
    df = 1e-4 * torch.randn(20, 5, dtype=torch.float64)
    torch.testing.assert_close(measure("kl", f0, f0 + df), measure("kl2", f0, f0 + df), rtol=1e-3, atol=0)


# The distance of a checkpoint


@pytest.mark.parametrize("network", ["mlp", "convnet"])
@pytest.mark.parametrize("metric", metrics())
def test_the_summarized_checkpoint_itself_is_at_distance_zero(
    mlp_summary, convnet_summary, sample_data, network, metric
):
    summary = {"mlp": mlp_summary, "convnet": convnet_summary}[network]
    checkpoint = read_checkpoint(sample_data / summary.identity.checkpoint_name)
    test = load_dataset(str(sample_data / "test.npz"), preprocessing=summary.preprocessing)
    for form in ("closed", "examples", "sampled") if network == "mlp" and metric in CLOSED else ("examples", "sampled"):
        (found,) = distances(summary, [checkpoint], metric=metric, form=form, samples=200, data=test).found
        assert found.distance == pytest.approx(0, abs=1e-20)
        assert found.exact == 0
        assert found.standard_error == (None if form == "closed" else pytest.approx(0, abs=1e-20))


def test_the_closed_form_is_what_independent_gates_give_on_average(summarized):
    network = perceptron(4, 12, 10, 3)
    summary = summarized(network, *gaussian_classes(300, 4, 3))
    other = checkpoint_of(moved(network, 0.1))
    (closed,) = distances(summary, [other], metric="squared_error", form="closed").found
    (sampled,) = distances(
        summary, [other], metric="squared_error", form="sampled", gates="independent", samples=40_000
    ).found
    assert closed.standard_error is None
    assert abs(sampled.distance - closed.distance) < 4 * sampled.standard_error
    assert sampled.standard_error < 0.05 * closed.distance


def test_the_closed_form_of_kl2_uses_the_stored_output_hessian(summarized):
    network = perceptron(4, 12, 3)
    summary = summarized(network, *gaussian_classes(300, 4, 3))
    other = moved(network, 0.1)
    (found,) = distances(summary, [checkpoint_of(other)], metric="kl2", gates="independent").found
    statistics = summary.statistics.to(None, torch.float64)
    parameters = [{k: v.double() for k, v in n.state_dict().items()} for n in (network, other)]
    parts = closed_form(summary.identity.graph, *parameters, statistics, statistics.output_hessian)
    assert found.form == "closed"
    assert found.distance == pytest.approx(float(statistics.weight @ parts.detach()), rel=1e-5)


def test_the_distance_is_the_weighted_mean_of_the_components(convnet_summary, sample_data):
    network = load_model(f"{sample_data}/model.py:convnet")
    network.load_state_dict(read_checkpoint(sample_data / "convnet.safetensors").state)
    (found,) = distances(convnet_summary, [checkpoint_of(moved(network, 0.1))], samples=500).found
    assert len(found.components) == 10
    weight = convnet_summary.statistics.weight.numpy()
    assert found.distance == pytest.approx(float(weight @ np.array(found.components)))


@pytest.mark.parametrize("network", ["mlp", "convnet"])
@pytest.mark.parametrize("size", [0.05, 0.2])
def test_the_estimate_is_near_the_exact_distance_on_the_training_data(
    mlp_summary, convnet_summary, sample_data, network, size
):
    summary = {"mlp": mlp_summary, "convnet": convnet_summary}[network]
    model = load_model(f"{sample_data}/model.py:{network}")
    model.load_state_dict(read_checkpoint(sample_data / summary.identity.checkpoint_name).state)
    train = load_dataset(str(sample_data / "train.npz"), preprocessing=summary.preprocessing)
    (found,) = distances(
        summary, [checkpoint_of(moved(model, size))], metric="squared_error", data=train, samples=2000
    ).found
    assert 0.5 < found.distance / found.exact < 2


@pytest.mark.parametrize("metric", metrics())
def test_the_exact_distance_is_the_mean_over_the_data(convnet_summary, sample_data, metric):
    network = load_model(f"{sample_data}/model.py:convnet")
    network.load_state_dict(read_checkpoint(sample_data / "convnet.safetensors").state)
    other = moved(network, 0.1)
    test = load_dataset(str(sample_data / "test.npz"), preprocessing=convnet_summary.preprocessing)
    total = 0.0
    with np.load(sample_data / "test.npz") as file, torch.no_grad():
        for image in file["x"]:
            x = torch.from_numpy(image)[None, None].float() / 255
            total += naive(metric, network(x)[0].double().numpy(), other(x)[0].double().numpy())
    (found,) = distances(
        convnet_summary, [checkpoint_of(other)], metric=metric, data=test, samples=20, batch_size=77
    ).found
    assert found.exact == pytest.approx(total / 360, rel=1e-4)


def test_several_checkpoints_are_judged_on_the_same_samples(convnet_summary, sample_data):
    network = load_model(f"{sample_data}/model.py:convnet")
    network.load_state_dict(read_checkpoint(sample_data / "convnet.safetensors").state)
    others = [checkpoint_of(moved(network, size), f"{size}.pt") for size in (0.05, 0.1, 0.05)]
    for form in ("examples", "sampled"):
        together = distances(convnet_summary, others, form=form, samples=300).found
        alone = [distances(convnet_summary, [other], form=form, samples=300).found[0] for other in others]
        assert [d.distance for d in together] == pytest.approx([d.distance for d in alone], rel=1e-6)
        assert together[0].distance == pytest.approx(together[2].distance, rel=1e-6)
        assert [d.checkpoint for d in together] == ["0.05.pt", "0.1.pt", "0.05.pt"]
    assert distances(convnet_summary, others[:1], form="sampled", samples=300, seed=1).found[0] != alone[0]


def test_a_regression_compares_squared_errors(summarized):
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    network = perceptron(3, 8, 2, activation=nn.Tanh)
    summary = summarized(network, x, x[:, :2], task="regression")
    (found,) = distances(summary, [checkpoint_of(moved(network, 0.1))]).found
    assert (found.metric, found.form) == ("squared_error", "examples")
    assert found.distance > 0
    with pytest.raises(FsdtoolError, match="metric 'kl' is for binary, classification and multilabel"):
        distances(summary, [checkpoint_of(network)], metric="kl")


def test_the_rows_have_exact_only_with_data(mlp_summary, sample_data):
    checkpoint = read_checkpoint(sample_data / "mlp.pt")
    (row,) = distances(mlp_summary, [checkpoint], metric="kl2").rows()
    assert list(row) == ["checkpoint", "distance", "standard_error", "model_error", "metric", "form"]
    test = load_dataset(str(sample_data / "test.npz"), preprocessing=mlp_summary.preprocessing)
    (row,) = distances(mlp_summary, [checkpoint], metric="kl2", data=test).rows()
    assert list(row) == ["checkpoint", "distance", "standard_error", "model_error", "metric", "form", "exact"]


def test_prefixes_and_wrappers_of_the_other_checkpoint_are_undone(mlp_summary, sample_data):
    state = read_checkpoint(sample_data / "mlp.pt").state
    wrapped = Checkpoint("w.pt", "0", {f"module.{name}": value for name, value in state.items()}, ())
    assert distances(mlp_summary, [wrapped], metric="kl2").distances == [0]


def test_outputs_that_overflow_are_warned_of(mlp_summary, sample_data, caplog):
    state = read_checkpoint(sample_data / "mlp.pt").state
    huge = Checkpoint("huge.pt", "0", {name: 1e30 * value for name, value in state.items()}, ())
    with caplog.at_level(logging.WARNING, "fsdtool"):
        (found,) = distances(mlp_summary, [huge], samples=50).found
    assert not np.isfinite(found.distance)
    assert "the distance of huge.pt is not finite" in caplog.text


# The reference


def test_a_summary_without_weights_needs_the_checkpoint_that_was_summarized(summarized, tmp_path):
    network = perceptron(4, 8, 3)
    data = gaussian_classes(100, 4, 3)
    kept = summarized(network, *data)
    without = summarized(network, *data, name="without.h5", keep_weights=False)
    other = checkpoint_of(moved(network, 0.1))
    with pytest.raises(FsdtoolError, match="give the summarized checkpoint by `reference`"):
        distances(without, [other])
    reference = read_checkpoint(tmp_path / "without.h5.pt")
    assert distances(without, [other], reference=reference) == distances(kept, [other])
    with pytest.raises(FsdtoolError, match=r"other.pt is not the summarized checkpoint: its SHA-256 is 0"):
        distances(without, [other], reference=other)


# Refusals


@pytest.mark.parametrize("metric", CLOSED)
def test_the_closed_form_of_a_convolutional_network_is_refused(convnet_summary, sample_data, metric):
    checkpoint = read_checkpoint(sample_data / "convnet.safetensors")
    with pytest.raises(FsdtoolError, match=r'the network is not a plain chain.*`form="sampled"`'):
        distances(convnet_summary, [checkpoint], metric=metric, form="closed")


def test_the_closed_form_of_a_metric_without_one_is_refused(mlp_summary, sample_data):
    checkpoint = read_checkpoint(sample_data / "mlp.pt")
    with pytest.raises(FsdtoolError, match="the metric is kl, and it knows kl2 and squared_error"):
        distances(mlp_summary, [checkpoint], form="closed")


def test_an_unknown_metric_is_refused(mlp_summary, sample_data):
    with pytest.raises(FsdtoolError, match="there is no metric 'cosine'; give one of kl, kl2"):
        distances(mlp_summary, [read_checkpoint(sample_data / "mlp.pt")], metric="cosine")


def test_a_checkpoint_of_another_network_is_refused(mlp_summary, sample_data):
    with pytest.raises(FsdtoolError, match="does not fit the model"):
        distances(mlp_summary, [read_checkpoint(sample_data / "convnet.safetensors")])
    state = read_checkpoint(sample_data / "mlp.pt").state
    state["5.weight"] = state["5.weight"][:, :60]
    with pytest.raises(FsdtoolError, match=r"5.weight is \(10, 60\), expected \(10, 64\)"):
        distances(mlp_summary, [Checkpoint("cut.pt", "0", state, ())])


def test_a_quantized_checkpoint_is_refused(mlp_summary, sample_data):
    state = read_checkpoint(sample_data / "mlp.pt").state
    state["1.weight"] = (100 * state["1.weight"]).to(torch.int8)
    with pytest.raises(FsdtoolError, match=r"q.pt holds torch.int8 values for '1.weight'"):
        distances(mlp_summary, [Checkpoint("q.pt", "0", state, ())])


def test_data_of_another_shape_is_refused_before_anything_is_computed(mlp_summary, sample_data, arrays):
    data = load_dataset(str(arrays(np.zeros((5, 1, 9, 9), "f4"), np.zeros(5, "i8"))))
    with pytest.raises(FsdtoolError, match=r"\(1, 9, 9\), the summary was made from \(1, 8, 8\)"):
        distances(mlp_summary, [read_checkpoint(sample_data / "mlp.pt")], data=data, samples=10**12)


def test_component_rows_add_up_to_the_distance(mlp_summary, sample_data):
    network = moved(load_model(f"{sample_data}/model.py:mlp"), 0.1)
    found = distances(mlp_summary, [checkpoint_of(network, "a.pt")], samples=300)
    rows = list(found.component_rows())
    assert [row["component"] for row in rows] == list(mlp_summary.statistics.names)
    assert sum(row["weight"] for row in rows) == pytest.approx(1)
    assert sum(row["contribution"] for row in rows) == pytest.approx(found.distances[0])


@pytest.mark.parametrize(("units", "samples"), [(1_200, 65_536), (10_000, 26_843), (4_000_000, 4_096)])
def test_large_networks_are_sampled_less_by_default(units, samples):
    graph = SimpleNamespace(steps=[SimpleNamespace(units=units // 4), SimpleNamespace(units=units - units // 4)])
    assert default_samples(graph) == samples
