"""Influence with exact gradients streamed from data, against dense linear algebra in float64; the matrix in HDF5."""

from __future__ import annotations

import logging

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fsdtool.curvature.simulated import simulated_curvature
from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import FsdtoolError
from fsdtool.influence import query_solves
from fsdtool.influence.scores import influence, self_influence, whole_curvature
from fsdtool.network.per_example_gradients import blocks
from fsdtool.summary.reader import Summary, load
from tests.conftest import gaussian_classes, perceptron
from tests.influence.test_scores import assert_close_to_scale, matrix_of, weight_gradients

SINGLE = 5e-4  # float32 against float64


def dense_inverse(c) -> Tensor:
    """(G + lambda)^-1 over vec G (row by row), float64, flat outside the kept directions."""
    basis = torch.kron(c.output_basis.double().contiguous(), c.input_basis.double().contiguous())
    inside = c.damped.double().flatten()
    rest = 1.0 if c.damped_rest is None else c.damped_rest
    whole = basis @ torch.diag(inside - rest) @ basis.T + rest * torch.eye(len(basis), dtype=torch.float64)
    return torch.linalg.inv(whole)


def dense(summary: Summary, curvatures, queries: list[Tensor], training: list[Tensor]) -> Tensor:
    each = (
        q.flatten(1) @ dense_inverse(c) @ t.flatten(1).T for c, q, t in zip(curvatures, queries, training, strict=True)
    )
    return sum(each) / summary.identity.examples


def small_conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )  # fmt: skip


class SmallTransformer(nn.Module):
    """Twelve numbers as four tokens, one of its own, places, attention between two layer norms, a scale."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.out = nn.Linear(3, 4), nn.Linear(4, 12), nn.Linear(4, 3)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 5, 4))
        self.before, self.after, self.scale = nn.LayerNorm(4), nn.LayerNorm(4), nn.Parameter(torch.rand(4))
        nn.init.normal_(self.before.weight, 1, 0.3)
        nn.init.normal_(self.after.bias, 0, 0.3)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x.unflatten(1, (4, 3)))], 1) + self.place
        q, k, v = self.qkv(self.before(x)).chunk(3, -1)
        x = x + self.scale * (torch.softmax(q @ k.mT, -1) @ v)
        return self.out(self.after(x)[:, 0])


def sequences(examples: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 3, examples)
    x = generator.normal(size=(examples, 4, 3)) + y[:, None, None] * np.linspace(0, 1, 3)
    return x.reshape(examples, 12).astype(np.float32), y


def images(examples: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 3, examples)
    x = generator.normal(size=(examples, 2, 7, 7)) + y[:, None, None, None] * np.linspace(0, 0.4, 7)
    return x.astype(np.float32), y


CASES = {
    "fully connected": (lambda: perceptron(4, 6, 3), lambda n, seed: gaussian_classes(n, 4, 3, seed)),
    "convolutions": (small_conv, images),
    "norms and positions": (SmallTransformer, sequences),
}


@pytest.fixture(params=CASES)
def case(request, summarized, arrays):
    """A summary without records, its training data and queries, and all three's gradients from autograd."""
    build, draw = CASES[request.param]
    (x, y), (queries, labels) = draw(50, 0), draw(9, 1)
    network = build()
    summary = summarized(network, x, y, records=False)
    data, asked = (
        load_dataset(str(arrays(*pair, name))) for pair, name in (((x, y), "t.npz"), ((queries, labels), "q.npz"))
    )
    summary.curvature = whole_curvature(summary)  # for the names in weight_gradients
    gradients = (
        weight_gradients(network, summary, *map(torch.from_numpy, pair)) for pair in ((queries, labels), (x, y))
    )
    return summary, data, asked, *gradients


def test_a_summary_without_records_equals_the_dense_formula(case, tmp_path):
    summary, data, asked, of_queries, of_training = case
    found = matrix_of(summary, asked, tmp_path / "m.npy", data=data)
    assert_close_to_scale(found, dense(summary, whole_curvature(summary), of_queries, of_training), SINGLE)


@pytest.mark.parametrize("curvature", ["simulated", "measured"])
def test_every_parameter_is_in_a_block_and_the_sum_of_all_is_dense(curvature, summarized, arrays, tmp_path):
    (x, y), (queries, labels) = sequences(60, 0), sequences(8, 1)
    network = SmallTransformer()
    summary = summarized(network, x, y, curvature=curvature, record_bytes=4096)
    found = blocks(summary.identity.graph, summary.parameters)
    assert sorted(name for block in found for name in block.names) == sorted(network.state_dict())
    assert [c.weight for c in summary.curvature] == [block.weight for block in found]
    pairs = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in ((queries, labels), (x, y))]
    of_queries, of_training = (weight_gradients(network, summary, *pair) for pair in pairs)
    expected = dense(summary, whole_curvature(summary), of_queries, of_training)
    asked, data = (load_dataset(str(arrays(*p, n))) for p, n in (((queries, labels), "q.npz"), ((x, y), "t.npz")))
    assert_close_to_scale(matrix_of(summary, asked, tmp_path / "m.npy", data=data), expected, 1e-3)
    recorded = matrix_of(summary, asked, tmp_path / "r.npy")
    assert np.corrcoef(recorded.ravel(), expected.numpy().ravel())[0, 1] > 0.9


def test_a_summary_from_before_there_were_vectors_is_scored_without_them(summarized, arrays, edited, tmp_path):
    (x, y), asked = sequences(60, 0), load_dataset(str(arrays(*sequences(8, 1), "q.npz")))
    network = SmallTransformer()
    vectors = ["before.weight", "after.weight", "place", "token", "scale"]

    def forget(file):
        for name in vectors:
            del file[f"curvature/{name}"], file[f"records/gradients/{name}"]

    old = load(edited(summarized(network, x, y, curvature="measured", record_bytes=4096).path, forget))
    assert [c.weight for c in old.curvature] == ["embed.weight", "qkv.weight", "out.weight"]
    recorded = matrix_of(old, asked, tmp_path / "r.npy")
    data = load_dataset(str(arrays(x, y, "t.npz")))
    of_queries, of_training = (
        weight_gradients(network, old, *map(torch.from_numpy, part)) for part in (sequences(8, 1), (x, y))
    )
    expected = dense(old, old.curvature, of_queries, of_training)
    exact = matrix_of(old, asked, tmp_path / "e.npy", data=data, solver="kronecker")
    assert_close_to_scale(exact, expected, 1e-3)
    assert np.corrcoef(recorded.ravel(), exact.ravel())[0, 1] > 0.9
    assert np.isfinite(matrix_of(old, asked, tmp_path / "c.npy", solver="cg")).all()


def test_blocks_of_queries_and_batches_change_nothing(case, tmp_path, monkeypatch):
    summary, data, asked, _, of_training = case
    expected = influence(summary, asked, data=data, top=4, matrix=tmp_path / "a.npy")
    monkeypatch.setattr(query_solves, "QUERY_NUMBERS", 2 * sum(g[0].numel() for g in of_training))
    found = influence(summary, asked, data=data, top=4, matrix=tmp_path / "b.npy", batch_size=7)
    assert found.queries == expected.queries
    for a, b in ((found.proponents, expected.proponents), (found.opponents, expected.opponents)):
        assert torch.equal(a[0], b[0])
    whole = torch.from_numpy(np.load(tmp_path / "a.npy")).double()
    assert_close_to_scale(np.load(tmp_path / "b.npy"), whole, SINGLE)


def test_the_mean_is_the_mean_of_the_influences(case, tmp_path):
    summary, data, asked, *_ = case
    rows = matrix_of(summary, asked, tmp_path / "m.npy", data=data)
    mean = matrix_of(summary, asked, tmp_path / "mean.npy", data=data, mean=True, batch_size=4)
    assert_close_to_scale(mean, torch.from_numpy(rows.mean(0, keepdims=True)).double(), SINGLE)


def test_streamed_self_influence_is_the_diagonal(case):
    summary, data, _, _, of_training = case
    expected = dense(summary, whole_curvature(summary), of_training, of_training).diagonal()
    found = self_influence(summary, data=data, batch_size=7)
    np.testing.assert_allclose(found.values, expected.numpy(), rtol=1e-3, atol=1e-4 * float(expected.max()))
    assert sorted(row["id"] for row in found.rows()) == list(range(50))


@pytest.mark.parametrize("name", CASES)
def test_directions_that_are_not_kept_count_as_flat(name, summarized, arrays, tmp_path):
    build, draw = CASES[name]
    network, (x, y) = build(), draw(60, 0)
    summary = summarized(network, x, y, records=False)
    identity = summary.identity
    numbers = 18 if name == "norms and positions" else 14
    cut = simulated_curvature(identity.graph, summary.parameters, summary.statistics, seed=0, numbers=numbers)
    assert all(c.damped_rest is not None for c in cut)
    summary.curvature = cut
    gradients = weight_gradients(network, summary, torch.from_numpy(x), torch.from_numpy(y))
    for c, g in zip(cut, gradients, strict=True):
        expected = (dense_inverse(c) @ g.flatten(1).T).T.view_as(g)
        torch.testing.assert_close(c.solve(g.float()).double(), expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def test_a_summary_with_records_may_be_asked_for_exact_gradients(mlp_summary, sample_data, tmp_path):
    queries, train = (load_dataset(str(sample_data / f"{part}.npz")) for part in ("test", "train"))
    exact = matrix_of(mlp_summary, queries, tmp_path / "e.npy", data=train)
    recorded = matrix_of(mlp_summary, queries, tmp_path / "r.npy")
    rows = zip(exact, recorded, strict=True)
    assert np.median([np.corrcoef(e, r)[0, 1] for e, r in rows]) > 0.9


def test_other_data_is_scored_with_a_warning(summarized, arrays, caplog):
    summary = summarized(perceptron(4, 6, 3), *gaussian_classes(50, 4, 3))
    other = load_dataset(str(arrays(*gaussian_classes(20, 4, 3, seed=3))))
    with caplog.at_level(logging.WARNING, "fsdtool"):
        result = influence(summary, other, data=other, top=30)
    assert "is not the data that was summarized" in caplog.text
    assert len({row["id"] for row in result.rows()}) == 20


def test_streamed_data_of_another_shape_is_refused(summarized, arrays):
    summary = summarized(perceptron(4, 6, 3), *gaussian_classes(50, 4, 3))
    queries = load_dataset(str(arrays(*gaussian_classes(5, 4, 3), "q.npz")))
    wider = load_dataset(str(arrays(*gaussian_classes(5, 5, 3), "w.npz")))
    with pytest.raises(FsdtoolError, match=r"the training data .* have inputs of shape \(5,\)"):
        influence(summary, queries, data=wider)


# The matrix in HDF5


def test_the_hdf5_matrix_holds_the_same_values_with_ids_and_units(mlp_summary, sample_data, tmp_path, monkeypatch):
    queries = load_dataset(str(sample_data / "test.npz"))
    monkeypatch.setattr(query_solves, "QUERY_NUMBERS", 100 * sum(c.eigenvalues.numel() for c in mlp_summary.curvature))
    result = influence(mlp_summary, queries, matrix=tmp_path / "m.h5", misclassified=True)
    whole = matrix_of(mlp_summary, queries, tmp_path / "m.npy", misclassified=True)
    with h5py.File(tmp_path / "m.h5") as file:
        np.testing.assert_array_equal(file["influence"][:], whole)
        np.testing.assert_array_equal(file["query_id"][:], result.queries)
        np.testing.assert_array_equal(file["id"][:], mlp_summary.records.ids)
        assert file["influence"].attrs["units"] == "nats"
        assert all({"units", "description"} <= set(file[name].attrs) for name in file)
    assert [path.name for path in sorted(tmp_path.glob("m*"))] == ["m.h5", "m.npy"]
    assert not list(tmp_path.glob(".*"))


def test_the_mean_of_queries_in_hdf5_is_one_row(mlp_summary, sample_data, tmp_path):
    influence(mlp_summary, load_dataset(str(sample_data / "test.npz")), mean=True, matrix=tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as file:
        assert file["influence"].shape == (1, 1437)
        assert file["query_id"][:].tolist() == [b"mean"]
