"""Planted errors among several labels are found better than by the loss, without torch, in the order of the scores."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsdtool.errors import FsdtoolError
from fsdtool.mislabel.find import find_mislabeled
from fsdtool.mislabel.multilabel.label_errors import find_label_errors
from fsdtool.mislabel.regression.target_errors import find_target_errors
from fsdtool.summary.reader import load
from tests.conftest import gaussian_classes, perceptron

LABELS = 5


def planted(seed: int, count: int = 1500, share: float = 0.05) -> tuple[nn.Module, np.ndarray, np.ndarray, np.ndarray]:
    """A network trained on labels of which a share is flipped, its inputs and labels, and which were flipped.

    A label is 1 on a side of a curved surface in six hidden numbers.
    """
    generator = np.random.default_rng(seed)
    hidden = generator.normal(size=(count, 6))
    x = np.tanh(0.5 * hidden @ generator.normal(size=(6, 16))) + 0.2 * generator.normal(size=(count, 16))
    s = hidden @ generator.normal(size=(6, LABELS)) + 0.5 * (hidden**2 - 1) @ generator.normal(size=(6, LABELS))
    truth = s > np.quantile(s, 0.6, axis=0)
    wrong = generator.random(truth.shape) < share
    x, y = x.astype(np.float32), (truth ^ wrong).astype(np.float32)
    network = perceptron(16, 48, 48, LABELS, seed=seed)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(100):
        for rows in torch.randperm(count, generator=torch.Generator().manual_seed(seed)).split(100):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(network(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    return network, x, y, wrong


def precision(score: np.ndarray, wrong: np.ndarray) -> float:
    """Average precision of scores (N,) for what is wrong (N,)."""
    hits = wrong[np.argsort(-score, kind="stable")]
    return float((hits.cumsum() / np.arange(1, len(hits) + 1))[hits].mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_errors_are_found_better_than_by_the_loss(summarized, seed):
    network, x, y, wrong = planted(seed)
    summary = summarized(network, x, y, task="multilabel")
    found = find_label_errors(summary)
    with torch.no_grad():
        z = network(torch.from_numpy(x)).numpy()
    loss = np.logaddexp(0, np.where(y > 0, -z, z)).ravel()
    assert precision(found.score, wrong.ravel()) > precision(loss, wrong.ravel()) + 0.03
    assert wrong.ravel()[found.order].mean() > 0.8  # of those flagged
    assert 0.5 * wrong.mean() < found.noise_rate < 1.5 * wrong.mean()


def test_labels_that_are_missing_are_found(summarized):
    network, x, y, _ = planted(0, share=0.0)
    missing = (np.random.default_rng(1).random(y.shape) < 0.2) & (y > 0)
    given = np.where(missing, 0, y).astype(np.float32)
    found = find_label_errors(summarized(network, x, given, task="multilabel"))
    flagged = found.order
    assert (found.given[flagged] == 0).mean() > 0.95
    assert missing.ravel()[flagged].mean() > 0.7
    assert found.noise_rate == pytest.approx(missing.mean(), rel=0.3)


def test_rows_name_the_label(summarized):
    network, x, y, _ = planted(0, 300)
    summary = summarized(network, x, y, task="multilabel")
    found = find_label_errors(summary, top=20)
    assert found.judged == 300 * LABELS
    rows = list(found.rows())
    assert [row["rank"] for row in rows] == list(range(1, 21))
    assert [row["id"] for row in rows] == found.examples.tolist()
    for row in rows:
        assert row["given_label"] == y[row["id"], row["label"]] == 1 - row["suggested_label"]
    some = find_label_errors(summary, everything=True, mask=np.arange(300) < 7)
    assert sorted(some.order.tolist()) == list(range(7 * LABELS))
    assert some.judged == 7 * LABELS


def test_other_tasks_have_their_own_way(summarized, edited):
    network, x, y, _ = planted(0, 200)
    several = summarized(network, x, y, task="multilabel")
    with pytest.raises(FsdtoolError, match="is of a multilabel: only its summarized labels can be judged"):
        find_mislabeled(several)
    with pytest.raises(FsdtoolError, match="is of a multilabel, and only class labels and target values"):
        find_target_errors(several)
    classes = summarized(perceptron(4, 8, 3), *gaussian_classes(60, 4, 3), name="classes.h5")
    with pytest.raises(FsdtoolError, match="is of a classification, which has no several labels of an example"):
        find_label_errors(classes)
    with pytest.raises(FsdtoolError, match="written with `records=False`; write it again with records"):
        find_label_errors(summarized(network, x, y, task="multilabel", records=False, name="bare.h5"))


@pytest.mark.parametrize("broken", [None, [0.1] * 9, [0.6] * 10, [-0.1] * 10])
def test_damaged_flip_rates_are_refused(summarized, edited, broken):
    def damage(file):
        del file["records/residual"].attrs["rates"]
        if broken is not None:
            file["records/residual"].attrs["rates"] = broken

    network, x, y, _ = planted(0, 200)
    path = edited(summarized(network, x, y, task="multilabel").path, damage)
    with pytest.raises(FsdtoolError, match=r"'rates' is|flip rates that are no shares"):
        load(path)


def test_no_torch_is_imported(summarized):
    network, x, y, _ = planted(0, 200)
    path = summarized(network, x, y, task="multilabel").path
    script = f"""
import sys
from fsdtool.mislabel.multilabel.label_errors import find_label_errors
from fsdtool.summary.catalogue import open_catalogue
list(find_label_errors(open_catalogue({str(path)!r}), top=3).rows())
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
