"""Where a network takes images in several layouts, the one in which it knows them is taken, and said."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from fsdtool.data.formats.load import load_dataset
from fsdtool.data.layout import fit_layout
from fsdtool.data.preprocessing import Preprocessing
from fsdtool.fitting.run import summarize
from fsdtool.influence.scores import influence
from fsdtool.model.checkpoint import read_checkpoint
from fsdtool.summary.data_like import load_like
from fsdtool.summary.reader import load

SHAPES = {"channels last": (5, 5, 3), "channels first": (3, 5, 5)}


def pictures(shape: tuple[int, ...], examples: int = 160, regression: bool = False):
    """Images (examples, *shape) float32 in [0, 1] and their labels, or their brightness in one corner (examples, 1)."""
    generator = np.random.default_rng(0)
    y = np.arange(examples) % 3
    x = generator.normal(size=(3, *shape))[y] * 0.2 + 0.5 + 0.1 * generator.normal(size=(examples, *shape))
    x = x.clip(0, 1).astype(np.float32)
    return x, x.reshape(examples, -1)[:, :9].sum(1, keepdims=True) if regression else y


def trained(inputs: np.ndarray, y: np.ndarray, steps: int = 150) -> nn.Sequential:
    torch.manual_seed(0)
    inputs, y = torch.from_numpy(inputs.copy()), torch.from_numpy(y)
    outputs = y.shape[1] if y.ndim == 2 else 3
    net = nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 16), nn.ReLU(), nn.Linear(16, outputs))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(steps):
        f = net(inputs)
        loss = (f - y).square().mean() if y.ndim == 2 else nn.functional.cross_entropy(f, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.mark.parametrize("stored", SHAPES)
@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_the_layout_of_training_is_taken(arrays, caplog, stored, regression, moved):
    x, y = pictures(SHAPES[stored], regression=regression)
    to_model = (0, 3, 1, 2) if stored == "channels last" and moved else (0, 1, 2, 3)
    net = trained(x.transpose(to_model), y)
    source = load_dataset(str(arrays(x, y)), task="regression" if regression else "classification")
    with caplog.at_level(logging.INFO, "fsdtool"):
        fitted = fit_layout(source, net)
    batch = next(fitted.batches(len(x)))
    expected = net(torch.from_numpy(x.transpose(to_model).copy()))
    torch.testing.assert_close(net(batch.x), expected)
    if stored == "channels last":
        assert "would give" in caplog.messages[-1]
        assert "`layout`" in caplog.messages[-1]


def test_a_layout_that_is_asked_for_is_taken(arrays):
    x, y = pictures(SHAPES["channels last"])
    net, path = trained(x, y), str(arrays(x, y))
    source = load_dataset(path, preprocessing=Preprocessing(layout="channels first"))
    assert fit_layout(source, net).preprocessing.layout == "channels first"


def test_the_first_layout_stays_where_none_is_better_and_that_is_said(arrays, caplog):
    x, _ = pictures(SHAPES["channels last"])
    y = np.random.default_rng(1).integers(0, 3, len(x))
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(75, 3)).eval()
    with torch.no_grad():
        net[1].weight *= 0.01
    with caplog.at_level(logging.INFO, "fsdtool"):
        fitted = fit_layout(load_dataset(str(arrays(x, y))), net)
    assert fitted.preprocessing.layout == "channels first"


@pytest.mark.parametrize("regression", [False, True])
def test_networks_without_training_leave_the_first_layout_whichever_they_seem_to_know_better(
    arrays, caplog, regression
):
    x, y = pictures(SHAPES["channels last"], examples=25, regression=regression)
    source = load_dataset(str(arrays(x, y)), task="regression" if regression else "classification")
    deceptive = 0
    for seed in range(40):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(75, 1 if regression else 3)).eval()
        losses = []
        for inputs in (x, x.transpose(0, 3, 1, 2)):
            with torch.no_grad():
                f, wanted = net(torch.from_numpy(inputs.copy())), torch.from_numpy(y)
            of_each = (f - wanted).square().sum(1) / 2 if regression else -f.log_softmax(1)[range(25), wanted]
            losses.append(of_each.numpy())
        apart = losses[0] - losses[1]
        deceptive += apart.mean() < -3 * apart.std() / np.sqrt(25 - 1)
        assert fit_layout(source, net).preprocessing.layout == "channels first"
    assert deceptive
    assert "in none clearly best: channels first (" in caplog.text


def test_a_lead_of_few_examples_leaves_the_first_layout(arrays, caplog):
    x = np.zeros((100, 5, 5, 3), np.float32)
    y = np.arange(100) % 2
    x[:, 0, 0, 0] = np.where(y, 1, -1)  # stands first in both layouts
    x[:, 0, 0, 1] = np.where(y, 1, -1)  # stands second in one alone, which makes its answers surer
    x[:4, 0, 0, 0] *= -1
    x[:4, 0, 0, 1] *= 3
    net = nn.Sequential(nn.Flatten(), nn.Linear(75, 2))
    with torch.no_grad():
        net[1].weight.zero_()[1, :2] = torch.tensor([1.0, 0.5])
        net[1].bias.zero_()
    assert fit_layout(load_dataset(str(arrays(x, y))), net.eval()).preprocessing.layout == "channels first"
    assert "channels first (accuracy 0.960) is used, not as is (accuracy 1.000)" in caplog.text


@pytest.mark.parametrize("regression", [False, True])
def test_a_layout_of_training_that_a_few_wrong_labels_blur_is_taken(arrays, regression):
    x, y = pictures(SHAPES["channels last"], regression=regression)
    net = trained(x, y)
    y[:4] = y[4:8]
    source = load_dataset(str(arrays(x, y)), task="regression" if regression else "classification")
    assert fit_layout(source, net).preprocessing.layout == "as is"


def test_labels_that_the_network_does_not_know_leave_the_first_layout(arrays):
    x, y = pictures(SHAPES["channels last"])
    net = trained(x, y)
    assert fit_layout(load_dataset(str(arrays(x, y + 5))), net).preprocessing.layout == "channels first"


def test_queries_are_read_in_the_layout_of_the_summary(tmp_path, arrays):
    x, y = pictures(SHAPES["channels last"])
    net, path = trained(x, y), arrays(x, y)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    source, checkpoint = load_dataset(str(path)), read_checkpoint(tmp_path / "w.pt")
    report = summarize(model=net, checkpoint=checkpoint, data=source, output=tmp_path / "s.h5")
    assert "accuracy 1.000" in report.fit
    summary = load(tmp_path / "s.h5")
    answer = influence(summary, load_like(summary, str(path)), top=1)
    assert answer.predictions == y.tolist()
