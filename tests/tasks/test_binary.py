"""Networks of one logit: two classes, against torch's binary cross-entropy, autograd and enumeration."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import FsdtoolError
from fsdtool.fsd.drift import distances
from fsdtool.influence.scores import influence
from fsdtool.mislabel.find import find_mislabeled
from fsdtool.model.checkpoint import read_checkpoint
from fsdtool.network.traced import FULL, LAST_LAYER
from fsdtool.summary.catalogue import open_catalogue
from fsdtool.tasks.task import task_of
from tests.conftest import gaussian_classes, unseen

ENDS = {
    "logit": lambda z: z,
    "logit squeezed": lambda z: z.squeeze(1),
    "logit taken": lambda z: z[:, 0],
    "probability": torch.sigmoid,
    "probability squeezed": lambda z: torch.sigmoid(z).squeeze(-1),
    "squeezed, then probability": lambda z: torch.sigmoid(z.squeeze(1)),
    "taken, then probability": lambda z: z[:, 0].sigmoid(),
    "probability flat": lambda z: z.sigmoid().view(-1),
}
X, LABELS = gaussian_classes(200, 5, 2)


class Net(nn.Module):
    """5-8-1, trained a little; `end` makes its output of z.  An `opaque` one is taken by its last layer."""

    def __init__(self, end=ENDS["logit"], opaque: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 1)
        self.end, self.opaque = end, opaque
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            z = self.last(self.first(torch.from_numpy(X)).relu())[:, 0]
            F.binary_cross_entropy_with_logits(z, torch.from_numpy(LABELS).float()).backward()
            optimizer.step()

    def forward(self, x):
        h = self.first(x).relu()
        return self.end(self.last(unseen(h.detach()) if self.opaque else h))

    def z(self, x=X):
        with torch.no_grad():
            return self.last(self.first(torch.from_numpy(x)).relu())[:, 0]


def losses(net: Net, y: np.ndarray = LABELS) -> np.ndarray:
    return F.binary_cross_entropy_with_logits(net.z(), torch.from_numpy(y).float(), reduction="none").numpy()


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_the_loss_is_binary_cross_entropy_however_the_logit_is_returned(summarized, caplog, end, opaque):
    caplog.set_level(logging.INFO, "fsdtool")
    net = Net(ENDS[end], opaque)
    summary = summarized(net, X, LABELS)
    assert summary.identity.mode == (LAST_LAYER if opaque else FULL)
    assert summary.task is task_of("binary")
    assert summary.identity.graph.outputs == 2
    np.testing.assert_allclose(summary.records.read("loss"), losses(net), rtol=1e-4, atol=1e-6)
    found = summary.records.read("logits")
    assert not found[:, 0].any()
    np.testing.assert_allclose(found[:, 1], net.z(), rtol=2e-3, atol=1e-3)
    assert "the model has one output: the logit of class 1 against class 0" in caplog.text
    assert ("by their logit, from before the sigmoid" in caplog.text) == ("probability" in end)


@pytest.mark.parametrize(
    "targets", [LABELS.astype(np.float32), LABELS[:, None].astype(float), LABELS[:, None], LABELS.astype(bool)]
)
def test_labels_are_0_and_1_of_any_kind(summarized, targets):
    net = Net()
    for task in ("binary", None):
        summary = summarized(net, X, targets, task=task)
        assert summary.task.name == "binary"
        np.testing.assert_allclose(summary.records.read("loss"), losses(net), rtol=1e-4, atol=1e-6)


def test_other_labels_are_refused_in_one_line(summarized, arrays):
    more, signs = LABELS.copy(), 2 * LABELS - 1
    more[7] = 2
    line = r"label 2 of example 7 is neither 0 nor 1, and one output .*`task=\"regression\"`"
    with pytest.raises(FsdtoolError, match=line):
        load_dataset(str(arrays(X, more)), task="binary")
    with pytest.raises(FsdtoolError, match=r"label 2 of example 7 is neither 0 nor 1"):
        summarized(Net(), X, more)
    with pytest.raises(FsdtoolError, match=r"label -1 of example \d+ is not a class number"):
        load_dataset(str(arrays(X, signs)), task="binary")
    assert len(load_dataset(str(arrays(X, more)), task="binary", skip_bad=True)) == len(X) - 1


def test_two_words_in_a_table_are_two_classes(tmp_path, summarized):
    rows = [",".join([*map(str, x.tolist()), ("ham", "spam")[y]]) for x, y in zip(X, LABELS, strict=True)]
    (tmp_path / "d.csv").write_text("\n".join(["a,b,c,d,e,label", *rows]) + "\n")
    data = load_dataset(str(tmp_path / "d.csv"), task="binary")
    assert data.class_names == ["ham", "spam"]
    np.testing.assert_array_equal(next(iter(data.batches(len(X)))).y, LABELS)


def test_a_regression_of_one_output_stays_possible(summarized):
    summary = summarized(Net(ENDS["probability"]), X, LABELS.astype(np.float32), task="regression")
    assert summary.task.quadratic
    expected = 0.5 * (torch.sigmoid(Net().z()).numpy() - LABELS) ** 2
    np.testing.assert_allclose(summary.records.read("loss"), expected, rtol=1e-4, atol=1e-6)


def test_a_network_of_more_outputs_is_not_binary(summarized):
    with pytest.raises(FsdtoolError, match=re.escape("the model has 3 outputs, and a binary task is of one")):
        summarized(nn.Linear(5, 3), X, LABELS, task="binary")


@pytest.mark.parametrize("opaque", [False, True])
def test_the_kl_divergence_is_that_of_bernoulli_variables(summarized, tmp_path, opaque):
    net = Net(ENDS["probability squeezed"], opaque)
    summary = summarized(net, X, LABELS)
    p = torch.sigmoid(net.z().double())
    with torch.no_grad():
        net.last.weight += 0.3
        net.last.bias -= 0.2
    q = torch.sigmoid(net.z().double())
    torch.save(net.state_dict(), tmp_path / "other.pt")
    expected = float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean())
    data = None if opaque else load_dataset(str(tmp_path / "summary.h5.npz"), task="binary")
    for form in ("examples", "sampled"):
        (found,) = distances(summary, [read_checkpoint(tmp_path / "other.pt")], form=form, data=data).found
        assert found.metric == "kl"
        assert found.distance == pytest.approx(expected, rel={"examples": 0.02, "sampled": 0.5}[form])
        assert opaque or found.exact == pytest.approx(expected, rel=1e-4)


def test_the_closed_form_is_that_of_the_same_network_with_two_logits(summarized, tmp_path):
    net, found = Net(), []
    two = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    two.load_state_dict({"0.weight": net.first.weight, "0.bias": net.first.bias} | rows_of(net))
    summaries = [summarized(net, X, LABELS, name="one.h5"), summarized(two, X, LABELS, name="two.h5")]
    for network, summary in zip((net, two), summaries, strict=True):
        with torch.no_grad():
            last = network.last if network is net else network[2]
            last.weight[-1] += 0.1
        torch.save(network.state_dict(), tmp_path / "other.pt")
        other = read_checkpoint(tmp_path / "other.pt")
        found.append(distances(summary, [other], metric="kl2", form="closed").found[0].distance)
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0] > 0


def rows_of(net: Net) -> dict[str, torch.Tensor]:
    """The last layer with a row of zeros for class 0."""
    zero = torch.zeros_like(net.last.weight)
    return {"2.weight": torch.cat([zero, net.last.weight]), "2.bias": torch.cat([zero[0, :1], net.last.bias])}


@pytest.mark.parametrize("end", ["logit", "squeezed, then probability"])
def test_influence_is_that_of_autograd(summarized, tmp_path, end):
    """Against (1/N) g_q^T (G + lambda)^-1 g_i with dense gradients of binary cross-entropy, one at a time."""
    net = Net(ENDS[end])
    summary = summarized(net, X, LABELS, record_bytes=10**6, curvature="measured")
    np.savez(tmp_path / "q.npz", x=X[:4], y=LABELS[:4])
    matrix = tmp_path / "m.npy"
    influence(summary, load_dataset(str(tmp_path / "q.npz"), task="binary"), top=1, matrix=matrix)
    expected = np.zeros((4, len(X)))
    for c in summary.curvature:
        each = []
        for x, y in zip(X, LABELS, strict=True):
            net.zero_grad()
            z = net.last(net.first(torch.from_numpy(x)).relu())[0]
            F.binary_cross_entropy_with_logits(z, torch.tensor(float(y))).backward()
            parts = [net.get_parameter(c.weight).grad] + ([net.get_parameter(c.bias).grad[:, None]] if c.bias else [])
            each.append(torch.cat(parts, 1).double())
        turned = c.output_basis.T.double() @ torch.stack(each) @ c.input_basis.double()
        expected += ((turned[:4] / c.damped).flatten(1) @ turned.flatten(1).T).numpy() / len(X)
    found = np.load(matrix)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999
    scale = 1.0 if summary.influence is None else summary.influence.scale
    np.testing.assert_allclose(found / scale, expected, rtol=0.02, atol=0.01 * np.abs(expected).max())


def test_wrong_labels_are_found(summarized):
    wrong = LABELS.copy()
    wrong[:10] = 1 - wrong[:10]
    summary = summarized(Net(), X, wrong, task="binary")
    with open_catalogue(summary.path) as catalogue:
        found = find_mislabeled(catalogue, top=10)
        assert len({*found.order.tolist()} & {*range(10)}) >= 8
        row = next(found.rows())
    assert {row["given_label"], row["suggested_label"]} == {0, 1}
