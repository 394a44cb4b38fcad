"""Influence from records alone, against dense linear algebra on autograd's per-example gradients."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fsdtool.curvature.ekfac import DAMPING_FACTOR
from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import FsdtoolError
from fsdtool.influence import gradient_records, screening, training_examples
from fsdtool.influence import scores as influence_module
from fsdtool.influence.gradient_records import read_factors
from fsdtool.influence.scores import influence, self_influence
from fsdtool.influence.top_k import TopK
from fsdtool.model.factory import load_model
from fsdtool.network.per_example_gradients import blocks
from fsdtool.summary.reader import Summary, load
from tests.conftest import gaussian_classes, perceptron, unseen

HALF = 3e-3  # a few roundings of float16, of unit vectors


def weight_gradients(network: nn.Module, summary: Summary, x: Tensor, y: Tensor) -> list[Tensor]:
    """Per block of the summary, G (N, rows, columns) float64, from autograd one by one."""
    network = network.double().eval()
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def example_loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return summary.task.loss(functional_call(network, p, (x[None],)), y[None])[0]

    each = torch.vmap(torch.func.grad(example_loss), (None, 0, 0))(parameters, x.double(), y)
    found = {block.weight: block for block in blocks(summary.identity.graph, summary.parameters)}
    return [found[c.weight].join(each, 1) for c in summary.curvature]


def projected(summary: Summary, gradients: list[Tensor]) -> list[Tensor]:
    """S^T G A (N, ks, ka) float64 per block that is recorded."""
    return [
        c.output_basis.T.double() @ g @ c.input_basis.double()
        for c, g in zip(summary.curvature, gradients, strict=True)
    ]


def kept(summary: Summary) -> list[Tensor]:
    """The gradients that the records stand for, (N, ks, ka) float64 per weight."""
    everything = slice(None)
    parts = [read_factors(summary.records.read, c.weight, everything).part(everything) for c in summary.curvature]
    return [b.double()[:, :, None] * a.double()[:, None, :] for b, a in parts]


def dense(summary: Summary, queries: list[Tensor], training: list[Tensor]) -> Tensor:
    """(1/N) g_q^T (G + lambda)^-1 g_i (Q, ...) of gradients in the eigenbasis, N the records."""
    total = sum(
        q.flatten(1) @ (t / c.damped.double()).flatten(1).T
        for c, q, t in zip(summary.curvature, queries, training, strict=True)
    )
    return total / len(summary.records)


def matrix_of(summary: Summary, queries, path: Path, **options) -> np.ndarray:
    influence(summary, queries, matrix=path, **options)
    return np.load(path)


def assert_close_to_scale(found: np.ndarray, expected: Tensor, tolerance: float) -> None:
    """Close relative to each query's largest value: what is small is a sum of large terms of both signs."""
    expected = expected.numpy()
    assert found.shape == expected.shape
    assert (np.abs(found - expected).max(1) <= tolerance * np.abs(expected).max(1)).all()


@pytest.fixture
def test_digits(sample_data):
    return load_dataset(str(sample_data / "test.npz"))


@pytest.fixture(scope="module")
def digits(sample_data) -> dict[str, tuple[Tensor, Tensor]]:
    """Images (n, 1, 8, 8) and labels of both parts."""
    parts = {}
    for part in ("train", "test"):
        with np.load(sample_data / f"{part}.npz") as file:
            parts[part] = torch.from_numpy(file["x"])[:, None].float() / 255, torch.from_numpy(file["y"])
    return parts


def sample_network(summary: Summary, sample_data: Path) -> nn.Module:
    network = load_model(f"{sample_data}/{summary.identity.model_spec}")
    network.load_state_dict(summary.parameters, strict=False)
    return network


# Against the dense formula


def test_a_fully_connected_network_equals_the_dense_formula_with_exact_gradients(
    mlp_summary, sample_data, digits, tmp_path, test_digits
):
    network = sample_network(mlp_summary, sample_data)
    training, queries = (
        projected(mlp_summary, weight_gradients(network, mlp_summary, x[:300], y[:300]))
        for x, y in (digits["train"], digits["test"])
    )
    found = matrix_of(mlp_summary, test_digits, tmp_path / "m.npy")[:300, :300]
    assert_close_to_scale(found, dense(mlp_summary, queries, training), HALF)


def test_a_convolutional_network_equals_the_dense_formula_with_the_kept_gradients(
    convnet_summary, sample_data, digits, tmp_path, test_digits
):
    network = sample_network(convnet_summary, sample_data)
    x, y = digits["test"]
    queries = projected(convnet_summary, weight_gradients(network, convnet_summary, x[:60], y[:60]))
    found = matrix_of(convnet_summary, test_digits, tmp_path / "m.npy")[:60]
    expected = convnet_summary.influence.scale * dense(convnet_summary, queries, kept(convnet_summary))
    assert_close_to_scale(found, expected, 1e-4)


def test_with_every_direction_kept_it_is_the_inverse_of_the_whole_matrix(summarized, arrays, tmp_path):
    x, y = gaussian_classes(80, 4, 3)
    network = perceptron(4, 6, 3)
    summary = summarized(network, x, y)
    queries, labels = gaussian_classes(10, 4, 3, seed=1)
    found = matrix_of(summary, load_dataset(str(arrays(queries, labels))), tmp_path / "m.npy")
    training = weight_gradients(network, summary, torch.from_numpy(x), torch.from_numpy(y))
    of_queries = weight_gradients(network, summary, torch.from_numpy(queries), torch.from_numpy(labels))
    expected = torch.zeros(10, 80, dtype=torch.float64)
    for c, q, t in zip(summary.curvature, of_queries, training, strict=True):
        vectors = torch.kron(c.output_basis.double().contiguous(), c.input_basis.double().contiguous())
        whole = vectors @ torch.diag(c.damped.double().flatten()) @ vectors.T
        expected += q.flatten(1) @ torch.linalg.inv(whole) @ t.flatten(1).T / 80
    assert_close_to_scale(found, expected, HALF)


def test_a_regression_equals_the_dense_formula(summarized, arrays, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(90, 3)).astype(np.float32)
    y = np.stack([x.sum(1), x[:, 0] * x[:, 1]], 1).astype(np.float32)
    network = perceptron(3, 8, 2, activation=nn.Tanh)
    summary = summarized(network, x, y, task="regression")
    found = matrix_of(summary, load_dataset(str(arrays(x[:9], y[:9])), task="regression"), tmp_path / "m.npy")
    gradients = projected(summary, weight_gradients(network, summary, torch.from_numpy(x), torch.from_numpy(y)))
    assert_close_to_scale(found, dense(summary, [g[:9] for g in gradients], gradients), HALF)


def test_self_influence_is_the_diagonal(mlp_summary, sample_data, tmp_path):
    train = load_dataset(str(sample_data / "train.npz"))
    whole = matrix_of(mlp_summary, train, tmp_path / "m.npy", top=1)
    found = self_influence(mlp_summary).values
    np.testing.assert_allclose(found, np.diag(whole), rtol=0.01, atol=1e-3 * found.max())


def self_influence_of_factors(summary: Summary) -> np.ndarray:
    """tau(i, i) (N,) float64, each gradient formed whole from its record, at the scale of exact gradients."""
    whole = [(g.square() / c.damped).sum((1, 2)) for c, g in zip(summary.curvature, kept(summary), strict=True)]
    return sum(whole).numpy() * summary.influence.self_scale / len(summary.records)


def test_self_influence_is_that_of_the_records(convnet_summary):
    found = self_influence(convnet_summary).values
    np.testing.assert_allclose(found, self_influence_of_factors(convnet_summary), rtol=2e-6)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_self_influence_is_that_of_the_measured_curvature_after_the_pass(summarized, task):
    x, y = gaussian_classes(150, 5, 3)
    summary = summarized(
        perceptron(5, 8, 3),
        x,
        y if task == "classification" else x[:, :3],
        task=task,
        curvature="measured",
        batch_size=40,
    )
    np.testing.assert_allclose(self_influence(summary).values, self_influence_of_factors(summary), rtol=2e-6)


def test_the_influence_on_the_mean_is_the_mean_of_the_influences(convnet_summary, test_digits, tmp_path):
    rows = matrix_of(convnet_summary, test_digits, tmp_path / "m.npy", batch_size=100)
    mean = matrix_of(convnet_summary, test_digits, tmp_path / "mean.npy", mean=True, batch_size=64)
    assert mean.shape == (1, 1437)
    np.testing.assert_allclose(mean[0], rows.mean(0), rtol=1e-3, atol=1e-4 * np.abs(rows).mean())


def test_the_sizes_of_batches_and_chunks_change_nothing(convnet_summary, test_digits, tmp_path, monkeypatch):
    expected = matrix_of(convnet_summary, test_digits, tmp_path / "a.npy")
    monkeypatch.setattr(training_examples, "CHUNK", 100)
    found = matrix_of(convnet_summary, test_digits, tmp_path / "b.npy", batch_size=7)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_the_size_of_chunks_changes_no_self_influence(convnet_summary, monkeypatch):
    read, curvatures, examples = convnet_summary.records.read, convnet_summary.curvature, len(convnet_summary.records)
    expected = gradient_records.self_influence(read, curvatures, examples)
    monkeypatch.setattr(gradient_records, "CHUNK", 100)
    torch.testing.assert_close(gradient_records.self_influence(read, curvatures, examples), expected, rtol=1e-5, atol=0)


# What is listed


def test_the_strongest_of_each_kind_are_those_of_a_full_sort(mlp_summary, test_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training_examples, "CHUNK", 100)
    result = influence(mlp_summary, test_digits, top=7, matrix=tmp_path / "m.npy")
    rows, whole = list(result.rows()), np.load(tmp_path / "m.npy")
    for q in (0, 100, 359):
        for kind, order in (
            ("proponent", np.argsort(-whole[q], kind="stable")),
            ("opponent", np.argsort(whole[q], kind="stable")),
        ):
            listed = [row for row in rows if row["query_id"] == q and row["kind"] == kind]
            assert [row["id"] for row in listed] == order[:7].tolist()
            assert [row["rank"] for row in listed] == list(range(1, 8))
            values = [row["loss_change_if_removed"] for row in listed]
            np.testing.assert_array_equal(np.float32(values), whole[q][order[:7]])
            assert all((value > 0) == (kind == "proponent") for value in values)


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_ties_are_listed_in_record_order(chunk, k):
    scores = torch.randint(-3, 4, (8, 60), generator=torch.Generator().manual_seed(0)).float()
    best = TopK(8, k)
    for start in range(0, 60, chunk):
        best.update(scores[:, start : start + chunk], start)
    for sign, (rows, values) in zip((-1, 1), best.finalize(), strict=True):
        expected = (sign * scores).sort(dim=1, stable=True)
        assert torch.equal(rows, expected.indices[:, :k])
        assert torch.equal(values, sign * expected.values[:, :k])


def test_copies_of_an_example_are_listed_in_record_order(summarized, arrays):
    x, y = gaussian_classes(40, 4, 3)
    summary = summarized(perceptron(4, 8, 3), np.tile(x, (3, 1)), np.tile(y, 3))
    result = influence(summary, load_dataset(str(arrays(x[:5], y[:5]))), top=6)
    for rows, values in zip(*(part.tolist() for part in result.proponents), strict=True):
        # Kernels may give copies values that differ in the last bit; where they do not, the order is that of records.
        assert [{row % 40 for row in rows[:3]}, {row % 40 for row in rows[3:]}] == [{rows[0] % 40}, {rows[3] % 40}]
        assert all(a > b or (a == b and i < j) for i, j, a, b in zip(rows, rows[1:], values, values[1:], strict=False))


def test_an_example_without_influence_is_neither_kind(summarized, arrays):
    x, y = gaussian_classes(60, 4, 3)
    network = perceptron(4, 8, 3)
    with torch.no_grad():  # dead units and no biases: a query of zero changes nothing but the last bias
        for layer in (network[0], network[2]):
            layer.weight.zero_()
            layer.bias.zero_()
        network[2].bias[0] = 200.0  # sure of class 0, rightly so for those of class 0
    summary = summarized(network, x, y)
    rows = list(influence(summary, load_dataset(str(arrays(x, y))), top=60).rows())
    assert all(row["loss_change_if_removed"] != 0 for row in rows)
    assert {row["query_id"] for row in rows} == set(np.flatnonzero(y != 0).tolist())


def test_misclassified_queries_alone(mlp_summary, sample_data, digits, test_digits, tmp_path):
    x, y = digits["test"]
    predicted = sample_network(mlp_summary, sample_data)(x).argmax(1)
    result = influence(mlp_summary, test_digits, top=3, misclassified=True, matrix=tmp_path / "m.npy", batch_size=50)
    assert result.queries == (predicted != y).nonzero()[:, 0].tolist()
    whole = matrix_of(mlp_summary, test_digits, tmp_path / "all.npy")
    np.testing.assert_allclose(np.load(tmp_path / "m.npy"), whole[result.queries], rtol=1e-3, atol=1e-6)


def test_more_than_there_are_lists_them_all(summarized, arrays):
    x, y = gaussian_classes(20, 4, 3)
    summary = summarized(perceptron(4, 8, 3), x, y)
    rows = list(influence(summary, load_dataset(str(arrays(x[:1], y[:1]))), top=500).rows())
    assert sorted(row["id"] for row in rows) == list(range(20))


def test_labels_and_ids_are_those_of_the_data(summarized, arrays):
    x, y = gaussian_classes(30, 4, 2)
    names = np.array(["cat", "dog"])[y]
    summary = summarized(perceptron(4, 8, 2), x, names)
    queries = load_dataset(str(arrays(x[:2], names[:2])), class_names=summary.class_names)
    row = next(influence(summary, queries).rows())
    assert list(row) == [
        "query_id", "kind", "rank", "id", "label", "loss_change_if_removed", "query_label", "query_prediction",
    ]  # fmt: skip
    assert row["query_label"] == names[0]
    assert row["query_prediction"] in {"cat", "dog"}
    assert row["label"] == names[row["id"]]
    assert next(self_influence(summary).rows())["label"] in {"cat", "dog"}


def test_self_influence_is_listed_from_the_largest(mlp_summary):
    rows = list(self_influence(mlp_summary).rows())
    values = [row["self_influence"] for row in rows]
    assert values == sorted(values, reverse=True)
    assert sorted(row["id"] for row in rows) == list(range(1437))


@pytest.mark.parametrize(("rank", "chunk"), [(4, 400), (2, 10**4)])
def test_screening_finds_the_same_examples_and_values(mlp_summary, test_digits, monkeypatch, rank, chunk):
    expected = influence(mlp_summary, test_digits, top=5, misclassified=True)
    monkeypatch.setattr(influence_module, "SCREENED_FROM", 0)
    monkeypatch.setattr(screening, "RANK", rank)
    monkeypatch.setattr(training_examples, "CHUNK", chunk)
    found = influence(mlp_summary, test_digits, top=5, misclassified=True)
    for (rows, values), (same_rows, same_values) in (
        (found.proponents, expected.proponents), (found.opponents, expected.opponents),
    ):  # fmt: skip
        assert (rows == same_rows).float().mean() > 0.999  # but for ties to rounding
        torch.testing.assert_close(values, same_values, rtol=1e-3, atol=1e-5 * float(same_values.abs().max()))


def test_screening_leaves_most_products_out(mlp_summary, test_digits, monkeypatch):
    counted = []
    whole = screening._Weight.full

    def count(self, q, b, a, i):
        counted.append(len(q))
        return whole(self, q, b, a, i)

    monkeypatch.setattr(screening._Weight, "full", count)
    monkeypatch.setattr(influence_module, "SCREENED_FROM", 0)
    influence(mlp_summary, test_digits, top=1)
    assert sum(counted) / 3 < 0.3 * 360 * 1437


# The matrix file


def test_a_matrix_appears_only_when_it_is_whole(mlp_summary, test_digits, tmp_path, monkeypatch):
    (tmp_path / "m.npy").write_bytes(b"what was there")

    def fail(*arguments):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(training_examples.Recorded, "scores", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        influence(mlp_summary, test_digits, matrix=tmp_path / "m.npy")
    assert (tmp_path / "m.npy").read_bytes() == b"what was there"
    assert [path.name for path in tmp_path.iterdir()] == ["m.npy"]


def test_a_matrix_that_cannot_be_written_is_a_users_error(mlp_summary, test_digits, tmp_path):
    with pytest.raises(FsdtoolError, match=r"matrix .* cannot be written"):
        influence(mlp_summary, test_digits, matrix=tmp_path / "nowhere" / "m.npy")


# Last layer mode


class Product(nn.Module):
    """A network that multiplies two signals where no tracer sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)

    def features(self, x: Tensor) -> Tensor:
        return unseen(self.relu(self.a(x)) * self.b(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def test_in_last_layer_mode_the_model_computes_the_features(summarized, arrays, tmp_path):
    torch.manual_seed(0)
    network = Product()
    x, y = gaussian_classes(60, 4, 3)
    summary = summarized(network, x, y)
    assert [c.weight for c in summary.curvature] == ["head.weight"]
    queries = load_dataset(str(arrays(x[:8], y[:8])))
    found = matrix_of(summary, queries, tmp_path / "m.npy", model=network)
    features = network.features(torch.from_numpy(x)).detach()
    p = torch.softmax(network.head(features), 1) - nn.functional.one_hot(torch.from_numpy(y), 3)
    g = p.detach().double()[:, :, None] * nn.functional.pad(features, (0, 1), value=1.0).double()[:, None]
    gradients = projected(summary, [g])
    assert_close_to_scale(found, dense(summary, [gradients[0][:8]], gradients), HALF)


def test_in_last_layer_mode_a_model_is_needed_and_must_take_the_queries(summarized, arrays):
    torch.manual_seed(0)
    network = Product()
    summary = summarized(network, *gaussian_classes(60, 4, 3))
    queries = load_dataset(str(arrays(*gaussian_classes(5, 4, 3))))
    with pytest.raises(FsdtoolError, match=r"holds only the last layer 'head'.*give `model` and `checkpoint`"):
        influence(summary, queries)
    wider = load_dataset(str(arrays(*gaussian_classes(5, 7, 3))))
    with pytest.raises(FsdtoolError, match="does not take the inputs"):
        influence(summary, wider, model=network)


# Refusals


def test_queries_of_another_shape_are_refused(summarized, arrays):
    summary = summarized(perceptron(4, 8, 3), *gaussian_classes(60, 4, 3))
    with pytest.raises(FsdtoolError, match=r"inputs of shape \(5,\), the summary was made from \(4,\)"):
        influence(summary, load_dataset(str(arrays(*gaussian_classes(5, 5, 3)))))


def test_a_query_label_out_of_range_is_refused(summarized, arrays):
    summary = summarized(perceptron(4, 8, 3), *gaussian_classes(60, 4, 3))
    x, y = gaussian_classes(5, 4, 3)
    y[3] = 3
    with pytest.raises(FsdtoolError, match="label 3 of example 3 is out of range"):
        influence(summary, load_dataset(str(arrays(x, y))))


def test_targets_of_another_width_are_refused(summarized, arrays):
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    summary = summarized(perceptron(3, 8, 1), x, x.sum(1), task="regression")
    with pytest.raises(FsdtoolError, match="2 target values per example, the model 1 outputs"):
        influence(summary, load_dataset(str(arrays(x, x[:, :2])), task="regression"))
    with pytest.raises(FsdtoolError, match="no misclassified queries; leave `misclassified` out"):
        influence(summary, load_dataset(str(arrays(x, x[:, 0])), task="regression"), misclassified=True)


def test_a_summary_without_records_or_weights_is_refused(summarized, arrays):
    data = gaussian_classes(60, 4, 3)
    queries = load_dataset(str(arrays(*data)))
    without = summarized(perceptron(4, 8, 3), *data, records=False)
    for call in (lambda: influence(without, queries), lambda: self_influence(without)):
        with pytest.raises(FsdtoolError, match="written with `records=False`; give the training data by `data`"):
            call()
    without = summarized(perceptron(4, 8, 3), *data, keep_weights=False)
    with pytest.raises(FsdtoolError, match="written with `keep_weights=False`; write it again with weights"):
        influence(without, queries)
    assert len(self_influence(without).values) == 60


@pytest.mark.parametrize("screened", [False, True])
def test_scores_that_overflow_are_refused(summarized, edited, monkeypatch, screened):
    monkeypatch.setattr(influence_module, "SCREENED_FROM", 1 if screened else 50_000)
    summary = summarized(perceptron(4, 8, 3), *gaussian_classes(60, 4, 3))
    queries = load_dataset(summary.identity.data_spec)

    def change(file):  # what the records hold is finite, what is made of it is not
        name = next(iter(file["curvature"]))
        file[f"curvature/{name}/output_basis"][...] = 1e30
        file[f"curvature/{name}/input_basis"][...] = 1e30

    with pytest.raises(FsdtoolError, match="is not finite"):
        influence(load(edited(summary.path, change)), queries)


def test_no_misclassified_query_is_a_users_error(summarized, arrays):
    x, y = gaussian_classes(60, 4, 3)
    network = perceptron(4, 8, 3)
    summary = summarized(network, x, y)
    right = network(torch.from_numpy(x)).argmax(1).numpy()
    with pytest.raises(FsdtoolError, match="there are no misclassified queries in"):
        influence(summary, load_dataset(str(arrays(x, right))), misclassified=True)


def test_a_query_whose_gradient_overflows_is_named(summarized, arrays):
    x, y = gaussian_classes(60, 4, 3)
    summary = summarized(perceptron(4, 8, 3), x, y)
    x[2] = 3e38
    with pytest.raises(FsdtoolError, match="the gradient of query 2 is not finite"):
        influence(summary, load_dataset(str(arrays(x, y))))


def test_nothing_is_warned_of_on_sound_data(mlp_summary, test_digits, caplog):
    with caplog.at_level(logging.WARNING, "fsdtool"):
        influence(mlp_summary, test_digits)
    assert not caplog.records


def test_the_training_data_is_not_needed(sample_paths, test_digits, tmp_path):
    summary = load(sample_paths["mlp"])
    assert len(influence(summary, test_digits, top=1).queries) == 360


@pytest.mark.parametrize("streamed", [False, True])
def test_a_strong_damping_divides_the_values(summarized, arrays, tmp_path, streamed):
    """Far above the curvature (G + lambda)^-1 is 1 / lambda, of influence as of self-influence."""
    summary = summarized(perceptron(4, 8, 3), *gaussian_classes(60, 4, 3))
    queries = load_dataset(str(arrays(*gaussian_classes(60, 4, 3))))
    data = queries if streamed else None
    found = []
    for factor in (1e7, 2e7):
        influence(summary, queries, data=data, damping_factor=factor, matrix=tmp_path / "m.npy")
        selves = self_influence(summary, data=data, damping_factor=factor).values
        found.append((np.load(tmp_path / "m.npy"), selves))
    for strong, stronger in zip(*found, strict=True):
        np.testing.assert_allclose(strong, 2 * stronger, rtol=1e-4)


def test_the_default_damping_is_that_of_the_records(summarized, arrays):
    summary = summarized(perceptron(4, 8, 3), *gaussian_classes(60, 4, 3))
    near = self_influence(summary, damping_factor=DAMPING_FACTOR * (1 + 1e-9)).values
    np.testing.assert_allclose(near, self_influence(summary).values, rtol=1e-5)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_no_damping_is_refused(mlp_summary, test_digits, factor):
    with pytest.raises(FsdtoolError, match=r"`damping_factor` .* is no damping; give a positive number"):
        influence(mlp_summary, test_digits, damping_factor=factor)
