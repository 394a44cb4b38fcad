"""Several labels for one example, against torch's binary cross-entropy, autograd and enumeration."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import FsdtoolError
from fsdtool.fsd.drift import distances
from fsdtool.influence.scores import influence
from fsdtool.model.checkpoint import read_checkpoint
from fsdtool.network.traced import FULL, LAST_LAYER
from fsdtool.summary.catalogue import open_catalogue
from fsdtool.tasks.multilabel import kl, kl2
from fsdtool.tasks.task import task_of
from tests.conftest import unseen

LABELS = 3
TASK = task_of("multilabel")


def case(count: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (count, 5) float32, and of each the sides (count, 3) int64 of three planes that it lies on."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(count, 5)).astype(np.float32)
    return x, (x @ generator.normal(size=(5, LABELS)) + [0, 0.5, -1] > 0).astype(np.int64)


X, Y = case()


class Net(nn.Module):
    """5-8-3, trained a little; `end` makes its output of z.  An `opaque` one is taken by its last layer."""

    def __init__(self, end=lambda z: z, opaque: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, LABELS)
        self.end, self.opaque = end, opaque
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            z = self.last(self.first(torch.from_numpy(X)).relu())
            F.binary_cross_entropy_with_logits(z, torch.from_numpy(Y).float()).backward()
            optimizer.step()

    def forward(self, x):
        h = self.first(x).relu()
        return self.end(self.last(unseen(h.detach()) if self.opaque else h))

    def z(self, x=X):
        with torch.no_grad():
            return self.last(self.first(torch.from_numpy(x)).relu())


def losses(net: Net, y: np.ndarray = Y) -> np.ndarray:
    return F.binary_cross_entropy_with_logits(net.z(), torch.from_numpy(y).float(), reduction="none").sum(1).numpy()


# The task itself


def test_the_loss_is_the_sum_of_binary_cross_entropies_and_stays_finite():
    f, y = torch.tensor([[0.0, 300.0, -300.0], [-300.0, 2.0, 300.0]]), torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    expected = F.binary_cross_entropy_with_logits(f, y, reduction="none").sum(1)
    torch.testing.assert_close(TASK.loss(f, y), expected)


def test_the_gradient_of_a_sure_label_is_not_lost_in_float32():
    gradient = TASK.loss_gradient(torch.tensor([[1.0, 0.0]]))(torch.tensor([[20.0, -20.0]]))
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 1.0]]) / (1 + torch.tensor(20.0).exp()))


def test_the_kl_divergence_is_that_of_all_combinations_of_labels():
    """Each of the 2^O combinations has the product of its labels' probabilities."""
    generator = torch.Generator().manual_seed(0)
    f0, f1 = 3 * torch.randn(2, 5, LABELS, generator=generator, dtype=torch.float64)
    expected = torch.zeros(5, dtype=torch.float64)
    for y in itertools.product((0.0, 1.0), repeat=LABELS):
        log0, log1 = (-TASK.loss(f, torch.tensor(y).expand(5, -1)) for f in (f0, f1))
        expected += log0.exp() * (log0 - log1)
    torch.testing.assert_close(kl(f0, f1), expected)
    near = f0 + 1e-3 * f1
    torch.testing.assert_close(kl(f0, near), kl2(f0, near), rtol=1e-2, atol=0)
    far = torch.tensor([[300.0, -300.0]], dtype=torch.float64)
    assert float(kl(far, -far)) == pytest.approx(600, rel=1e-6)


def test_factor_and_shifts_are_found_again():
    generator = np.random.default_rng(0)
    f = generator.normal(size=(4000, LABELS))
    y = (generator.random(f.shape) < 1 / (1 + np.exp(-(2 * f + [1, 0, -1])))).astype(np.float32)
    before, after, factor = TASK.refit(f, y)
    z = 2 * f + [1, 0, -1]
    truth = float(np.logaddexp(0, np.where(y > 0, -z, z)).sum(1).mean())
    assert factor == pytest.approx(2, rel=0.1)
    assert after == pytest.approx(truth, rel=0.01)
    assert before > 1.05 * truth


def test_values_other_than_0_and_1_are_named(arrays):
    bad = Y.astype(np.float32)
    bad[4, 1] = 0.5
    with pytest.raises(FsdtoolError, match=r"label 1 of example 4 is 0.5, and labels are 0 or 1; .*`task="):
        load_dataset(str(arrays(X, bad)), task="multilabel")
    bad[4, 1] = np.nan
    assert len(load_dataset(str(arrays(X, bad)), task="multilabel", skip_bad=True)) == len(X) - 1


# In a summary


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("end", [lambda z: z, torch.sigmoid, lambda z: {"scores": z.sigmoid()}])
def test_logits_and_probabilities_are_summarized_alike(summarized, end, opaque):
    net = Net(end, opaque)
    summary = summarized(net, X, Y, task="multilabel")
    assert summary.identity.mode == (LAST_LAYER if opaque else FULL)
    np.testing.assert_allclose(summary.records.read("loss"), losses(net), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(summary.records.read("target"), Y)
    p = torch.sigmoid(net.z())
    expected = torch.diag((p * (1 - p)).mean(0))
    torch.testing.assert_close(summary.statistics.output_hessian[0].float(), expected, rtol=1e-3, atol=1e-5)


def test_the_fit_is_told_per_label(summarized):
    net = Net()
    summary = summarized(net, X, Y, task="multilabel")
    right = ((net.z().numpy() > 0) == Y).mean()
    usual = np.maximum(Y.mean(0), 1 - Y.mean(0)).mean()
    said = TASK.describe(summary.fit)
    assert f"accuracy {right:.3f} per label (the more frequent value of each {usual:.3f})" in said
    assert f"mean loss {losses(net).mean():.3g} nats over 3 labels, {losses(net).mean() / 3:.3g} each" in said


@pytest.mark.parametrize("stored", [Y, Y.astype(np.float32), Y.astype(bool)])
def test_the_task_is_chosen_by_the_targets(summarized, caplog, stored):
    caplog.set_level(logging.INFO, "fsdtool")
    summary = summarized(Net(), X, stored, task=None)
    assert summary.task is TASK
    assert 'rows of 0 and 1: several labels for each example (`task="multilabel"`' in caplog.text


def test_one_hot_rows_are_classes_unless_asked_otherwise(arrays):
    rows = str(arrays(X, np.eye(3)[Y.sum(1) % 3]))
    assert load_dataset(rows).task.name == "classification"
    assert load_dataset(rows, task="multilabel").task.name == "multilabel"
    with pytest.raises(FsdtoolError, match='is not one-hot; give one class number per example, or `task="multilabel"`'):
        load_dataset(str(arrays(X, Y)), task="classification")
    with pytest.raises(FsdtoolError, match="is not one-hot; give one class number per example"):
        load_dataset(str(arrays(X, Y + 0.5)))


def test_items_of_a_data_set_are_looked_at(tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    (tmp_path / "items.py").write_text(
        "import numpy as np\n\ndef data():\n    d = np.load('d.npz')\n    return list(zip(d['x'], d['y']))\n"
    )
    monkeypatch.chdir(tmp_path)
    data = load_dataset("items.py:data")
    assert data.task is TASK
    np.testing.assert_array_equal(next(iter(data.batches(len(X)))).y, Y)


def test_another_number_of_outputs_is_refused(summarized):
    with pytest.raises(FsdtoolError, match="has 3 labels per example, the model 4 outputs; each label needs an output"):
        summarized(nn.Linear(5, 4), X, Y, task="multilabel")


@pytest.mark.parametrize("opaque", [False, True])
def test_distances_are_sums_of_bernoulli_divergences(summarized, tmp_path, opaque):
    net = Net(opaque=opaque)
    summary = summarized(net, X, Y, task="multilabel")
    before = net.z().double()
    with torch.no_grad():
        net.last.weight += 0.2 * torch.randn(net.last.weight.shape, generator=torch.Generator().manual_seed(1))
    after = net.z().double()
    p, q = before.sigmoid(), after.sigmoid()
    expected = {
        "kl": (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).mean(),
        "kl2": (0.5 * p * (1 - p) * (after - before) ** 2).sum(1).mean(),
        "probability": (0.5 * (p - q) ** 2).sum(1).mean(),
    }
    torch.save(net.state_dict(), tmp_path / "other.pt")
    other = [read_checkpoint(tmp_path / "other.pt")]
    data = None if opaque else load_dataset(str(tmp_path / "summary.h5.npz"), task="multilabel")
    for metric, value in expected.items():
        for form, close in (("examples", 0.02), ("sampled", 0.5)):
            (found,) = distances(summary, other, metric=metric, form=form, data=data).found
            assert found.distance == pytest.approx(float(value), rel=close), (metric, form)
            assert opaque or found.exact == pytest.approx(float(value), rel=1e-4)
    assert distances(summary, other).found[0].metric == "kl"
    assert float(summary.penalty(net, batch=256).detach()) == pytest.approx(float(expected["kl"]), rel=0.5)
    assert distances(summary, other, metric="kl2", form="closed").found[0].distance > 0


@pytest.mark.parametrize("end", [lambda z: z, torch.sigmoid])
def test_influence_is_that_of_autograd(summarized, tmp_path, end):
    """Against (1/N) g_q^T (G + lambda)^-1 g_i with dense gradients of the summed cross-entropies, one at a time."""
    net = Net(end)
    summary = summarized(net, X, Y, task="multilabel", record_bytes=10**6, curvature="measured")
    np.savez(tmp_path / "q.npz", x=X[:4], y=Y[:4])
    matrix = tmp_path / "m.npy"
    influence(summary, load_dataset(str(tmp_path / "q.npz"), task="multilabel"), top=1, matrix=matrix)
    expected = np.zeros((4, len(X)))
    for c in summary.curvature:
        each = []
        for x, y in zip(X, Y, strict=True):
            net.zero_grad()
            z = net.last(net.first(torch.from_numpy(x)).relu())
            F.binary_cross_entropy_with_logits(z, torch.from_numpy(y).float(), reduction="sum").backward()
            parts = [net.get_parameter(c.weight).grad] + ([net.get_parameter(c.bias).grad[:, None]] if c.bias else [])
            each.append(torch.cat(parts, 1).double())
        turned = c.output_basis.T.double() @ torch.stack(each) @ c.input_basis.double()
        expected += ((turned[:4] / c.damped).flatten(1) @ turned.flatten(1).T).numpy() / len(X)
    found = np.load(matrix)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999
    scale = 1.0 if summary.influence is None else summary.influence.scale
    np.testing.assert_allclose(found / scale, expected, rtol=0.02, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("solver", ["cg", "pbo"])
def test_other_solvers_find_the_example_itself(summarized, tmp_path, solver):
    wrong = Y.copy()
    wrong[5] = 1 - wrong[5]
    summary = summarized(Net(), X, wrong, task="multilabel")
    np.savez(tmp_path / "q.npz", x=X[4:7], y=wrong[4:7])
    queries, data = (load_dataset(str(tmp_path / name), task="multilabel") for name in ("q.npz", "summary.h5.npz"))
    found = influence(summary, queries, top=1, solver=solver, data=data)
    assert int(found.proponents[0][1, 0]) == 5


def test_a_target_is_told_by_the_labels_that_are_1(summarized):
    with open_catalogue(summarized(Net(), X, Y, task="multilabel").path) as catalogue:
        assert catalogue.target_name(np.array([1.0, 0.0, 1.0])) == "0, 2"
        assert catalogue.target_name(np.zeros(3)) == "none"
