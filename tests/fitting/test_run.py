"""The pass over the data: what it may not depend on, what its options do, and what it refuses."""

from __future__ import annotations

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import FsdtoolError
from fsdtool.fitting import outcome
from fsdtool.fitting.run import summarize
from fsdtool.fsd.drift import distances
from fsdtool.influence.scores import influence
from fsdtool.mislabel.find import find_mislabeled
from fsdtool.mislabel.regression.target_errors import find_target_errors
from fsdtool.model.checkpoint import Checkpoint, read_checkpoint
from fsdtool.summary.reader import Summary, load
from tests.conftest import gaussian_classes, perceptron

SENTINEL = b"what was there before"


def small_convnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 9, 3),
    )


def images(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, y = gaussian_classes(n, 36, 3, seed)
    return x.reshape(n, 1, 6, 6), y


def assert_same_statistics(a: Summary, b: Summary, tolerance: float = 1e-5) -> None:
    assert a.statistics.names == b.statistics.names
    assert torch.equal(a.statistics.count, b.statistics.count)
    for name in ("mean", "core", "diagonal"):
        torch.testing.assert_close(
            getattr(a.statistics.input, name),
            getattr(b.statistics.input, name),
            rtol=tolerance,
            atol=tolerance,
        )
    torch.testing.assert_close(a.statistics.output_hessian, b.statistics.output_hessian, rtol=1e-4, atol=1e-6)
    for i, gates in a.statistics.gates.items():
        for name in ("probabilities", "moments"):
            found, expected = getattr(gates, name), getattr(b.statistics.gates[i], name)
            if expected is not None:
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


# What the result may not depend on


@pytest.mark.parametrize("network", [perceptron(36, 12, 3), small_convnet()], ids=["mlp", "convnet"])
def test_the_batch_size_changes_nothing(summarized, network):
    x, y = images(203)
    x = x if isinstance(network[0], nn.Conv2d) else x.reshape(203, 36)
    whole, parts = (summarized(network, x, y, batch_size=b, name=f"{b}.h5") for b in (1000, 17))
    assert_same_statistics(whole, parts)
    assert whole.identity.fingerprint == parts.identity.fingerprint
    for name in ("logits", "loss", "evidence"):
        a, b = whole.records.read(name), parts.records.read(name)
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2)
    for c, d in zip(whole.curvature, parts.curvature, strict=True):
        torch.testing.assert_close(c.eigenvalues, d.eigenvalues, rtol=1e-2, atol=1e-4)
    np.testing.assert_array_equal(find_mislabeled(whole, top=20).order, find_mislabeled(parts, top=20).order)


def test_the_order_of_the_data_does_not_change_the_statistics(summarized):
    x, y = images(150)
    order = np.random.default_rng(0).permutation(150)
    a, b = (
        summarized(small_convnet(), x[rows], y[rows], name=f"{name}.h5")
        for name, rows in (("a", np.arange(150)), ("b", order))
    )
    assert_same_statistics(a, b)
    np.testing.assert_allclose(a.records.read("loss")[order], b.records.read("loss"), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        a.records.read("evidence")[order].astype("f4"), b.records.read("evidence"), rtol=1e-2, atol=1e-2
    )


# Options


@pytest.mark.parametrize(("components", "kind", "count"), [(None, "class", 3), (1, "all", 1), (3, "cluster", 3)])
def test_the_components_are_classes_one_or_clusters(summarized, components, kind, count):
    summary = summarized(small_convnet(), *images(150), components=components)
    assert (summary.statistics.kind, len(summary.statistics.names)) == (kind, count)
    assert int(summary.statistics.count.sum()) == 150
    assert find_mislabeled(summary, top=5).order.shape == (5,)


def test_the_statistics_of_one_component_are_those_of_all_the_data(summarized):
    x, y = images(150)
    network = perceptron(36, 12, 3)
    flat = x.reshape(150, 36)
    summary = summarized(network, flat, y, components=1)
    torch.testing.assert_close(summary.statistics.input.mean[0], torch.from_numpy(flat.mean(0)))
    covariance = torch.from_numpy(np.cov(flat.T, bias=True)).float()
    torch.testing.assert_close(summary.statistics.input.covariance(0), covariance, rtol=1e-4, atol=1e-5)
    open_gates = (network[0](torch.from_numpy(flat)) > 0).float().mean(0)
    found = summary.statistics.gates[summary.identity.graph.indices("activation")[0]].probabilities[0, 0]
    torch.testing.assert_close(found, open_gates, rtol=0, atol=1e-5)


def test_a_regression_works_end_to_end(tmp_path):
    generator = np.random.default_rng(0)
    table = np.column_stack([x := generator.normal(size=(120, 3)), x.sum(1) + 0.1 * generator.normal(size=120)])
    np.savetxt(tmp_path / "t.csv", table, delimiter=",", header="a,b,c,target", comments="")
    network = perceptron(3, 10, 1, activation=nn.Tanh)
    torch.save(network.state_dict(), tmp_path / "n.pt")
    data = load_dataset(str(tmp_path / "t.csv"), task="regression")
    summarize(model=network, checkpoint=read_checkpoint(tmp_path / "n.pt"), data=data, output=tmp_path / "s.h5")
    summary = load(tmp_path / "s.h5")
    assert (summary.statistics.kind, len(summary.statistics.names)) == ("all", 1)
    np.testing.assert_allclose(summary.records.read("target")[:, 0], table[:, 3], rtol=1e-5, atol=1e-6)
    rows = list(influence(summary, data, top=2).rows())
    assert {row["kind"] for row in rows} == {"proponent", "opponent"}
    assert distances(summary, [read_checkpoint(tmp_path / "n.pt")]).distances == [0]
    assert len(find_target_errors(summary, top=3).order) == 3


def test_without_records_the_file_is_small_and_fsd_works(summarized, tmp_path):
    whole = summarized(small_convnet(), *images(400))
    small = summarized(small_convnet(), *images(400), name="small.h5", records=False)
    assert small.records is None
    assert small.curvature == []
    assert small.path.stat().st_size < whole.path.stat().st_size / 2
    assert distances(small, [read_checkpoint(tmp_path / "summary.h5.pt")], samples=50).distances == [0]


def test_without_weights_none_are_in_the_file(summarized):
    summary = summarized(small_convnet(), *images(60), keep_weights=False)
    assert summary.parameters is None
    weight = small_convnet()[5].weight.detach().numpy().tobytes()
    assert weight[:64] not in summary.path.read_bytes()


@pytest.mark.parametrize(("options", "said"), [({}, True), ({"keep_weights": False}, False)])
def test_what_the_weights_of_a_big_file_cost_is_said(summarized, caplog, monkeypatch, options, said):
    monkeypatch.setattr(outcome, "BIG_FILE", 10**5)
    with caplog.at_level(logging.INFO, "fsdtool"):
        summarized(perceptron(4, 3000, 100, 3), *gaussian_classes(30, 4, 3), record_bytes=100, **options)
    assert ("`keep_weights=False` leaves them out" in caplog.text) == said
    caplog.clear()
    with caplog.at_level(logging.INFO, "fsdtool"):
        summarized(perceptron(4, 20, 3), *gaussian_classes(3000, 4, 3), name="s.h5", **options)
    assert "keep_weights" not in caplog.text


@pytest.mark.parametrize(
    ("budget", "bits", "rank", "kind", "count", "warned"),
    [
        (600, 16, 4, "class", 3, False),
        (525, 8, 4, "class", 3, False),
        (400, 8, 2, "class", 3, False),
        (330, 8, 1, "class", 3, False),
        (250, 8, 1, "cluster", 2, True),
        (100, 8, 1, "all", 1, True),
    ],
)
def test_over_the_budget_statistics_give_up_bits_then_directions_then_components(
    summarized, caplog, budget, bits, rank, kind, count, warned
):
    x, y = gaussian_classes(100, 4, 3)
    with caplog.at_level(logging.WARNING, "fsdtool"):
        # a component: 12 gates, mean and variances of 4 inputs, their covariance, a Hessian of 3 outputs, some outputs
        summary = summarized(perceptron(4, 12, 3), x, y, statistics_budget=budget, records=False)
    assert (summary.statistics.kind, len(summary.statistics.names)) == (kind, count)
    assert summary.statistics.input.core.shape[1] == rank
    gates = summary.statistics.gates[summary.identity.graph.indices("activation")[0]].probabilities
    steps = gates * (2**bits - 1)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=0.02)
    assert ("over the budget" in caplog.text) == warned


def statistics_bytes(path: Path) -> int:
    """What the statistics take uncompressed, without names and counts."""
    sizes = []
    with h5py.File(path) as file:
        file["statistics"].visititems(lambda name, item: sizes.append(getattr(item, "nbytes", 0)))
        return sum(sizes) - file["statistics/names"].nbytes - file["statistics/count"].nbytes


@pytest.mark.parametrize("budget", [60_000, 200_000, 500_000, 10**6])
@pytest.mark.parametrize("widths", [(4, 8, 90), (300, 8, 40), (60, 400, 40)], ids=["outputs", "inputs", "gates"])
def test_the_budget_covers_all_statistics(summarized, widths, budget):
    x, y = gaussian_classes(400, widths[0], widths[-1])
    summary = summarized(perceptron(*widths), x, y, statistics_budget=budget, records=False)
    assert statistics_bytes(summary.path) <= budget
    assert len(distances(summary, [Checkpoint("same", "", summary.parameters, ())], samples=100).distances) == 1


def test_directions_that_are_asked_for_are_kept_whatever_the_budget(summarized):
    x, y = gaussian_classes(200, 300, 10)
    summary = summarized(perceptron(300, 8, 10), x, y, statistics_budget=60_000, input_rank=40, records=False)
    assert summary.statistics.input.core.shape[1] == 40
    assert len(summary.statistics.names) < 10


def test_a_class_with_a_single_example_is_summarized_with_a_warning(summarized, caplog):
    x, y = gaussian_classes(60, 4, 3)
    y[0] = 3
    with caplog.at_level(logging.WARNING, "fsdtool"):
        summary = summarized(perceptron(4, 12, 4), x, y)
    assert "1 class has a single example (3)" in caplog.text
    assert len(summary.statistics.names) == 4
    assert np.isfinite(find_mislabeled(summary).score).all()


def test_a_class_without_examples_has_no_component(summarized):
    summary = summarized(perceptron(4, 12, 5), *gaussian_classes(60, 4, 3))
    assert summary.statistics.names == ("0", "1", "2")
    assert np.isfinite(find_mislabeled(summary).score).all()
    assert len(list(influence(summary, load_dataset(summary.identity.data_spec), top=1).rows())) > 0


# What is refused, with nothing written


@pytest.fixture
def refused(tmp_path, arrays):
    """Calls summarize on a network and arrays and expects a FsdtoolError; the old output must stay."""

    def call(network: nn.Module, x, y, message: str, *, state=None, task="classification") -> None:
        output = tmp_path / "out.h5"
        output.write_bytes(SENTINEL)
        torch.save(network.state_dict() if state is None else state, tmp_path / "c.pt")

        def run() -> None:
            data = load_dataset(str(arrays(x, y)), task=task)
            checkpoint = read_checkpoint(tmp_path / "c.pt")
            summarize(model=network, checkpoint=checkpoint, data=data, output=output, batch_size=16)

        with pytest.raises(FsdtoolError, match=message) as error:
            run()
        assert "\n" not in str(error.value)
        assert output.read_bytes() == SENTINEL
        assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pt", "data.npz", "out.h5"]

    return call


def test_inputs_that_are_not_numbers_are_refused(refused):
    x, y = gaussian_classes(60, 4, 3)
    x[37, 2] = np.nan
    refused(perceptron(4, 8, 3), x, y, "the inputs of example 37 hold NaN or infinity")


def test_a_label_out_of_range_is_refused(refused):
    x, y = gaussian_classes(60, 4, 3)
    y[37] = 3
    refused(perceptron(4, 8, 3), x, y, r"label 3 of example 37 is out of range: the model has 3 outputs")


def test_an_empty_data_set_is_refused(refused):
    refused(perceptron(4, 8, 3), np.zeros((0, 4), "f4"), np.zeros(0, "i8"), "is empty")


def test_the_checkpoint_of_another_network_is_refused(refused):
    x, y = gaussian_classes(60, 4, 3)
    state = perceptron(4, 9, 3).state_dict()
    refused(perceptron(4, 8, 3), x, y, r"0.weight is \(9, 4\), expected \(8, 4\)", state=state)


def test_inputs_that_the_network_does_not_take_are_refused(refused):
    refused(perceptron(5, 8, 3), *gaussian_classes(60, 4, 3), "the model does not take the inputs")


def test_targets_of_another_width_are_refused(refused):
    x, _ = gaussian_classes(60, 4, 3)
    refused(perceptron(4, 8, 3), x, x[:, :2], "2 target values per example", task="regression")
